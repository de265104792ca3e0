"""Architectures and model types of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_type

import numpy as np
import numpy.typing as npt

from tritonasync import TritonPool
from tritonasync.handles.architecture import Preprocessed
from tritonasync.handles.registry.config import HandleConfig, HandleParts
from tritonasync.handles.registry.configs import DetectorConfig
from tritonasync.handles.registry.registry import ModelRegistry, register_model, register_model_type
from tritonasync.handles.task import TaskHandle

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mask:
    pixels: npt.NDArray[np.bool_]


@register_model_type
@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(HandleConfig[TaskHandle[Image, Mask]]):
    model_type = "segmenter"
    threshold: float = 0.5


@register_model(model_type="segmenter")
class UNet:
    def __init__(self, config: SegmenterConfig) -> None:
        self.threshold = config.threshold

    def preprocess(self, inputs: Sequence[Image]) -> Preprocessed[int]:
        return Preprocessed({"IN": np.stack(inputs)}, len(inputs))

    def postprocess(self, outputs: Mapping[str, Floats], context: int) -> list[Mask]:
        return [Mask(plane > self.threshold) for plane in outputs["OUT"]]


assert_type(UNet(SegmenterConfig(name="u")), UNet)
assert_type(SegmenterConfig(name="u", threshold=1), SegmenterConfig)

pool = TritonPool("a:1")
segmenter = pool.create(SegmenterConfig(name="u"))
assert_type(segmenter, TaskHandle[Image, Mask])


class Own:
    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True, kw_only=True)
class OwnConfig(HandleConfig[Own]):
    model_type = "own"

    def build(self, parts: HandleParts) -> Own:
        return Own(self.name)


assert_type(pool.create(OwnConfig(name="o")), Own)


async def calls(image: Image) -> None:
    assert_type(await segmenter.one(image), Mask)
    assert_type(await segmenter([image]), list[Mask])
    _ = (await segmenter.one(image)).pixel  # type: ignore[attr-defined]
    await segmenter.one("image.png")  # type: ignore[arg-type]
    await segmenter([3])  # type: ignore[list-item]
    await segmenter.one(image, 3)  # type: ignore[call-arg]


registry = ModelRegistry(plugins=True)


@registry.register_model("detector", arch_type="mine", override=True)
class Post:
    def postprocess(self, outputs: Mapping[str, Floats]) -> list[int]:
        return []


class Neither:
    def process(self, inputs: Sequence[Image]) -> None: ...


registry.register_model("detector")(Neither)  # type: ignore[type-var]
registry.register_model(Post)  # type: ignore[arg-type]


class WrongConfig(HandleConfig[Own]):
    def build(self, parts: HandleParts) -> Mask:  # type: ignore[override]
        return Mask(np.zeros((1, 1), np.bool_))


SegmenterConfig(name="u", thresholt=1)  # type: ignore[call-arg]
SegmenterConfig(name="u", threshold="1")  # type: ignore[arg-type]
pool.create_detector(SegmenterConfig(name="u"))  # type: ignore[arg-type]
registry.register_model_type(Own)  # type: ignore[type-var]
registry.register_model(3)  # type: ignore[arg-type]
registry.register_model("detector", "mine")  # type: ignore[call-arg]
_ = registry.registered_models()[0].name  # type: ignore[attr-defined]
registry.config_class("detector")(name=3)  # type: ignore[arg-type]
DetectorConfig(name="d", arch_type=Post)  # type: ignore[arg-type]
