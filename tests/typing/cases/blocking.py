"""The pool without an event loop: the handles of configs, and very many items."""

from dataclasses import dataclass
from typing import assert_type

from tritonasync import Classification, Failed, TritonPool
from tritonasync.blocking import (
    BlockingBulk,
    BlockingClassifier,
    BlockingDetector,
    BlockingEncoder,
    BlockingTask,
)
from tritonasync.handles.registry.config import HandleConfig, HandleParts
from tritonasync.handles.registry.configs import ClassifierConfig, DetectorConfig, EncoderConfig
from tritonasync.handles.task import TaskHandle

pool = TritonPool.blocking("a:1")


@dataclass(frozen=True, kw_only=True)
class LengthConfig(HandleConfig[TaskHandle[str, int]]):
    model_type = "length"


class Own:
    pass


@dataclass(frozen=True, kw_only=True)
class OwnConfig(HandleConfig[Own]):
    model_type = "own"

    def build(self, parts: HandleParts) -> Own:
        return Own()


assert_type(pool.create(DetectorConfig(name="d")), BlockingDetector)
assert_type(pool.create(ClassifierConfig(name="c")), BlockingClassifier)
assert_type(pool.create(EncoderConfig(name="e")), BlockingEncoder)
assert_type(pool.create_detector({"name": "d"}), BlockingDetector)

lengths = pool.create(LengthConfig(name="l"))
assert_type(lengths, BlockingTask[str, int])
assert_type(lengths.one("a"), int)
assert_type(lengths(["a"]), list[int])
assert_type(lengths.map(["a"]), BlockingBulk[int, int])

digits = pool.classifier("digits")
assert_type(digits.map(["a.png"]), BlockingBulk[int, Classification])
assert_type(
    digits.map(["a.png"], errors="collect", key=str).keyed(),
    BlockingBulk[str, tuple[str, Classification | Failed[str]]],
)
for answer in digits.map(["a.png"]):
    assert_type(answer, Classification)

pool.create(OwnConfig(name="o"))  # type: ignore[arg-type]
pool.create({"name": "d"})  # type: ignore[call-overload]
pool.create_detector(ClassifierConfig(name="c"))  # type: ignore[arg-type]
lengths.one(3)  # type: ignore[arg-type]
digits.map(3)  # type: ignore[call-overload]
