"""What a padding takes, and what it refuses when it is made."""

import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import Padding


def test_lists_are_kept_as_tuples():
    padding = Padding(inputs={"IDS": 0}, buckets=[4, 8], outputs=["OUT"])
    assert padding.buckets == (4, 8)
    assert padding.outputs == ("OUT",)
    assert padding == Padding(inputs={"IDS": 0}, buckets=(4, 8), outputs=("OUT",))


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": {}},
        {"inputs": ["IDS"]},
        {"inputs": {"IDS": 0}, "mask": "IDS"},
        {"inputs": {"IDS": 0}, "buckets": (8, 4)},
        {"inputs": {"IDS": 0}, "buckets": (0, 4)},
        {"inputs": {"IDS": 0}, "buckets": 4},
        {"inputs": {"IDS": 0}, "outputs": "TWICE"},
        {"inputs": {"IDS": 0}, "axis": -1},
        {"inputs": {3: 0}},
        {"inputs": {"IDS": 0}, "mask": 3},
        {"inputs": {"IDS": 0}, "outputs": [3]},
    ],
)
def test_an_impossible_padding_is_refused_when_it_is_made(options):
    with pytest.raises(ConfigurationError, match="Padding"):
        Padding(**options)


def test_a_padding_does_not_change_with_what_it_was_made_of():
    inputs = {"IDS": 0}
    padding = Padding(inputs=inputs)
    inputs["IDS"] = 9
    assert padding.inputs == {"IDS": 0}
    assert hash(padding) == hash(Padding(inputs={"IDS": 0}))
