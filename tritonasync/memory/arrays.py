"""CuPy's array with a memory: which stream its bytes are made on, and who is told of consumers.

Owns: how that is carried along through slices and reshapes. Refuses to know: how arrays get here,
regions. Those that remember a stream stay within the package: what users get has none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, cast

from tritonasync.core.values import Array
from tritonasync.memory.streams import StreamRef, stream_object


def remembered_stream(array: object) -> StreamRef | None:
    """Return the stream that an array carries along, if it does."""
    stream = getattr(array, "made_on", None)
    return stream if isinstance(stream, StreamRef) else None


def remembering(
    cupy: ModuleType,
    array: object,
    *,
    made_on: StreamRef | None = None,
    note_stream: Callable[[int], None] | None = None,
) -> Array:
    """Return a view on a CuPy array that carries a memory with it, through slices and reshapes.

    Args:
        cupy: The module.
        array: The array.
        made_on: The stream that its bytes are made on.
        note_stream: Told the stream of each consumer that takes it by DLPack.
    """
    made = cast("Any", array).view(_array_type(cupy))
    made.made_on, made.note_stream = made_on, note_stream
    return cast("Array", made)


@cache
def _array_type(cupy: ModuleType) -> type:
    """Return CuPy's array with a memory: a class that can be made only when CuPy is there."""
    plain: Any = cupy.ndarray

    class DeviceArray(plain):  # type: ignore[misc]
        made_on: StreamRef | None
        note_stream: Callable[[int], None] | None

        def __array_finalize__(self, source: object) -> None:
            self.made_on = getattr(source, "made_on", None)
            self.note_stream = getattr(source, "note_stream", None)

        def get(
            self,
            stream: object = None,
            order: str = "C",
            out: object = None,
            blocking: bool = True,  # noqa: FBT001, FBT002  CuPy's signature
        ) -> Array:
            """Fetch it, on its own stream unless told otherwise."""
            if stream is None and self.made_on is not None:
                stream = stream_object(cupy, self.made_on)
            return cast("Array", plain.get(self, stream, order, out, blocking))

        def __dlpack__(self, *, stream: int | None = None, **options: object) -> object:
            """Hand it out to who uses it on another stream, of which note is taken."""
            if self.note_stream is not None and stream is not None and stream > 0:
                self.note_stream(stream)
            return plain.__dlpack__(self, stream=stream, **options)

    return DeviceArray
