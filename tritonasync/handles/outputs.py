"""What a model answered: arrays by name.

Owns: access to a reply's arrays, and clear errors for wrong names and dtypes. Refuses to know: what
the arrays mean.

Invariants: nothing is copied; the arrays are those of the reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tritonasync.core.values import Array, ParameterValue, Reply

_S = TypeVar("_S", bound=np.generic)


class Outputs(Mapping[str, Array]):
    """The outputs of a model by name, in the order in which the server gave them.

    The arrays of fixed-size datatypes are read-only views on the received message, which stays in
    memory as long as one of them: copy what is to be kept for long, or changed. BYTES are object
    arrays of ``bytes``.

    Args:
        reply: The reply.
        arrays: What to show in place of the reply's own arrays.

    Attributes:
        model: The model that answered.
        version: The version that answered.
        request_id: The id given with the call, as echoed.
        parameters: Parameters of the response.
    """

    __slots__ = ("_arrays", "model", "parameters", "request_id", "version")

    def __init__(self, reply: Reply, arrays: Mapping[str, Array] | None = None) -> None:
        self._arrays = reply.outputs if arrays is None else arrays
        self.model: str = reply.model
        self.version: str = reply.version
        self.request_id: str = reply.request_id
        self.parameters: Mapping[str, ParameterValue] = dict(reply.parameters)

    def __getitem__(self, name: str) -> Array:
        """Return the array of this output.

        Raises:
            KeyError: There is no such output.
        """
        try:
            return self._arrays[name]
        except KeyError:
            known = ", ".join(map(repr, self._arrays)) or "no outputs"
            raise KeyError(
                f"model {self.model!r} gave no output {name!r}; it gave {known}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

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
        arrays = ", ".join(f"{name}: {a.dtype}{list(a.shape)}" for name, a in self._arrays.items())
        return f"<Outputs of {self.model!r} version {self.version!r}: {arrays}>"
