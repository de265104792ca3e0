"""Between the host's memory and a GPU's, where a handle has to.

Owns: telling where a call's inputs are, bringing inputs or outputs to the other side. Refuses to
know: how they travel to a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import DeviceError
from tritonasync.core.offload import in_worker
from tritonasync.core.values import Array, InputTensor
from tritonasync.handles.outputs import Outputs
from tritonasync.memory.device import as_device_array, as_host, is_device_array, load_cupy
from tritonasync.memory.device import on_device as to_device


def on_this_side(array: object) -> bool:
    """Return whether an array is numpy's, and not CuPy's, whatever its type says."""
    return isinstance(array, np.ndarray)


def on_device(inputs: Iterable[InputTensor]) -> bool:
    """Return whether an input is in a GPU's memory."""
    return any(not on_this_side(part) for tensor in inputs for part in tensor.parts)


def brought_in(arrays: Mapping[str, npt.ArrayLike]) -> Mapping[str, npt.ArrayLike]:
    """Return arrays with those of a GPU as CuPy has them, each with the stream it is made on."""
    if not any(map(is_device_array, arrays.values())):
        return arrays
    return {
        name: as_device_array(value) if is_device_array(value) else value
        for name, value in arrays.items()
    }


def on_host(arrays: Mapping[str, npt.ArrayLike]) -> Mapping[str, npt.ArrayLike]:
    """Return arrays with those of a GPU fetched."""
    return {
        name: as_host([value])[0] if is_device_array(value) else value
        for name, value in arrays.items()
    }


def check_gpu() -> None:
    """Refuse outputs on a GPU where there is none, before anything is sent.

    Raises:
        MissingExtraError: CuPy is not installed.
        DeviceError: There is no GPU.
    """
    if not load_cupy("output_memory='gpu'").cuda.is_available():
        raise DeviceError("output_memory='gpu': CuPy finds no GPU, or no driver, here")


async def on_gpu(outputs: Outputs, deadline: Deadline, *, copy: bool) -> Outputs:
    """Return outputs with numbers as CuPy arrays, complete for whatever stream.

    Those that are some already stay as they are, unless they are to be copied.

    Raises:
        DeviceError: A copy failed.
    """
    if not copy and not any(on_this_side(array) for array in outputs.values()):
        return outputs
    move = _copied if copy else _to_gpu
    return await in_worker(partial(outputs.converted, move), deadline=deadline, model=outputs.model)


def _to_gpu(array: Array) -> Array:
    if not on_this_side(array) or array.dtype.kind == "O":
        return array
    return to_device(array)


def _copied(array: Array) -> Array:
    # By way of the host: which stream a copy on the GPU would be made on is nobody's choice here.
    return _to_gpu(as_host([array])[0].copy())
