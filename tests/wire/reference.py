"""What tritonclient makes of the same values: the reference for both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import serialize_byte_tensor

from tritonasync.core.values import Array, Datatype
from tritonasync.wire import decode, dtypes, plan
from tritonasync.wire.dtypes import numpy_dtype


def canonical(array: Array, datatype: Datatype) -> Array:
    """The array as tritonclient takes it: contiguous, native, BYTES as objects."""
    if datatype == "BYTES":
        elements = array.ravel().tolist()
        flat = np.empty(len(elements), object)
        flat[:] = elements
        return flat.reshape(array.shape)
    return np.ascontiguousarray(array, numpy_dtype(datatype))


def raw(array: Array, datatype: Datatype) -> bytes:
    plain = canonical(array, datatype)
    if datatype != "BYTES":
        return plain.tobytes()
    return serialize_byte_tensor(plain).item() if plain.size else b""


def request(
    inputs: Mapping[str, tuple[Array, Datatype]],
    *,
    model: str = "m",
    version: str = "",
    outputs: tuple[str, ...] = (),
    request_id: str = "",
    parameters: Mapping[str, object] | None = None,
) -> pb.ModelInferRequest:
    """The message that tritonclient would send."""
    tensors = []
    for name, (array, datatype) in inputs.items():
        tensor = grpcclient.InferInput(name, array.shape, datatype)
        if datatype == "BF16":  # older tritonclients make it of float32, newer ones of ml_dtypes
            tensor._raw_content = raw(array, datatype)
        else:
            tensor.set_data_from_numpy(canonical(array, datatype))
        tensors.append(tensor)
    return _get_inference_request(
        model_name=model,
        inputs=tensors,
        model_version=version,
        request_id=request_id,
        outputs=[grpcclient.InferRequestedOutput(name) for name in outputs],
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=dict(parameters or {}),
    )


def response(
    outputs: Mapping[str, tuple[Array, Datatype]],
    *,
    model: str = "m",
    version: str = "1",
    request_id: str = "",
) -> pb.ModelInferResponse:
    """The message that Triton sends: each output with its raw content."""
    message = pb.ModelInferResponse(model_name=model, model_version=version, id=request_id)
    for name, (array, datatype) in outputs.items():
        message.outputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_output_contents.append(raw(array, datatype))
    return message


def as_numpy(message: pb.ModelInferResponse, name: str) -> Array:
    """The array that tritonclient reads."""
    (output,) = (output for output in message.outputs if output.name == name)
    if output.datatype == "BF16":
        (index,) = (i for i, output in enumerate(message.outputs) if output.name == name)
        flat = np.frombuffer(message.raw_output_contents[index], numpy_dtype("BF16"))
        return flat.reshape(tuple(output.shape))
    return grpcclient.InferResult(message).as_numpy(name)


def same_bits(left: Array, right: Array) -> bool:
    """Equal in dtype, shape and every bit (so that NaN equals NaN)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return left.tolist() == right.tolist() if left.dtype == object else _bits(left) == _bits(right)


def _bits(array: Array) -> bytes:
    return array.tobytes()


def clear_caches() -> None:
    for cached in (dtypes._bfloat16, plan._plan, decode._head):
        cached.cache_clear()
    decode._layouts.clear()


@contextmanager
def without_ml_dtypes() -> Iterator[None]:
    """As on a machine where ml_dtypes is not installed."""
    clear_caches()
    with mock.patch.dict("sys.modules", {"ml_dtypes": None}):
        yield
    clear_caches()
