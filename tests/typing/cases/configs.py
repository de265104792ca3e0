"""Configs and what a pool makes of them."""

from typing import assert_type

from tritonasync import (
    Classification,
    Classifications,
    Classifier,
    Detections,
    Detector,
    Encoder,
    TritonPool,
)
from tritonasync.handles.registry.configs import ClassifierConfig, DetectorConfig, EncoderConfig
from tritonasync.handles.registry.registry import ModelRegistry, load_configs, registered_models
from tritonasync.processing.scaling import Scaling

pool = TritonPool("a:1", registry=ModelRegistry())

# --- a config's handle is known ---

assert_type(pool.create(DetectorConfig(name="d")), Detector)
assert_type(pool.create(ClassifierConfig(name="c", top_k=3)), Classifier)
assert_type(pool.create(EncoderConfig(name="e")), Encoder)
assert_type(pool.create(DetectorConfig.from_dict({"name": "d"})), Detector)
assert_type(pool.create(DetectorConfig.from_file("a.toml", table="d")), Detector)
assert_type(pool.create_detector({"name": "d"}), Detector)
assert_type(pool.create_classifier(ClassifierConfig(name="c")), Classifier)
assert_type(pool.create_encoder(EncoderConfig(name="e")), Encoder)
assert_type(DetectorConfig.from_dict({}), DetectorConfig)
assert_type(registered_models()[0].arch_type, str)

for config in load_configs("models.toml").values():
    if isinstance(config, DetectorConfig):
        assert_type(pool.create(config), Detector)

DetectorConfig(
    name="d",
    arch_type="yolov8",
    image_size=640,
    labels=["a", "b"],
    outputs={"boxes": "B"},
    score_threshold={"a": 0.5},
    scaling=Scaling(mean=(1.0, 2.0, 3.0)),
    decode=None,
    timeout_ms=250,
)


async def calls() -> None:
    detector = pool.create(DetectorConfig(name="d"))
    assert_type(await detector.one("image.png"), Detections)
    assert_type(await detector([b"png", "b.png"]), list[Detections])
    assert_type((await detector.one(b""))[0].label, str)
    assert_type(await pool.create_classifier({"name": "c"}).one("image.png"), Classification)
    assert_type(await pool.create_classifier({"name": "c"})(["image.png"]), Classifications)

    _ = (await detector.one("image.png")).labelz  # type: ignore[attr-defined]
    _ = (await detector.one("image.png"))[0].scores  # type: ignore[attr-defined]
    _ = (await detector(["image.png"])).boxes  # type: ignore[attr-defined]
    await detector.one()  # type: ignore[call-arg]
    await pool.create(EncoderConfig(name="e"))("a", timeout=3)  # type: ignore[call-arg]


# --- wrong configs ---

DetectorConfig(nme="d")  # type: ignore[call-arg]
DetectorConfig()  # type: ignore[call-arg]
DetectorConfig("d")  # type: ignore[call-arg]
DetectorConfig(name="d", image_sise=640)  # type: ignore[call-arg]
DetectorConfig(name="d", timeout=3)  # type: ignore[call-arg]
DetectorConfig(name="d", score_threshold="0.5")  # type: ignore[arg-type]
DetectorConfig(name="d", image_size=[640, 640])  # type: ignore[arg-type]
DetectorConfig(name="d", layout="HWC")  # type: ignore[arg-type]
DetectorConfig(name="d", activation="softmax")  # type: ignore[call-arg]
ClassifierConfig(name="c", activation="sofmax")  # type: ignore[arg-type]
EncoderConfig(name="e", pooling="max")  # type: ignore[arg-type]
EncoderConfig(name="e").normalize = True  # type: ignore[misc]
_ = EncoderConfig(name="e").normalise  # type: ignore[attr-defined]

# --- wrong uses ---

pool.create({"name": "d"})  # type: ignore[arg-type]
pool.create("d")  # type: ignore[arg-type]
pool.create(DetectorConfig)  # type: ignore[arg-type]
pool.create_detector(ClassifierConfig(name="c"))  # type: ignore[arg-type]
pool.create_classifier(DetectorConfig(name="d"))  # type: ignore[arg-type]
pool.create_encoder("e")  # type: ignore[arg-type]
detector: Detector = pool.create(ClassifierConfig(name="c"))  # type: ignore[assignment]
TritonPool("a:1", registry=ModelRegistry)  # type: ignore[arg-type]
load_configs(3)  # type: ignore[arg-type]
