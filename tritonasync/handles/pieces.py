"""What each response adds to a text.

Owns: characters that are split over two responses, bytes that are no UTF-8, texts that come whole
each time. Refuses to know: tensors, responses, time.

Invariants: the pieces, one after the other, are the whole text; no piece ends within a character.
Pure.
"""

from __future__ import annotations

import codecs
from typing import Final

from tritonasync.core.errors import ConfigurationError, ProtocolError

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}".encode()
"""What tokenizers put for a character of which a token is still to come."""


class Pieces:
    """The text of one call, as far as it has come.

    Args:
        model: The model's name, for messages.
        errors: What becomes of bytes that are no UTF-8, as of :meth:`bytes.decode`.
        cumulative: Whether each response has the whole text so far, and not only what is new.
    """

    def __init__(self, model: str, *, errors: str, cumulative: bool) -> None:
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self._cumulative = cumulative
        self._whole = b""  # cumulative only: as the last response had it
        self._used = 0  # bytes of it that went to the decoder

    def take(self, data: bytes) -> str:
        """Return what a response adds; empty if that is nothing, or half a character.

        Raises:
            ProtocolError: It is no UTF-8, where that is strict; or it has other words than before
                where it should repeat them.
        """
        return self._decoded(self._new(data) if self._cumulative else data)

    def finish(self) -> str:
        """Return what was held back. Raises as :meth:`take` does."""
        return self._decoded(self._whole[self._used :], final=True)

    def _new(self, whole: bytes) -> bytes:
        """Return what is new in a text, but for unfinished characters at its end."""
        end = len(whole)
        while whole.endswith(_REPLACEMENT, 0, end):
            end -= len(_REPLACEMENT)
        if not whole.startswith(self._whole[: self._used]):
            raise ProtocolError(
                f"model {self._model!r}: a response does not begin with the text of the one "
                "before; cumulative=True is for models that repeat all of it each time",
                model=self._model,
            )
        begin, self._whole, self._used = self._used, whole, max(self._used, end)
        return whole[begin : self._used]

    def _decoded(self, data: bytes, *, final: bool = False) -> str:
        try:
            return self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise ProtocolError(
                f"model {self._model!r}: its text is no UTF-8: {error}", model=self._model
            ) from error


def check_errors(model: str, errors: str) -> None:
    """Refuse a name that is no way to deal with bytes that are no UTF-8.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        b"\xff".decode(errors=errors)
    except UnicodeDecodeError:
        pass
    except (LookupError, TypeError) as error:
        raise ConfigurationError(
            f"model {model!r}: errors is 'replace', 'ignore', 'strict' or another name that "
            f"bytes.decode knows, not {errors!r}",
            model=model,
        ) from error
