"""Handles of configs without an event loop, on the real server."""

import threading
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tritonasync import TritonPool
from tritonasync.blocking import (
    BlockingClassifier,
    BlockingDetector,
    BlockingEncoder,
    BlockingGenerator,
    BlockingModel,
    BlockingTask,
)
from tritonasync.core.errors import ConfigurationError, UsageError
from tritonasync.handles.generator import Generator
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.registry.config import HandleConfig
from tritonasync.handles.registry.configs import ClassifierConfig, DetectorConfig, EncoderConfig
from tritonasync.handles.registry.registry import ModelRegistry
from tritonasync.handles.task import TaskHandle
from tritonasync.handles.vision.detections import Detections

pytestmark = pytest.mark.server


@dataclass(frozen=True, kw_only=True)
class LargestConfig(HandleConfig[TaskHandle[np.ndarray, float]]):
    model_type = "largest"


class Loudest(TaskHandle[np.ndarray, float]):
    """A handle of a user's own class."""


@dataclass(frozen=True, kw_only=True)
class LoudestConfig(HandleConfig[Loudest]):
    model_type = "loudest"


class Largest:
    threads: ClassVar = set()

    def preprocess(self, inputs):
        self.threads.add(threading.current_thread())
        return np.stack(inputs)

    def postprocess(self, outputs):
        return [float(row.max()) for row in outputs["OUTPUT0"]]


class Corner:
    """One box around what is not black, of images of 224 x 224."""

    def preprocess(self, inputs):
        return np.stack([np.stack([image] * 3).astype(np.float32) for image in inputs])

    def postprocess(self, outputs):
        return [self.found(planes[0]) for planes in outputs["OUTPUT0"]]

    def found(self, plane):
        rows, columns = np.nonzero(plane)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes, scores = np.array([box], np.float32), np.ones(1, np.float32)
        return Detections(boxes, scores, np.zeros(1, np.int64), ("it",), height=224, width=224)


@pytest.fixture
def registry():
    registry = ModelRegistry()
    for config in (LargestConfig, LoudestConfig):
        registry.register_model_type(config)
        registry.register_model(config.model_type)(Largest)
    registry.register_model("detector")(Corner)
    return registry


@pytest.fixture
def pool(server, registry):
    with TritonPool.blocking(server.grpc_url, registry=registry) as pool:
        yield pool


def image(size):
    made = np.zeros((224, 224), np.uint8)
    made[5 : 5 + size, 7 : 7 + size] = 200
    return made


def test_a_detector(pool):
    detector = pool.create(DetectorConfig(name="ident_image", arch_type="corner", timeout_s=20))
    assert type(detector) is BlockingDetector
    assert detector.one(image(4)).boxes.tolist() == [[7, 5, 11, 9]]
    assert [found.boxes[0, 2] for found in detector([image(1), image(2)])] == [8, 9]
    sizes = [found.boxes[0, 2] - 7 for found in detector.map(map(image, range(1, 20)))]
    assert sizes == list(range(1, 20))


@pytest.mark.parametrize("config", [LargestConfig, LoudestConfig])
def test_a_task_of_ones_own(pool, config):
    task = pool.create(config(name="ident"))
    assert type(task) is BlockingTask
    rows = np.arange(32, dtype=np.float32).reshape(2, 16)
    assert task.one(rows[0]) == 15
    assert task(rows) == [15, 31]
    assert list(task.map(rows)) == [15, 31]
    assert list(task.map([rows[0], rows[0, :3]], errors="collect"))[1].index == 1
    assert threading.current_thread() not in Largest.threads


def test_each_kind_has_its_own_that_waits(pool):
    assert type(pool.create(ClassifierConfig(name="classify4"))) is BlockingClassifier
    encoder = pool.create(EncoderConfig(name="ident", normalize=True))
    assert type(encoder) is BlockingEncoder
    np.testing.assert_allclose(encoder(np.ones((2, 16), np.float32)), 0.25)
    assert type(pool.create_detector({"name": "ident_image"})) is BlockingDetector


def test_what_a_config_builds_of_the_other_handles(pool, registry):
    @registry.register_model_type
    @dataclass(frozen=True, kw_only=True)
    class PlainConfig(HandleConfig[ModelHandle]):
        model_type = "plain"
        arch_types = ("plain",)

        def build(self, parts):
            return ModelHandle(
                self.name, self.version, parts.invoker, parts.catalog, timeout_s=parts.timeout_s
            )

    model = pool.create(PlainConfig(name="ident"))
    assert type(model) is BlockingModel
    assert model.one(INPUT0=np.ones(16, np.float32))["OUTPUT0"].sum() == 16

    @registry.register_model_type
    @dataclass(frozen=True, kw_only=True)
    class TextConfig(HandleConfig[Generator]):
        model_type = "text"
        arch_types = ("text",)

        def build(self, parts):
            given = (parts.invoker, parts.catalog, parts.invoker)
            return Generator(self.name, self.version, *given, timeout_s=parts.timeout_s)

    assert type(pool.create(TextConfig(name="tokens"))) is BlockingGenerator


def test_a_handle_that_has_none_that_waits_is_refused(pool, registry):
    @registry.register_model_type
    @dataclass(frozen=True, kw_only=True)
    class OwnConfig(HandleConfig[object]):
        model_type = "own"
        arch_types = ("own",)

        def build(self, parts):
            return object()

    with pytest.raises(UsageError) as caught:
        pool.create(OwnConfig(name="o"))
    assert str(caught.value) == (
        "pool.create: object has no counterpart that waits; expected a handle that derives from "
        "Classifier, Detector, Encoder, TaskHandle, ModelHandle, Generator. Use TritonPool and its "
        "create in an event loop"
    )
    with pytest.raises(ConfigurationError, match="expected a config"):
        pool.create({"name": "ident"})
