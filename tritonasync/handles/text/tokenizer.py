"""Tokenizers: read once from their files, and asked for the tokens of texts.

Owns: where a tokenizer comes from, and what its files say besides (the padding token, the most
tokens of a text). Refuses to know: models, tensors.

Invariants: files are read in a worker thread, each once for all handles; a tokenizer that the user
gives is copied, never changed; what is kept adds no padding and cuts nothing off, whatever its file
says, so that the length of a text is its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

import anyio
from anyio.lowlevel import RunVar

from tritonasync.core.checks import is_count
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError, MissingExtraError
from tritonasync.core.offload import in_worker

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TokenizerLike: TypeAlias = "str | os.PathLike[str] | Tokenizer"
"""A ``tokenizer.json``, a folder that has one, or a tokenizer of the package ``tokenizers``."""

_Settings: TypeAlias = Mapping[str, object]

_FILE: Final = "tokenizer.json"
_USUAL_PADS: Final = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
_ABSURD: Final = 1 << 20
"""transformers writes 1e30 for the length of a model that it does not know."""

_AT_A_TIME: Final = 512
"""Texts between two looks at the clock: some 10 ms, if they are of a hundred words each."""

_LONG_PATH: Final = 120
"""Characters of a path that a message has: what is longer is the content of a file by mistake."""

_MAX_COPIES: Final = 16
"""Tokenizers given as objects that are remembered; each is kept alive meanwhile."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one text.

    Attributes:
        ids: Their numbers, special tokens included.
        types: Their types.
    """

    ids: Sequence[int]
    types: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class TextTokenizer:
    """A tokenizer, with what is known of it.

    Attributes:
        tokenizer: Neither pads nor truncates.
        pad_id: The number of the padding token, if it has one.
        max_length: The most tokens of a text, special ones included, if that is known.
        max_length_source: Where that is said.
        cut_from: The end of a text that is cut off where it is too long.
        specials: How many special tokens each text gets.
    """

    tokenizer: Tokenizer
    pad_id: int | None
    max_length: int | None
    max_length_source: str
    cut_from: Literal["left", "right"]
    specials: int

    def tokens(self, texts: Sequence[str], deadline: Deadline, model: str) -> list[Tokens]:
        """Return the tokens of each text, special ones added.

        Raises:
            DeadlineExceededError: ``deadline`` passed when some were done, stage ``"encode"``.
        """
        encode = getattr(self.tokenizer, "encode_batch_fast", self.tokenizer.encode_batch)
        found: list[Tokens] = []
        for start in range(0, len(texts), _AT_A_TIME):
            if start:
                deadline.check("encode", model=model)
            encodings = cast("list[Encoding]", encode(texts[start : start + _AT_A_TIME]))
            found += [_tokens(encoding) for encoding in encodings]
        return found

    def cut(self, text: str, length: int) -> Tokens:
        """Return at most so many tokens of a text, special ones added and counted."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(length - self.specials, direction=self.cut_from)
        return _tokens(self.tokenizer.post_process(encoding))


def _tokens(encoding: Encoding) -> Tokens:
    return Tokens(encoding.ids, encoding.type_ids)


# --- where it comes from -----------------------------------------------------------------------


def check_source(source: object, model: str) -> None:
    """Refuse what is no tokenizer, nor a path, without reading anything.

    Raises:
        ConfigurationError: It is neither.
    """
    if source == "":  # which is the current folder for the file system
        raise ConfigurationError(f"model {model!r}: tokenizer is an empty path", model=model)
    if isinstance(source, (str, os.PathLike)) or _is_tokenizer(source):
        return
    kind = f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")
    inner = getattr(source, "backend_tokenizer", None)  # a fast tokenizer of transformers
    hint = "; give its backend_tokenizer" if _is_tokenizer(inner) else ""
    raise ConfigurationError(
        f"model {model!r}: tokenizer is the path of a tokenizer.json or of a folder with one, or a "
        f"tokenizers.Tokenizer, not {kind}{hint}",
        model=model,
    )


def _is_tokenizer(value: object) -> bool:
    module = sys.modules.get("tokenizers")  # not imported by anyone: then it is none
    return module is not None and isinstance(value, module.Tokenizer)


_ready: Final[dict[str, TextTokenizer]] = {}
"""By absolute path."""

_copies: Final[dict[int, tuple[object, TextTokenizer]]] = {}
"""Of tokenizers given as objects, by id, with the object: the ids of dead ones are used again."""

_reading: Final = Lock()
"""Held by a worker thread that reads: other event loops may want the same file."""

_turns: Final[RunVar[dict[str | int, anyio.Lock]]] = RunVar("tritonasync.handles.text.tokenizer")
"""Callers of an event loop wait for the first here, and not in a worker thread each."""


async def tokenizer_of(source: TokenizerLike, deadline: Deadline, model: str) -> TextTokenizer:
    """Return the tokenizer of a source, from memory after the first time.

    Raises:
        ConfigurationError: The files are not there, or are no tokenizer.
        MissingExtraError: The package ``tokenizers`` is not installed.
        DeadlineExceededError: ``deadline`` passed before it was read, stage ``"encode"``.
    """
    key = _key(source)
    ready = _known(key)
    if ready is not None:
        return ready
    make = partial(_make, source, key, model)
    turns = _turns_of_loop()
    with anyio.move_on_after(deadline.remaining()):
        async with turns.setdefault(key, anyio.Lock()):
            try:
                ready = _known(key)
                if ready is None:
                    ready = await in_worker(make, deadline=deadline, model=model)
                return ready
            finally:
                turns.pop(key, None)
    raise deadline.error("encode", model=model)


def _key(source: TokenizerLike) -> str | int:
    if isinstance(source, (str, os.PathLike)):
        return os.path.abspath(source)  # noqa: PTH100 - a tenth of the time of Path.absolute
    return id(source)


def _known(key: str | int) -> TextTokenizer | None:
    if isinstance(key, str):
        return _ready.get(key)
    copied = _copies.get(key)
    return None if copied is None else copied[1]


def _turns_of_loop() -> dict[str | int, anyio.Lock]:
    try:
        return _turns.get()
    except LookupError:
        turns: dict[str | int, anyio.Lock] = {}
        _turns.set(turns)
        return turns


def _make(source: TokenizerLike, key: str | int, model: str) -> TextTokenizer:
    """Read or copy a tokenizer, unless another event loop's thread did so meanwhile."""
    with _reading:
        ready = _known(key)
        if ready is None:
            if isinstance(key, str):
                ready = _ready[key] = _read(Path(key), model)
            else:
                ready = _copied(cast("Tokenizer", source), model)
                while len(_copies) >= _MAX_COPIES:
                    del _copies[next(iter(_copies))]
                _copies[key] = source, ready
    return ready


def _copied(tokenizer: Tokenizer, model: str) -> TextTokenizer:
    try:
        twin = type(tokenizer).from_str(tokenizer.to_str())
    except Exception as error:  # the package raises nothing more precise
        raise ConfigurationError(
            f"model {model!r}: the tokenizer cannot be copied ({error}); components written in "
            "Python cannot be used here",
            model=model,
        ) from error
    return _finished(twin, {}, ("the tokenizer's own truncation", None))


def _read(path: Path, model: str) -> TextTokenizer:
    try:
        return _read_from(path, model)
    except OSError as error:
        shown = str(path) if len(str(path)) < _LONG_PATH else f"{str(path)[:_LONG_PATH]}…"
        raise ConfigurationError(
            f"model {model!r}: tokenizer {shown!r} cannot be read: {error.strerror}; give the path "
            "of a tokenizer.json or of a folder with one",
            model=model,
        ) from error


def _read_from(path: Path, model: str) -> TextTokenizer:
    folder = path.is_dir()
    file = path / _FILE if folder else path
    tokenizer = _tokenizer_in(file, model)
    if not folder:
        return _finished(tokenizer, {}, (f"truncation in {file}", None))
    names = "special_tokens_map.json", "tokenizer_config.json", "sentence_bert_config.json"
    specials, config, sentences = [_json(path / name, model) for name in names]
    about = {**specials, **config}
    for name, length, entry in (
        (names[2], sentences.get("max_seq_length"), "max_seq_length"),
        (names[1], config.get("model_max_length"), "model_max_length"),
    ):
        if is_count(length) and cast("int", length) < _ABSURD:
            return _finished(tokenizer, about, (f"{entry} in {path / name}", cast("int", length)))
    return _finished(tokenizer, about, (f"truncation in {file}", None))


def _tokenizer_in(file: Path, model: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(
            "tokenizers", extra="text", purpose=f"model {model!r}: tokenising texts on the client"
        ) from error
    if not file.is_file():
        raise ConfigurationError(
            f"model {model!r}: expected a tokenizer in {str(file)!r}, found {_found(file)}",
            model=model,
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more precise
        raise ConfigurationError(
            f"model {model!r}: {str(file)!r} cannot be read as a tokenizer.json: {error}",
            model=model,
        ) from error


def _found(file: Path) -> str:
    if file.is_dir():
        return "a folder"
    folder = file.parent
    if not folder.is_dir():
        return "no such file, nor its folder"
    names = sorted(entry.name for entry in folder.iterdir())
    listed = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"no such file; the folder has {listed or 'nothing'}"


def _json(file: Path, model: str) -> Mapping[str, object]:
    """Return the object in a JSON file; an empty one if there is no file."""
    try:
        content: object = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"model {model!r}: {str(file)!r} cannot be read as JSON: {error}", model=model
        ) from error
    return cast("Mapping[str, object]", content) if isinstance(content, dict) else {}


def _finished(
    tokenizer: Tokenizer, about: Mapping[str, object], length: tuple[str, int | None]
) -> TextTokenizer:
    """Return a tokenizer of one's own with its padding and truncation taken off, but noted."""
    padding = cast("_Settings | None", tokenizer.padding)  # pyright: ignore[reportUnknownMemberType]
    cutting = cast("_Settings | None", tokenizer.truncation)  # pyright: ignore[reportUnknownMemberType]
    truncation = cutting or {}
    tokenizer.no_padding()
    tokenizer.no_truncation()
    source, max_length = length
    if max_length is None:
        max_length = cast("int | None", truncation.get("max_length"))
    side = about.get("truncation_side", truncation.get("direction"))
    return TextTokenizer(
        tokenizer,
        _pad_id(tokenizer, about, padding),
        max_length,
        source,
        "left" if side == "left" else "right",
        tokenizer.num_special_tokens_to_add(is_pair=False),
    )


def _pad_id(
    tokenizer: Tokenizer, about: Mapping[str, object], padding: Mapping[str, object] | None
) -> int | None:
    """Return the number of the padding token: the files' word for it, or a usual one."""
    word = about.get("pad_token")
    if isinstance(word, dict):  # an AddedToken
        word = cast("Mapping[str, object]", word).get("content")
    if isinstance(word, str) and (number := tokenizer.token_to_id(word)) is not None:
        return number
    if padding is not None:
        return cast("int", padding["pad_id"])
    numbers = [tokenizer.token_to_id(word) for word in _USUAL_PADS]
    return next((number for number in numbers if number is not None), None)
