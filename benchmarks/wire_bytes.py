"""Time the wire layer beside tritonclient's own functions, in one process, turn about.

Each line is the same work on both sides: array to serialised request, or serialised response to
array, in CPU time of the one thread: 10,000 strings each way, and a micro-batch, 256 row parts of
64 bytes to one message and its answer of [256, 16] float32.
"""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import serialize_byte_tensor

from benchmarks.samples import Figure
from tritonasync.core.values import Call, InputTensor
from tritonasync.wire.decode import decode_response
from tritonasync.wire.encode import encode_request

COUNT = 10_000
ROWS = 256
WORDS = (
    ["über", "größe", "straße", "müller", "fünf", "zwölf", "äpfel", "schön", "hören", "tür"],
    ["привет", "мир", "слово", "город", "улица", "вопрос", "ответ", "время", "год", "день"],
    ["你好", "世界", "城市", "街道", "问题", "回答", "时间", "日子", "工作", "生活"],
)


UNTYPICAL = ("bytes, 0 to 1,000 of noise", "str, alphabets mixed letter by letter")
"""Where most of the time is the interpreter's own: copying, and encoding text letter by letter."""


@dataclass(frozen=True)
class Case:
    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]


def elapsed_s(work: Callable[[], object], repeats: int) -> float:
    begin = time.thread_time()
    for _ in range(repeats):
        work()
    return (time.thread_time() - begin) / repeats


def figure(case: Case, goal: float | None, rounds: int, repeats: int) -> Figure:
    case.ours(), case.theirs()
    pairs = [
        (elapsed_s(case.ours, repeats) * 1e6, elapsed_s(case.theirs, repeats) * 1e6)
        for _ in range(rounds)
    ]
    ours, theirs = zip(*pairs, strict=True)
    return Figure(case.name, "µs", ours, theirs, goal)


def strings() -> dict[str, np.ndarray]:
    rng = random.Random(7)
    letters = string.ascii_letters + " "

    def array(make: Callable[[int], bytes | str]) -> np.ndarray:
        return np.array([make(index) for index in range(COUNT)], object)

    return {
        "bytes, 8 each": array(lambda index: b"%08d" % index),
        "bytes, 0 to 100 of text": array(
            lambda _: "".join(rng.choices(letters, k=rng.randrange(101))).encode()
        ),
        "bytes, 0 to 100 of noise": array(lambda _: rng.randbytes(rng.randrange(101))),
        "bytes, 0 to 1,000 of noise": array(lambda _: rng.randbytes(rng.randrange(1001))),
        "str, ASCII, 5 to 9 each": array(lambda index: f"item {index}"),
        "str, words of three languages": array(
            lambda _: " ".join(rng.choices(rng.choice(WORDS), k=rng.randrange(6)))
        ),
        "str, alphabets mixed letter by letter": array(
            lambda _: "".join(rng.choices("abcdéßЖя漢字 ", k=rng.randrange(101)))
        ),
    }


def their_request(name: str, datatype: str, array: np.ndarray) -> bytes:
    tensor = grpcclient.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    request = _get_inference_request(
        model_name="m",
        inputs=[tensor],
        model_version="",
        request_id="",
        outputs=None,
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=None,
    )
    return request.SerializeToString()


def their_array(message: bytes, name: str) -> np.ndarray:
    return grpcclient.InferResult(pb.ModelInferResponse.FromString(message)).as_numpy(name)


def response(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> bytes:
    message = pb.ModelInferResponse(model_name="m", model_version="1", id="17")
    message.outputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_output_contents.append(raw)
    return message.SerializeToString()


def encode_case(name: str, array: np.ndarray) -> Case:
    call = Call("m", "", (InputTensor("TEXT", "BYTES", array.shape, (array,)),))
    return Case(
        f"encode {name}",
        lambda: encode_request(call),
        lambda: their_request("TEXT", "BYTES", array),
    )


def decode_case(name: str, array: np.ndarray) -> Case:
    message = response("TEXT", "BYTES", array.shape, serialize_byte_tensor(array).item())
    return Case(
        f"decode {name}", lambda: decode_response(message), lambda: their_array(message, "TEXT")
    )


def batch_cases() -> list[Case]:
    rows = tuple(np.random.default_rng(1).random((1, 16), np.float32) for _ in range(ROWS))
    call = Call("m", "", (InputTensor("INPUT0", "FP32", (ROWS, 16), rows),), ROWS)
    message = response("OUTPUT0", "FP32", (ROWS, 16), np.concatenate(rows).tobytes())
    return [
        Case(
            "encode 256 parts of 64 B",
            lambda: encode_request(call),
            lambda: their_request("INPUT0", "FP32", np.concatenate(rows)),
        ),
        Case(
            "decode [256, 16] FP32",
            lambda: decode_response(message).outputs,
            lambda: their_array(message, "OUTPUT0"),
        ),
    ]


def run(*, quick: bool) -> Iterator[Figure]:
    """Time strings, then a micro-batch."""
    rounds = 7 if quick else 25
    for make in (encode_case, decode_case):
        for name, array in strings().items():
            goal = None if name in UNTYPICAL else 0.25
            yield figure(make(name, array), goal, rounds, repeats=2 if quick else 3)
    for case in batch_cases():
        yield figure(case, 1.0 if case.name.startswith("encode") else None, rounds, repeats=200)
