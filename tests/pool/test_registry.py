"""Registries of pools: handles of one's own on the real server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from tritonasync import TritonPool
from tritonasync.core.errors import ConfigurationError
from tritonasync.handles.architecture import Preprocessed
from tritonasync.handles.classifier import Classifier
from tritonasync.handles.detector import Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.registry.config import HandleConfig
from tritonasync.handles.registry.configs import ClassifierConfig, DetectorConfig, EncoderConfig
from tritonasync.handles.registry.registry import ModelRegistry
from tritonasync.handles.task import TaskHandle
from tritonasync.handles.vision.detections import Detections

pytestmark = [pytest.mark.anyio, pytest.mark.server]

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(HandleConfig[TaskHandle[Image, Mask]]):
    model_type = "segmenter"
    threshold: float = 0.5


@pytest.fixture
def registry():
    registry = ModelRegistry()
    registry.register_model_type(SegmenterConfig)

    @registry.register_model(model_type="segmenter")
    class Bright:
        """Takes what the model echoes for what it thinks of each pixel."""

        def __init__(self, config: SegmenterConfig) -> None:
            self.threshold = config.threshold

        def preprocess(self, inputs: Sequence[Image]) -> Preprocessed[list[tuple[int, ...]]]:
            batch = np.zeros((len(inputs), 3, 224, 224), np.float32)
            for row, image in zip(batch, inputs, strict=True):
                row[0, : image.shape[0], : image.shape[1]] = image / 255
            return Preprocessed({"INPUT0": batch}, [image.shape for image in inputs])

        def postprocess(
            self, outputs: Mapping[str, npt.NDArray[np.float32]], context: list[tuple[int, int]]
        ) -> list[Mask]:
            planes = outputs["OUTPUT0"][:, 0] > self.threshold
            return [plane[:h, :w] for plane, (h, w) in zip(planes, context, strict=True)]

    @registry.register_model(model_type="detector", arch_type="custom_detector")
    class CustomDetector:
        """One box around what is not black."""

        def preprocess(self, inputs):
            batch = np.zeros((len(inputs), 3, 224, 224), np.float32)
            for row, image in zip(batch, inputs, strict=True):
                row[0, : image.shape[0], : image.shape[1]] = image
            return Preprocessed({"INPUT0": batch}, [image.shape for image in inputs])

        def postprocess(self, outputs, context):
            return [
                self._boxed(plane, *size)
                for plane, size in zip(outputs["OUTPUT0"][:, 0], context, strict=True)
            ]

        def _boxed(self, plane, height, width):
            rows, columns = np.nonzero(plane)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            return Detections(
                np.array([box], np.float32),
                np.ones(1, np.float32),
                np.zeros(1, np.int64),
                ("thing",),
                height=height,
                width=width,
            )

    return registry


@pytest.fixture
async def pool(server, registry):
    async with TritonPool(server.grpc_url, registry=registry) as pool:
        yield pool


def image(height, width):
    made = np.zeros((height, width), np.uint8)
    made[5:9, 7:20] = 200
    return made


async def test_a_segmenter_of_ones_own(pool):
    segmenter = pool.create(SegmenterConfig(name="ident_image", threshold=0.7))
    masks = await segmenter([image(20, 30), image(100, 40)])
    assert [mask.shape for mask in masks] == [(20, 30), (100, 40)]
    np.testing.assert_array_equal(masks[0], image(20, 30) > 0)
    assert (await segmenter.one(image(20, 30))).sum() == 4 * 13


async def test_more_items_than_the_model_takes_at_once(pool):
    segmenter = pool.create(SegmenterConfig(name="ident_image", arch_type="bright"))
    masks = await segmenter([image(20 + row, 30) for row in range(11)])  # max_batch_size is 8
    assert [mask.shape[0] for mask in masks] == list(range(20, 31))


async def test_a_detector_of_ones_own(pool):
    detector = pool.create(DetectorConfig(name="ident_image", arch_type="custom_detector"))
    assert isinstance(detector, Detector)
    found = await detector.one(image(20, 30))
    assert found.labels == ("thing",)
    np.testing.assert_array_equal(found.boxes, [[7, 5, 20, 9]])
    assert (found.height, found.width) == (20, 30)


async def test_configs_of_each_kind_make_their_handles(pool):
    assert type(pool.create_classifier({"name": "classify4"})) is Classifier
    assert type(pool.create_classifier(ClassifierConfig(name="classify4"))) is Classifier
    assert type(pool.create_detector({"name": "ident_image", "arch_type": "yolov8"})) is Detector
    assert type(pool.create_encoder(EncoderConfig(name="ident"))) is Encoder
    with pytest.raises(ConfigurationError, match="expected a DetectorConfig or a mapping, got Enc"):
        pool.create_detector(EncoderConfig(name="ident"))
    with pytest.raises(ConfigurationError, match="DetectorConfig: nme: unknown key; did you mean"):
        pool.create_detector({"nme": "x"})


async def test_a_config_answers_as_the_handle_of_the_same_options(pool):
    batch = np.array([[0.1, 3, 0.2, 0.3]], np.float32)
    config = ClassifierConfig(name="classify4", labels=["a", "b", "c", "d"], activation="none")
    made = await pool.create(config)(batch)
    given = await pool.classifier("classify4", labels=["a", "b", "c", "d"], activation="none")(
        batch
    )
    assert made[0].label == given[0].label == "b"
    np.testing.assert_array_equal(made.scores, given.scores)
    encoder = pool.create_encoder({"name": "ident", "normalize": True, "timeout_s": 5})
    vectors = await encoder(np.ones((2, 16), np.float32))
    np.testing.assert_allclose(vectors, 0.25)


async def test_a_file_of_models(pool, tmp_path, registry):
    (tmp_path / "models.toml").write_text(
        """
        [seg]
        model_type = "segmenter"
        name = "ident_image"
        threshold = 0.9
        [ident]
        model_type = "encoder"
        timeout_ms = 5000
        """
    )
    configs = registry.load_configs(tmp_path / "models.toml")
    handles = {name: pool.create(config) for name, config in configs.items()}
    assert not (await handles["seg"].one(image(20, 30))).any()
    assert (await handles["ident"].one(np.ones(16, np.float32))).shape == (16,)


def test_a_pool_without_a_registry_has_the_default_one():
    with pytest.raises(ConfigurationError, match="no arch_type 'custom_detector'"):
        TritonPool("a:1").create(DetectorConfig(name="d", arch_type="custom_detector"))


def test_a_registry_must_be_one():
    with pytest.raises(ConfigurationError) as caught:
        TritonPool("a:1", registry=ModelRegistry)
    assert str(caught.value) == (
        "registry must be a ModelRegistry or None, not "
        "<class 'tritonasync.handles.registry.registry.ModelRegistry'>; ModelRegistry() makes one"
    )
