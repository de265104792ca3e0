"""A dozen sentences, two on each of six subjects, that share hardly a word."""

SENTENCES = [
    "A cat is sleeping on the warm windowsill.",
    "The kitten naps in a patch of sunshine.",
    "The central bank raised interest rates by a quarter of a point.",
    "Borrowing has become more expensive since the monetary policy decision.",
    "Bring the water to a boil before you add the pasta.",
    "Cook the spaghetti for nine minutes and stir in the sauce.",
    "Our flight to Lisbon was delayed by four hours.",
    "The passengers waited all evening at the airport gate.",
    "Neural networks learn from examples instead of rules.",
    "The model was trained on thousands of labelled images.",
    "She scored the winning goal in the last minute of the match.",
    "The home team took the cup after a late penalty kick.",
]
"""Sentences 0 and 1 are on one subject, 2 and 3 on the next, and so on."""


def partner(sentence: int) -> int:
    """Return the other sentence on the same subject."""
    return sentence ^ 1
