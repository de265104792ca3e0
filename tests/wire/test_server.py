"""Our bytes and the real server's: what it takes, and what it sends."""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.wire import reference
from tests.wire.strategies import LAYOUTS, laid_out
from tritonasync.core.values import DATATYPES, Array, Call, InputTensor, Reply
from tritonasync.serving import EmbeddedTriton
from tritonasync.wire.decode import decode_response
from tritonasync.wire.dtypes import numpy_dtype
from tritonasync.wire.encode import encode_request

Send = Callable[[Call], Reply]


@pytest.fixture
def channel(server: EmbeddedTriton) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_url) as channel:
        yield channel


@pytest.fixture
def send(channel: grpc.Channel) -> Send:
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return lambda call: decode_response(infer(encode_request(call), timeout=30))


def values(datatype: str) -> Array:
    """Six rows of four, of many values."""
    if datatype == "BYTES":
        texts = [b"", b"plain", "größe 漢字".encode(), b"\0\xff", b"x" * 300, "str"] * 4
        return np.array(texts, object).reshape(6, 4)
    dtype = numpy_dtype(datatype)
    if datatype == "BOOL":
        return (np.arange(24) % 3 == 0).reshape(6, 4)
    return np.arange(-7, 17).reshape(6, 4).astype(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_comes_back_as_it_was_sent(send, datatype, layout):
    pytest.importorskip("ml_dtypes")
    array = laid_out(values(datatype), layout)
    rows = tuple(array[i : i + 1] for i in range(len(array)))
    reply = send(
        Call("every_type", "", (InputTensor(f"IN_{datatype}", datatype, array.shape, rows),))
    )
    (output,) = reply.outputs.values()
    expected = reference.canonical(array, datatype)
    if datatype == "BYTES":
        expected = np.vectorize(lambda s: s if isinstance(s, bytes) else s.encode(), "O")(expected)
    assert reference.same_bits(output, expected)


def test_id_parameters_and_chosen_outputs_are_understood(send):
    array = np.ones((1, 2), np.int32)
    inputs = tuple(InputTensor(f"IN_{t}", t, (1, 2), (array,)) for t in ("INT32",))
    reply = send(
        Call(
            "every_type",
            "1",
            inputs,
            outputs=("OUT_INT32",),
            parameters=(
                ("flag", True),
                ("count", 2),
                ("rate", 0.5),
                ("word", "é"),
                ("priority", 0),
            ),
            request_id="call 17",
        )
    )
    assert (reply.model, reply.version, reply.request_id) == ("every_type", "1", "call 17")
    assert list(reply.outputs) == ["OUT_INT32"]


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_an_empty_tensor_comes_back_empty(send, datatype):
    array = np.empty((0, 3), numpy_dtype(datatype))
    reply = send(
        Call("every_type", "", (InputTensor(f"IN_{datatype}", datatype, (0, 3), (array,)),))
    )
    assert reply.outputs[f"OUT_{datatype}"].shape == (0, 3)


@contextmanager
def region(channel: grpc.Channel, nbytes: int) -> Iterator[tuple[str, mmap.mmap]]:
    """A shared-memory region that the server knows."""
    name = f"tritonasync-{os.getpid()}-wire"
    file = Path("/dev/shm") / name
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        file.write_bytes(bytes(nbytes))
        stub.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=nbytes)
        )
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), nbytes) as mapped:
            yield name, mapped
    finally:
        stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name=name))
        file.unlink()


def test_an_output_in_a_region_has_an_empty_raw_content_and_is_seen_there(channel):
    inputs = {
        f"IN_{datatype}": (values(datatype), datatype) for datatype in ("INT8", "INT16", "INT32")
    }
    request = reference.request(
        inputs, model="every_type", outputs=("OUT_INT8", "OUT_INT16", "OUT_INT32")
    )
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with region(channel, 48) as (name, mapped):
        placed = request.outputs[1].parameters
        placed["shared_memory_region"].string_param = name
        placed["shared_memory_byte_size"].int64_param = 48
        message = infer(request.SerializeToString(), timeout=30)
        in_region = mapped[:48]
    sent = pb.ModelInferResponse.FromString(message)
    where = [output.name for output in sent.outputs].index("OUT_INT16")
    assert len(sent.raw_output_contents) == 3
    assert sent.raw_output_contents[where] == b""
    reply = decode_response(
        message,
        placed={"OUT_INT16": lambda shape, dtype: np.ndarray(shape, dtype, in_region)},
    )
    assert set(reply.outputs) == {"OUT_INT8", "OUT_INT16", "OUT_INT32"}
    for datatype in ("INT8", "INT16", "INT32"):
        assert reference.same_bits(reply.outputs[f"OUT_{datatype}"], values(datatype))
