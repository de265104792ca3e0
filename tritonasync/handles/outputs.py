"""What a model answered: arrays by name.

Owns: access to a reply's arrays, and clear errors for wrong names and dtypes. Refuses to know: what
the arrays mean.

Invariants: nothing is copied; the arrays are those of the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Array, ParameterValue, Reply

_S = TypeVar("_S", bound=np.generic)


class Outputs(Mapping[str, Array]):
    """The outputs of a model by name, in the order in which the server gave them.

    The arrays of fixed-size datatypes are read-only views on the received message, or on shared
    memory that the server wrote. That stays in use as long as one of them lives (and holds the rows
    of others, if it answered a batch): :meth:`copy` what is to be kept for long, or changed. BYTES
    are object arrays of ``bytes``.

    Args:
        reply: The reply.
        row: The row of the reply to show, without the batch axis; ``None`` for the whole.
    """

    __slots__ = ("_reply", "_row")

    def __init__(self, reply: Reply, row: int | None = None) -> None:
        self._reply = reply
        self._row = row

    @property
    def model(self) -> str:
        """The model that answered."""
        return self._reply.model

    @property
    def version(self) -> str:
        """The version that answered."""
        return self._reply.version

    @property
    def request_id(self) -> str:
        """The id given with the call, as echoed."""
        return self._reply.request_id

    @property
    def parameters(self) -> Mapping[str, ParameterValue]:
        """Parameters of the response."""
        return dict(self._reply.parameters)

    def __getitem__(self, name: str) -> Array:
        """Return the array of this output.

        Raises:
            KeyError: There is no such output.
        """
        try:
            array = self._reply.outputs[name]
        except KeyError:
            known = ", ".join(map(repr, self)) or "no outputs"
            raise KeyError(
                f"model {self.model!r} gave no output {name!r}; it gave {known}"
            ) from None
        # The ellipsis makes an array of a single value, too, which would be a scalar without.
        return array if self._row is None else array[self._row, ...]

    def copy(self) -> Outputs:
        """Return the same outputs in memory of their own, which may be kept and changed."""
        return self.converted(lambda array: array.copy())

    def converted(self, convert: Callable[[Array], Array]) -> Outputs:
        """Return outputs whose arrays are what a function makes of these."""
        arrays = {name: convert(array) for name, array in self.items()}
        return Outputs(replace(self._reply, outputs=arrays))

    def release(self) -> None:
        """Let go of the arrays, so that shared memory can be used again before this object dies.

        Arrays that were taken out stay valid, and keep what they are part of. May be repeated.
        """
        self._reply = replace(self._reply, outputs={})

    def __iter__(self) -> Iterator[str]:
        return iter(self._reply.outputs)

    def __len__(self) -> int:
        return len(self._reply.outputs)

    def array(self, name: str, dtype: type[_S]) -> npt.NDArray[_S]:
        """Return the array of this output, known to the type checker by its dtype.

        Nothing is converted: for another dtype, call ``outputs[name].astype(dtype)``.

        Raises:
            KeyError: There is no such output.
            TypeError: The output has another dtype.
        """
        array, expected = self[name], np.dtype(dtype)
        if array.dtype != expected:
            raise TypeError(
                f"model {self.model!r}, output {name!r}: expected {expected}, got {array.dtype}"
            )
        return array

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name}: {a.dtype}{list(a.shape)}" for name, a in self.items())
        return f"<Outputs of {self.model!r} version {self.version!r}: {arrays}>"


def check_single(reply: Reply, of: str) -> None:
    """Refuse a reply that has not one row, where one was asked for.

    Raises:
        ProtocolError: An output has another number of rows.
    """
    for name, array in reply.outputs.items():
        if array.shape[:1] != (1,):
            raise ProtocolError(
                f"model {reply.model!r}, output {name!r}: expected one row for {of}, got "
                f"{list(array.shape)}",
                model=reply.model,
            )
