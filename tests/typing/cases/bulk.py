"""Very many items, and pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np
import numpy.typing as npt

from tritonasync.handles.classifications import Classification
from tritonasync.handles.classifier import Classifier
from tritonasync.handles.detector import Detector
from tritonasync.handles.encoder import Embeddings, Encoder
from tritonasync.handles.flow.bulk import BulkStream, Failed, Progress
from tritonasync.handles.flow.pipeline import Pipeline
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.outputs import Outputs
from tritonasync.handles.vision.detections import Detections
from tritonasync.handles.vision.images import ImageLike

Image = npt.NDArray[np.uint8]


def crops(pair: tuple[Image, Detections]) -> list[Image]:
    return []


async def async_crops(pair: tuple[Image, Detections]) -> list[Image]:
    return []


def name(path: Path) -> str:
    return path.name


def save(progress: Progress[str]) -> None:
    assert_type(progress.resume_key, str | None)


async def right(
    classifier: Classifier, detector: Detector, encoder: Encoder, model: ModelHandle
) -> None:
    paths = [Path("a")]
    assert_type(classifier.map(paths), BulkStream[int, Classification])
    assert_type(classifier.map(paths, key=name), BulkStream[str, Classification])
    assert_type(
        classifier.map(paths, key=name, start_after=None, progress=save),
        BulkStream[str, Classification],
    )
    assert_type(
        classifier.map(paths, errors="collect"), BulkStream[int, Classification | Failed[int]]
    )
    assert_type(
        classifier.map(paths, errors="collect", key=name).keyed(),
        BulkStream[str, tuple[str, Classification | Failed[str]]],
    )
    async for found in detector.map(paths):
        assert_type(found, Detections)
    async for key, vector in encoder.map(["a"], key=str).keyed():
        assert_type(key, str)
        assert_type(vector, Embeddings)
    assert_type(model.map([{"A": [1.0]}]), BulkStream[int, Outputs])

    scenes = Pipeline[Image, Detections](detector)
    assert_type(scenes.with_input(), Pipeline[Image, tuple[Image, Detections]])
    read = scenes.with_input().then(crops).each(classifier)
    assert_type(read, Pipeline[Image, list[Classification]])
    assert_type(
        scenes.with_input().then(async_crops).each(classifier),
        Pipeline[Image, list[Classification]],
    )
    assert_type(
        scenes.with_input().then(crops, in_thread=True).each(classifier),
        Pipeline[Image, list[Classification]],
    )
    assert_type(await read.one(np.zeros((1, 1), np.uint8)), list[Classification])
    assert_type(await read([np.zeros((1, 1), np.uint8)]), list[list[Classification]])
    assert_type(Pipeline(detector), Pipeline[ImageLike, Detections])
    assert_type(
        Pipeline(crops).each(classifier).with_input(),
        Pipeline[tuple[Image, Detections], tuple[tuple[Image, Detections], list[Classification]]],
    )
    assert_type(read.map([np.zeros((1, 1), np.uint8)]), BulkStream[int, list[Classification]])
    whole = scenes.with_input().then(Pipeline(crops).each(classifier).with_input())
    assert_type(whole, Pipeline[Image, tuple[tuple[Image, Detections], list[Classification]]])


def wrong(classifier: Classifier, detector: Detector, model: ModelHandle) -> None:
    scenes = Pipeline[Image, Detections](detector)
    classifier.map([Path("a")], errors="ignore")  # type: ignore[call-overload]
    classifier.map(3)  # type: ignore[call-overload]
    model.map([3])  # type: ignore[list-item]
    scenes.then(crops)  # type: ignore[arg-type]
    scenes.then(model)  # type: ignore[arg-type]
    Pipeline[Image, int](lambda image: 3).each(classifier)  # type: ignore[misc]
    Pipeline[Image, Classification](detector)  # type: ignore[arg-type]
    scenes.map(["a"])  # type: ignore[list-item]
