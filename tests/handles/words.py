"""A tokenizer of a few words, made anew for each test: word ``w7`` is token 7."""

from __future__ import annotations

import json

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="texts are tokenised on the client")

from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

CLS, SEP, PAD, UNKNOWN = 1, 2, 3, 0
SPECIALS = 2


def words_tokenizer(*, special: bool = True, pad: bool = True) -> Tokenizer:
    named = {"[UNK]": UNKNOWN, "[CLS]": CLS, "[SEP]": SEP, "[PAD]" if pad else "filler": PAD}
    words = {f"w{number}": number for number in range(4, 100)}
    tokenizer = Tokenizer(models.WordLevel({**named, **words}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    return tokenizer


def text(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def words(count: int, start: int = 4) -> str:
    """A text of so many words; its tokens are two more."""
    return text(*[start + index % 90 for index in range(count)])


def write_folder(folder, tokenizer=None, **files):
    """Write a tokenizer.json, and others by name and content; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or words_tokenizer()).save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
