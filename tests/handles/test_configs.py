"""Configs of handles: from Python, mappings and files, and what is said of those that are wrong."""

import copy
import dataclasses
import inspect
import json
import math
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec
from tritonasync.core.errors import ConfigurationError, MissingExtraError
from tritonasync.factory import HandleFactory
from tritonasync.handles.classifier import Classifier
from tritonasync.handles.detector import Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.registry.configs import (
    ClassifierConfig,
    DetectorConfig,
    EncoderConfig,
    HandleConfig,
    HandleParts,
    ImageFields,
)
from tritonasync.handles.registry.registry import ModelRegistry
from tritonasync.handles.task import TaskHandle
from tritonasync.handles.vision.decoding.family import DecoderName
from tritonasync.handles.vision.images import ImageOptions
from tritonasync.processing.scaling import Scaling

KINDS = {
    ClassifierConfig: (HandleFactory.classifier, Classifier),
    DetectorConfig: (HandleFactory.detector, Detector),
    EncoderConfig: (HandleFactory.encoder, Encoder),
}


def parts(**changed):
    invoker = FakeInvoker()
    made = {"invoker": invoker, "padder": invoker, "catalog": FakeCatalog(spec([])), "timeout_s": 7}
    return HandleParts(**made | changed)


def refused(make) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return str(caught.value)


# --- the fields are the handles' options ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_fields_are_the_options_of_the_handle_with_their_defaults(kind):
    options = inspect.signature(KINDS[kind][0]).parameters
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    own = {field.name for base in (HandleConfig, ImageFields) for field in dataclasses.fields(base)}
    expected = {
        name: parameter.default
        for name, parameter in options.items()
        if name not in {"self", "name", "version", "images"}
    }
    if kind is DetectorConfig:
        assert expected.pop("decode") == "auto"  # what None and no arch_type come to
        assert fields.pop("decode") is None
    assert {name: fields[name] for name in fields if name not in own} == expected


def test_image_options_are_fields_of_each():
    assert set(ImageFields.__annotations__) == set(ImageOptions.__annotations__)
    for kind in KINDS:
        assert issubclass(kind, ImageFields)
    assert DetectorConfig(name="a", pad_value=0, resize="crop").image_options() == {
        "pad_value": 0,
        "resize": "crop",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_with_a_name_makes_its_handle(kind):
    handle = kind(name="net", version="3").build(parts())
    assert type(handle) is KINDS[kind][1]
    assert (handle.name, handle.version, handle._timeout_s) == ("net", "3", 7)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, 7),
        ({"timeout_s": 2}, 2),
        ({"timeout_ms": 250}, 0.25),
        ({"timeout_s": math.inf}, math.inf),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_timeout_is_of_the_unit_in_its_name(kind, given, seconds):
    assert kind(name="net", **given).build(parts())._timeout_s == seconds


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_comes_to_the_handle(kind):
    """Each field, given alone and wrong in itself, has the handle complain, or changes it."""
    seen = {}

    class Catcher(KINDS[kind][1]):
        def __init__(self, name, version, invoker, catalog, **options):
            seen.update(options, name=name, version=version)

    module = sys.modules["tritonasync.handles.registry.configs"]
    name = KINDS[kind][1].__name__
    values = {
        "layout": "NHWC", "image_size": (32, 48), "scaling": "vgg", "resize": "crop",
        "channel_order": "bgr", "antialias": False, "pad_value": 3, "max_pixels": 99,
        "input_name": "IN", "output_name": "OUT", "outputs": ("A", "B"), "labels": ("a", "b"),
        "activation": "sigmoid", "top_k": 2, "threshold": 0.5, "casting": "same_kind",
        "decode": "ssd", "score_threshold": 0.3, "iou_threshold": 0.9, "max_detections": 7,
        "class_agnostic": True, "class_offset": 1, "normalize": True, "pooling": "cls",
        "tokenizer": "there", "max_length": 12, "truncate": True, "buckets": (1, 2),
        "mask_name": "M", "token_types_name": "T", "positions_name": "P",
    }  # fmt: skip
    fields = {field.name for field in dataclasses.fields(kind)} & set(values)
    assert fields == {f.name for f in dataclasses.fields(kind)} - {
        f.name for f in dataclasses.fields(HandleConfig)
    }
    given = {name: values[name] for name in fields}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, Catcher)
        kind(name="net", version="2", **given).build(parts())
    seen.pop("lane", None)  # of the pool
    assert seen == given | {"name": "net", "version": "2", "timeout_s": 7, "plug": None}


def test_texts_go_by_the_stage_that_fills_rows_up():
    padder = FakeInvoker()
    assert EncoderConfig(name="e", tokenizer="x").build(parts(padder=padder))._invoker is padder
    assert EncoderConfig(name="e").build(parts(padder=padder))._invoker is not padder


# --- values --------------------------------------------------------------------------------------


def test_lists_become_tuples_and_configs_are_equal_and_keys():
    first = DetectorConfig(name="a", image_size=[640, 480], labels=["x", "y"], outputs=["O"])
    second = DetectorConfig(name="a", image_size=(640, 480), labels=("x", "y"), outputs=("O",))
    assert first.image_size == (640, 480)
    assert first == second
    assert hash(first) == hash(second)
    assert {first, second} == {first}
    assert first != dataclasses.replace(first, labels=["x"])
    assert DetectorConfig(name="a") != EncoderConfig(name="a")


def test_tables_stay_as_they_are():
    config = DetectorConfig(name="a", score_threshold={"cat": 0.5, "*": 0.2})
    assert config.score_threshold == {"cat": 0.5, "*": 0.2}
    assert hash(config) == hash(DetectorConfig(name="a", score_threshold={"*": 0.2, "cat": 0.5}))
    for change in (
        lambda table: table.update(cat=1),
        lambda table: table.pop("cat"),
        lambda table: table.clear(),
        lambda table: table.__setitem__("cat", 1),
        lambda table: table.__delitem__("cat"),
        lambda table: table.__ior__({"cat": 1}),
        lambda table: table.setdefault("dog", 1),
    ):
        with pytest.raises(TypeError, match="make another config"):
            change(config.score_threshold)
    assert config.score_threshold == {"cat": 0.5, "*": 0.2}


def test_configs_are_frozen_and_can_be_copied_and_pickled():
    config = DetectorConfig(name="a", score_threshold={"cat": 0.5}, scaling=Scaling(mean=(1, 2, 3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "b"
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert hash(pickle.loads(pickle.dumps(config))) == hash(config)
    assert dataclasses.replace(config, name="b").name == "b"


def test_numpy_values_are_numbers_and_lists():
    config = DetectorConfig(
        name="a",
        image_size=np.array([640, 480]),
        max_detections=np.int64(9),
        score_threshold=np.float32(0.5),
    )
    assert config.image_size == (640, 480)
    assert type(config.max_detections) is int
    assert config.score_threshold == 0.5


# --- what is wrong, in Python --------------------------------------------------------------------

WRONG = [
    ({"image_sise": 3}, "image_sise: unknown key; did you mean image_size?"),
    ({"Image-Size": 3}, "Image-Size: unknown key; did you mean image_size?"),
    ({"timeout": 3}, "timeout: unknown key; say the unit: timeout_s or timeout_ms"),
    ({"client_timeout": 3}, "client_timeout: unknown key; say the unit: timeout_s or timeout_ms"),
    ({"timeout_m": 3}, "timeout_m: unknown key; say the unit: timeout_s or timeout_ms"),
    ({"max_detections": 2.5}, "max_detections: expected a whole number, got float 2.5"),
    ({"max_detections": True}, "max_detections: expected a whole number, got bool True"),
    ({"class_agnostic": 1}, "class_agnostic: expected True or False, got int 1"),
    ({"version": 3}, "version: expected a string, got int 3"),
    ({"score_threshold": "0.5"}, "score_threshold: expected a number or a table, got str '0.5'"),
    ({"score_threshold": {"a": "b"}}, "score_threshold.a: expected a number, got str 'b'"),
    (
        {"image_size": [640]},
        "image_size: expected 2 whole numbers, a whole number or None, got list [640]",
    ),
    ({"image_size": [640, "x"]}, "image_size[1]: expected a whole number, got str 'x'"),
    ({"labels": ["a", 3]}, "labels[1]: expected a string, got int 3"),
    ({"labels": 3}, "labels: expected a list of strings, a string, a path or None, got int 3"),
    ({"outputs": "x"}, "outputs: expected a list of strings, a table or None, got str 'x'"),
    (
        {"layout": "NWHC"},
        "layout: expected one of \"NCHW\", \"NHWC\" or None, got str 'NWHC'; did you mean 'NHWC'?",
    ),
    ({"scaling": {"meen": 1}}, "scaling.meen: unknown key; did you mean mean?"),
    ({"scaling": {"mean": [1, "x"]}}, "scaling.mean[1]: expected a number, got str 'x'"),
    ({"scaling": {"std": 0}}, "scaling: Scaling: std is finite, and above 0, got 0"),
    ({"timeout_s": 0}, "timeout_s: expected a number above 0, got int 0"),
    ({"timeout_ms": -1.0}, "timeout_ms: expected a number above 0, got float -1.0"),
    ({"timeout_s": math.nan}, "timeout_s: expected a number above 0, got float nan"),
    (
        {"timeout_s": 1, "timeout_ms": 2},
        "timeout_ms: timeout_s is given as well; give one of the two",
    ),
]


@pytest.mark.parametrize(("given", "fault"), WRONG, ids=[next(iter(g)) for g, _ in WRONG])
def test_what_is_said_of_a_wrong_field(given, fault):
    assert refused(lambda: DetectorConfig(name="a", **given)) == f"DetectorConfig: {fault}"
    from_dict = refused(lambda: DetectorConfig.from_dict({"name": "a", **given}))
    assert from_dict == f"DetectorConfig: {fault}"


@pytest.mark.parametrize("wrong", [[], {}, 3])
def test_a_tokenizer_looks_like_one(wrong):
    class Words:
        def encode_batch(self, texts):
            return [text.split() for text in texts]

    words = Words()
    config = EncoderConfig(name="e", tokenizer=words)
    assert config.tokenizer is words
    assert hash(config) == hash(EncoderConfig(name="e", tokenizer=words))
    assert refused(lambda: EncoderConfig(name="e", tokenizer=wrong)) == (
        "EncoderConfig: tokenizer: expected a string, a path, a Tokenizer or None, got "
        f"{type(wrong).__name__} {wrong}"
    )


def test_what_is_nothing_like_a_field_has_the_fields_listed():
    text = refused(lambda: EncoderConfig(name="a", qqq=1))
    assert text.startswith("EncoderConfig: qqq: unknown key; EncoderConfig has name, version, arch")


def test_all_faults_are_told_at_once_with_the_model():
    with pytest.raises(ConfigurationError) as caught:
        ClassifierConfig(name="net", labls=[], top_k="3")
    assert str(caught.value) == (
        "ClassifierConfig: labls: unknown key; did you mean labels?; "
        "top_k: expected a whole number or None, got str '3'"
    )
    assert caught.value.model == "net"


def test_a_name_must_be_there():
    assert refused(ClassifierConfig) == "ClassifierConfig: name: missing"
    assert refused(lambda: ClassifierConfig.from_dict({})) == "ClassifierConfig: name: missing"
    assert refused(lambda: ClassifierConfig(name="")) == (
        "ClassifierConfig: name: expected a model's name, got an empty string"
    )
    assert refused(lambda: ClassifierConfig("net")) == (
        "ClassifierConfig takes its fields by name: ClassifierConfig(name=…)"
    )


def test_a_mapping_must_be_one_and_of_the_right_kind():
    assert refused(lambda: ClassifierConfig.from_dict([1])) == (
        "ClassifierConfig: expected a table of entries by name, got list [1]"
    )
    assert refused(lambda: ClassifierConfig.from_dict({3: 1})) == (
        "ClassifierConfig: expected names of entries, got the key int 3"
    )
    assert refused(lambda: ClassifierConfig.from_dict({"name": "a", "model_type": "encoder"})) == (
        "ClassifierConfig: model_type: expected 'classifier' for a ClassifierConfig, got str "
        "'encoder'"
    )


# --- to_dict -------------------------------------------------------------------------------------

CONFIGS = [
    ClassifierConfig(name="c", labels=["a", "b"], top_k=2, timeout_ms=20),
    DetectorConfig(
        name="d",
        arch_type="ssd",
        iou_threshold=None,
        image_size=(3, 4),
        scaling=Scaling(mean=(1, 2, 3), std=2),
        score_threshold={"cat": 0.5},
        outputs={"boxes": "B"},
    ),
    EncoderConfig(name="e", tokenizer="folder", buckets=[1, 2], normalize=True, scaling="vgg"),
    DetectorConfig(name="d", labels=Path("labels.txt"), image_size=640),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_config_comes_back_from_its_dict(config):
    made = json.loads(json.dumps(config.to_dict()))
    assert made == config.to_dict()
    back = type(config).from_dict(made)
    assert back.to_dict() == config.to_dict()
    if not isinstance(getattr(config, "labels", None), Path):
        assert back == config
    assert made["model_type"] == config.model_type


def test_to_dict_says_what_differs_and_what_has_a_default():
    assert ClassifierConfig(name="c", labels=["a"]).to_dict() == {
        "model_type": "classifier",
        "name": "c",
        "version": "",
        "arch_type": "",
        "labels": ["a"],
        "activation": "softmax",
        "casting": "safe",
    }
    assert DetectorConfig(name="d", iou_threshold=None).to_dict()["iou_threshold"] is None


def test_a_function_cannot_be_written():
    config = DetectorConfig(name="d", decode=len)
    assert refused(config.to_dict) == (
        "DetectorConfig: decode: expected what a file can say, got builtin_function_or_method "
        "<built-in function len>"
    )


# --- files ---------------------------------------------------------------------------------------

TOML = """
name = "yolo"
image_size = [640, 640]
score_threshold = 0.4
labels = "names.txt"
timeout_ms = 250
[scaling]
mean = [1, 2, 3.5]
"""

YAML = """
name: yolo
image_size: [640, 640]
score_threshold: 0.4
labels: names.txt
timeout_ms: 250
scaling: {mean: [1, 2, 3.5]}
"""


@pytest.mark.parametrize(
    ("file", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("A.YML", YAML)], ids=str
)
def test_a_file_is_read_and_its_paths_are_relative_to_it(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    assert DetectorConfig.from_file(tmp_path / file) == DetectorConfig(
        name="yolo",
        image_size=(640, 640),
        score_threshold=0.4,
        labels=tmp_path / "names.txt",
        timeout_ms=250,
        scaling=Scaling(mean=(1, 2, 3.5)),
    )


def test_paths_that_are_absolute_or_at_home_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for written, path in {"/a/b": "/a/b", "~/b": "/home/somebody/b", "c": f"{tmp_path}/c"}.items():
        (tmp_path / "a.toml").write_text(f"name='e'\ntokenizer='{written}'")
        config = EncoderConfig.from_file(tmp_path / "a.toml")
        assert os.fspath(config.tokenizer) == path


def test_lists_of_labels_are_no_paths(tmp_path):
    (tmp_path / "a.toml").write_text("name='e'\nlabels=['a', 'b']")
    assert ClassifierConfig.from_file(tmp_path / "a.toml").labels == ("a", "b")


def test_relative_files_work_wherever_one_goes_then(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text("name='c'\nlabels='l.txt'")
    monkeypatch.chdir(tmp_path)
    config = ClassifierConfig.from_file("a.toml")
    assert config.labels == tmp_path / "l.txt"


def test_a_table_of_a_file_has_the_models_name(tmp_path):
    file = tmp_path / "models.toml"
    file.write_text("[tool.models.cats]\nmax_detections=3\n[tool.models.dogs]\nname='hounds'")
    assert DetectorConfig.from_file(file, table="tool.models.cats") == DetectorConfig(
        name="cats", max_detections=3
    )
    assert DetectorConfig.from_file(file, table="tool.models.dogs").name == "hounds"
    assert refused(lambda: DetectorConfig.from_file(file, table="tool.models.cat")) == (
        f"{file}: tool.models.cat: no such table; did you mean cats?"
    )
    assert refused(lambda: DetectorConfig.from_file(file, table="qqq")) == (
        f"{file}: qqq: no such table; there are tool"
    )
    assert refused(
        lambda: DetectorConfig.from_file(file, table="tool.models.cats.max_detections")
    ) == (
        f"{file}: tool.models.cats.max_detections: expected a table of entries by name, got int 3"
    )


def test_faults_in_a_file_name_it_and_the_keys(tmp_path):
    file = tmp_path / "models.toml"
    file.write_text("[a.cats]\nscore_threshold='high'\nlabells=[]")
    assert refused(lambda: DetectorConfig.from_file(file, table="a.cats")) == (
        f"{file}: a.cats.score_threshold: expected a number or a table, got str 'high'; "
        "a.cats.labells: unknown key; did you mean labels?"
    )


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("a.toml", b"name = ", "is no TOML: Invalid value (at end of document)"),
        ("a.toml", b"name='a'\nname='b'", "is no TOML: Cannot overwrite a value"),
        ("a.toml", b"name='\xff'", "is not UTF-8: invalid start byte at byte 6"),
        ("a.yaml", b"name: [", "is no YAML: while parsing a flow node"),
        ("a.yaml", b"a: {b: 1, b: 2}", "is no YAML: 'b' is there twice"),
        ("a.yaml", b"!!python/object:os.system {}", "is no YAML: could not determine a constr"),
        ("a.yaml", b"- a", "expected a table of entries by name, got list ['a']"),
        ("a.yaml", b"3: a", "expected names of entries, got the key int 3"),
        ("a.yaml", b"", "name: missing"),
        ("a.json", b"{}", "expected a file that ends in .toml, .yaml, .yml"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, file, content, fault):
    (tmp_path / file).write_bytes(content)
    text = refused(lambda: EncoderConfig.from_file(tmp_path / file))
    assert text.startswith(f"{tmp_path / file}: {fault}")


def test_a_file_that_is_not_there(tmp_path):
    assert refused(lambda: EncoderConfig.from_file(tmp_path / "a.toml")) == (
        f"{tmp_path / 'a.toml'}: cannot be read: No such file or directory"
    )
    (tmp_path / "b.yaml").mkdir()
    assert "b.yaml: cannot be read: Is a directory" in refused(
        lambda: EncoderConfig.from_file(tmp_path / "b.yaml")
    )


def test_yaml_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "a.yaml").write_text(YAML)
    with pytest.raises(MissingExtraError, match=r"a.yaml needs pyyaml.*'tritonasync\[yaml\]'"):
        DetectorConfig.from_file(tmp_path / "a.yaml")
    (tmp_path / "a.toml").write_text(TOML)
    DetectorConfig.from_file(tmp_path / "a.toml")


# --- files of many models ------------------------------------------------------------------------

MANY = """
[digits]
model_type = "classifier"
labels = "digits.txt"

[cats]
model_type = "detector"
name = "yolo11n"
arch_type = "yolov8"
"""


def test_a_file_of_many_models(tmp_path):
    (tmp_path / "models.toml").write_text(MANY)
    configs = ModelRegistry().load_configs(tmp_path / "models.toml")
    assert dict(configs) == {
        "digits": ClassifierConfig(name="digits", labels=tmp_path / "digits.txt"),
        "cats": DetectorConfig(name="yolo11n", arch_type="yolov8"),
    }
    with pytest.raises(TypeError):
        configs["more"] = None


def test_a_part_of_a_file_of_many(tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text("app: {debug: true, models: {e: {model_type: encoder, normalize: true}}}")
    assert dict(ModelRegistry().load_configs(file, table="app.models")) == {
        "e": EncoderConfig(name="e", normalize=True)
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x = 3", "x: expected a table of entries by name, got int 3"),
        ("[x]\na=1", "x.model_type: expected one of classifier, detector, encoder, got nothing"),
        ("[x]\nmodel_typ='encoder'", "x.model_typ: unknown key; did you mean model_type?"),
        (
            "[x]\nmodel_type=3",
            "x.model_type: expected one of classifier, detector, encoder, got int 3",
        ),
        (
            "[x]\nmodel_type='detectr'",
            "x.model_type: there is no model_type 'detectr' (did you mean 'detector'?); "
            "registered: classifier, detector, encoder",
        ),
        (
            "[x]\nmodel_type='encoder'\npoolin='cls'",
            "x.poolin: unknown key; did you mean pooling?",
        ),
    ],
)
def test_what_is_wrong_in_a_file_of_many(tmp_path, text, fault):
    file = tmp_path / "models.toml"
    file.write_text(text)
    assert refused(lambda: ModelRegistry().load_configs(file)) == f"{file}: {fault}"


def test_a_mapping_says_its_kind():
    registry = ModelRegistry()
    assert registry.config_from_dict({"model_type": "encoder", "name": "e"}) == EncoderConfig(
        name="e"
    )
    assert refused(lambda: registry.config_from_dict({"name": "e"})) == (
        "config: model_type: expected one of classifier, detector, encoder, got nothing"
    )


# --- configs of one's own ------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Shown(Protocol):
    def show(self) -> None: ...


@dataclass(frozen=True)
class Inner:
    depth: int
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OddConfig(HandleConfig[TaskHandle[Any, Any]]):
    model_type: ClassVar[str] = "odd"

    inner: Inner | None = None
    colour: Colour = Colour.RED
    file: Path | None = None
    pairs: Mapping[str, Sequence[int]] | None = None
    mixed: tuple[str, int] | None = None
    hook: Callable[[int], int] | None = None
    noted: Annotated[int, "a note"] = 0
    shown: "Shown | None" = None
    anything: Any = None
    unknowable: "NotThere" = None  # noqa: F821
    word: Literal["a", 1] = "a"


def test_own_fields_are_checked_by_their_annotations(tmp_path):
    config = OddConfig(
        name="o",
        inner={"depth": 2, "tags": ["a"]},
        colour="red",
        file="x",
        pairs={"a": [1, 2]},
        mixed=["a", 1],
        hook=abs,
        noted=3,
        shown=3,
        unknowable=object,
        word=1,
    )
    assert config.inner == Inner(2, ("a",))
    assert config.colour is Colour.RED
    assert config.file == Path("x")
    assert config.pairs == {"a": (1, 2)}
    assert config.mixed == ("a", 1)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"inner": {}}, "inner.depth: missing"),
        ({"inner": {"deth": 1}}, "inner.deth: unknown key; did you mean depth?"),
        ({"inner": {"depth": "x"}}, "inner.depth: expected a whole number, got str 'x'"),
        ({"inner": 3}, "inner: expected an Inner or None, got int 3"),
        ({"colour": "blue"}, "colour: expected one of 'red', got str 'blue'"),
        ({"file": 3}, "file: expected a path or None, got int 3"),
        ({"pairs": {"a": ["x"]}}, "pairs.a[0]: expected a whole number, got str 'x'"),
        ({"pairs": {3: []}}, "pairs[3]: expected a string, got int 3"),
        (
            {"mixed": ["a"]},
            "mixed: expected a list of a string, a whole number or None, got list ['a']",
        ),
        ({"hook": 3}, "hook: expected a function or None, got int 3"),
        ({"noted": "x"}, "noted: expected a whole number, got str 'x'"),
        ({"word": True}, 'word: expected one of "a", 1, got bool True'),
    ],
)
def test_what_is_said_of_own_fields(given, fault):
    assert refused(lambda: OddConfig(name="o", **given)) == f"OddConfig: {fault}"


def test_a_check_of_ones_own_is_told_with_the_file(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class StrictConfig(HandleConfig[TaskHandle[Any, Any]]):
        model_type = "strict"
        share: float = 0.5

        def __post_init__(self):
            if self.share > 1:
                raise ConfigurationError("share is at most 1")

    (tmp_path / "a.toml").write_text("name='a'\nshare=2")
    assert refused(lambda: StrictConfig.from_file(tmp_path / "a.toml")) == (
        f"{tmp_path / 'a.toml'}: share is at most 1"
    )


def test_a_value_error_of_ones_own_is_told_with_the_file_as_well(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class StrictConfig(HandleConfig[TaskHandle[Any, Any]]):
        model_type = "strict"
        share: float = 0.5

        def __post_init__(self):
            if self.share > 1:
                raise ValueError("share is at most 1")

    (tmp_path / "a.toml").write_text("[models.a]\nshare=2")
    assert (
        refused(lambda: StrictConfig.from_file(tmp_path / "a.toml", table="models.a"))
        == f"{tmp_path / 'a.toml'}: models.a: share is at most 1"
    )


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    for file, text in {"a.toml": "name='e'", "a.yaml": "name: e"}.items():
        (tmp_path / file).write_text(text, "utf-8-sig")
        assert EncoderConfig.from_file(tmp_path / file) == EncoderConfig(name="e")


def test_a_class_that_is_no_dataclass_is_told_so():
    class Forgotten(HandleConfig[TaskHandle[Any, Any]]):
        model_type = "forgotten"
        share: float = 0.5

    assert "Forgotten is no dataclass: write @dataclass(frozen=True, kw_only=True)" in refused(
        lambda: Forgotten(name="a", share=0.1)
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([f.name for kind in KINDS for f in dataclasses.fields(kind)]) | st.text()


@given(kind=st.sampled_from([*KINDS, OddConfig]), entries=st.dictionaries(NAMES, JSON, max_size=5))
def test_whatever_a_file_says_is_a_config_or_a_configuration_error(kind, entries):
    try:
        config = kind.from_dict({"name": "a", **entries})
    except ConfigurationError:
        return
    if kind is not OddConfig:  # which has fields that take anything
        hash(config)
        assert kind.from_dict(config.to_dict()) == config or "nan" in repr(config)


def test_the_choices_of_detectors_are_the_decoders():
    assert DetectorConfig.arch_types == ("auto", *get_args(DecoderName))
