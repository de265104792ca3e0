"""Registries: adding, looking up, making handles of configs, and what their classes do in calls."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import ConfigurationError, InvalidInputError
from tritonasync.core.values import TensorSpec
from tritonasync.handles.architecture import Preprocessed
from tritonasync.handles.detector import Candidates
from tritonasync.handles.registry.config import HandleConfig, HandleParts, expected_config
from tritonasync.handles.registry.configs import ClassifierConfig, DetectorConfig, EncoderConfig
from tritonasync.handles.registry.registry import (
    ModelRegistry,
    RegisteredModel,
    default_registry,
    load_configs,
    register_model,
    register_model_type,
    registered_models,
)
from tritonasync.handles.task import TaskHandle

pytestmark = pytest.mark.anyio

PLAIN = [TensorSpec("IN", "FP32", (-1, 4))]
IMAGES = [TensorSpec("IN", "FP32", (-1, 1, 8, 8))]


@pytest.fixture
def registry():
    return ModelRegistry()


def refused(make) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return str(caught.value)


def echo(call):
    """The input's rows as the output."""
    return {"OUT": tensor(call, "IN").reshape(call.inputs[0].shape[0], -1)[:, :4]}


def made(registry, config, *, inputs=PLAIN, outputs=(("OUT", "FP32", (-1, 4)),), model=echo):
    """A handle of a config, and the model beneath it."""
    invoker = FakeInvoker(model)
    catalog = FakeCatalog(spec(inputs, outputs, name=config.name))
    return registry.create(config, HandleParts(invoker, invoker, catalog, 5)), invoker


class Doubling:
    def preprocess(self, inputs):
        return {"IN": np.stack(inputs).astype(np.float32) * 2}

    def postprocess(self, outputs):
        return outputs["OUT"] + 1


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(HandleConfig[TaskHandle[Any, Any]]):
    model_type = "segmenter"
    threshold: float = 0.5


# --- adding --------------------------------------------------------------------------------------


def test_a_class_is_registered_and_comes_back_as_it_is(registry):
    assert registry.register_model(model_type="encoder", arch_type="twice")(Doubling) is Doubling
    assert registry.architecture("encoder", "twice") is Doubling
    assert RegisteredModel("encoder", "twice", Doubling) in registry.registered_models()
    assert [m.arch_type for m in registry.registered_models("encoder")] == ["encoder", "twice"]
    assert str(RegisteredModel("encoder", "twice", Doubling)) == (
        "encoder twice: tests.handles.test_registry.Doubling"
    )


def test_the_name_of_the_class_in_lower_case_is_the_default(registry):
    registry.register_model("encoder")(Doubling)
    assert registry.architecture("encoder", "doubling") is Doubling


def test_registries_share_nothing(registry):
    registry.register_model("encoder")(Doubling)
    other = ModelRegistry()
    assert [m.arch_type for m in other.registered_models("encoder")] == ["encoder"]
    assert "doubling" not in [m.arch_type for m in registered_models()]


def test_every_registry_has_the_handles_own(registry):
    names = {(m.model_type, m.arch_type) for m in registry.registered_models()}
    assert names == {
        ("classifier", "classifier"),
        ("encoder", "encoder"),
        *(("detector", name) for name in DetectorConfig.arch_types),
    }
    assert dict(registry.model_types()) == {
        "classifier": ClassifierConfig,
        "detector": DetectorConfig,
        "encoder": EncoderConfig,
    }
    assert repr(registry) == f"<ModelRegistry: 3 model types, {len(names)} architectures>"


def test_a_name_is_taken_once_unless_it_is_taken_over(registry):
    class Other(Doubling):
        pass

    registry.register_model("encoder", arch_type="twice")(Doubling)
    text = refused(lambda: registry.register_model("encoder", arch_type="twice")(Other))
    assert text == (
        "arch_type 'twice' of model_type 'encoder' is taken by "
        f"{__name__}.Doubling, and {__name__}.{Other.__qualname__} wants it, too; give it another "
        "name, or override=True to have it in the other's place"
    )
    assert registry.architecture("encoder", "twice") is Doubling
    registry.register_model("encoder", arch_type="twice", override=True)(Other)
    assert registry.architecture("encoder", "twice") is Other


def test_a_handles_own_architecture_can_be_taken_over(registry):
    text = refused(lambda: registry.register_model("detector", arch_type="ssd")(Doubling))
    assert "is taken by tritonasync.handles.registry.configs.DetectorConfig" in text
    registry.register_model("detector", arch_type="ssd", override=True)(Doubling)
    assert registry.architecture("detector", "ssd") is Doubling


class OnlyOther:
    def process(self, inputs): ...


class AsyncPre:
    async def preprocess(self, inputs): ...


class AsyncPost:
    async def postprocess(self, outputs):
        yield


class NoArgument:
    def preprocess(self): ...


class TooMany:
    def postprocess(self, outputs, context, more): ...


class NoMethod:
    preprocess = 3


class WantsTwo:
    def __init__(self, config, more): ...

    def preprocess(self, inputs): ...


class WantsByName:
    def __init__(self, *, device): ...

    def preprocess(self, inputs): ...


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (len, "expected a class with preprocess(inputs), postprocess(outputs) or both, got <built"),
        (OnlyOther, "has neither preprocess(inputs) nor postprocess(outputs)"),
        (AsyncPre, "AsyncPre.preprocess is async: it is run in a worker thread, where nothing can"),
        (AsyncPost, "AsyncPost.postprocess is async: it is run in a worker thread"),
        (NoArgument, "NoArgument.preprocess: expected preprocess(inputs)"),
        (
            TooMany,
            "TooMany.postprocess: expected postprocess(outputs), or postprocess(outputs, context)",
        ),
        (NoMethod, "NoMethod.preprocess: expected preprocess(inputs)"),
        (
            WantsTwo,
            "WantsTwo: expected __init__(self) or __init__(self, config), got WantsTwo(config, mo",
        ),
        (WantsByName, "WantsByName: expected __init__(self) or __init__(self, config), got "),
    ],
)
def test_what_is_no_architecture_is_refused_at_once(registry, wrong, text):
    assert text in refused(lambda: registry.register_model("encoder")(wrong))
    assert len(registry.registered_models("encoder")) == 1


def test_the_decorator_without_arguments_is_told_how(registry):
    text = refused(lambda: registry.register_model(Doubling))
    assert text.startswith(
        "model_type is a name, as in @register_model(model_type='detector'), not"
    )
    assert refused(lambda: registry.register_model("encoder", arch_type="")).startswith(
        "arch_type is a name, as in arch_type='my_detector', not str ''"
    )


def test_an_unknown_model_type_is_refused_with_those_there_are(registry):
    assert refused(lambda: registry.register_model("segmenter")) == (
        "there is no model_type 'segmenter'; registered: classifier, detector, encoder"
    )
    assert refused(lambda: registry.register_model("detektor")) == (
        "there is no model_type 'detektor' (did you mean 'detector'?); registered: classifier, "
        "detector, encoder"
    )
    assert refused(lambda: registry.registered_models("q")).startswith("there is no model_type 'q'")


# --- model types ---------------------------------------------------------------------------------


def test_a_new_model_type(registry):
    assert registry.register_model_type(SegmenterConfig) is SegmenterConfig
    registry.register_model("segmenter")(Doubling)
    assert registry.config_class("segmenter") is SegmenterConfig
    assert [m.arch_type for m in registry.registered_models("segmenter")] == ["doubling"]


def test_model_types_are_taken_once_as_well(registry):
    @dataclass(frozen=True, kw_only=True)
    class Other(SegmenterConfig):
        pass

    registry.register_model_type(SegmenterConfig)
    text = refused(lambda: registry.register_model_type(Other))
    assert text.startswith(f"model_type 'segmenter' is taken by {__name__}.SegmenterConfig, and ")
    assert "Other wants it, too" in text
    registry.register_model_type(Other, override=True)
    assert registry.config_class("segmenter") is Other


def test_a_model_type_that_is_taken_over_leaves_its_own_architectures(registry):
    @dataclass(frozen=True, kw_only=True)
    class Other(HandleConfig[TaskHandle[Any, Any]]):
        model_type = "detector"

    class Narrower(DetectorConfig):
        arch_types = ("yolov8",)

    registry.register_model("detector")(Doubling)
    registry.register_model_type(dataclass(frozen=True, kw_only=True)(Narrower), override=True)
    assert [m.arch_type for m in registry.registered_models("detector")] == ["doubling", "yolov8"]
    registry.register_model_type(Other, override=True)
    assert [m.arch_type for m in registry.registered_models("detector")] == ["doubling"]
    made(registry, Other(name="net"))


def test_what_is_no_config_is_no_model_type(registry):
    assert "expected a class made from HandleConfig[...], got type" in refused(
        lambda: registry.register_model_type(Doubling)
    )

    class Plain(HandleConfig[Any]):
        model_type = "plain"

    assert "Plain is no dataclass: write @dataclass(frozen=True, kw_only=True) above it" in refused(
        lambda: registry.register_model_type(Plain)
    )

    @dataclass(frozen=True, kw_only=True)
    class Nameless(HandleConfig[Any]):
        pass

    assert "Nameless has no model_type: write model_type = 'segmenter' in it" in refused(
        lambda: registry.register_model_type(Nameless)
    )


# --- making --------------------------------------------------------------------------------------


def test_an_unknown_architecture_lists_the_known(registry):
    registry.register_model("encoder")(Doubling)
    with pytest.raises(ConfigurationError) as caught:
        made(registry, EncoderConfig(name="net", arch_type="doublig"))
    assert str(caught.value) == (
        "model 'net': there is no arch_type 'doublig' for model_type 'encoder' (did you mean "
        "'doubling'?); registered: doubling, encoder"
    )
    assert caught.value.model == "net"


def test_a_config_of_a_type_that_is_not_registered(registry):
    assert refused(lambda: made(registry, SegmenterConfig(name="net"))) == (
        "model 'net': there is no model_type 'segmenter'; registered: classifier, detector, encoder"
    )


def test_the_only_architecture_need_not_be_named(registry):
    registry.register_model_type(SegmenterConfig)
    assert refused(lambda: made(registry, SegmenterConfig(name="net"))) == (
        "model 'net': there are no architectures for model_type 'segmenter'; register one"
    )
    registry.register_model("segmenter", arch_type="a")(Doubling)
    assert type(made(registry, SegmenterConfig(name="net"))[0]) is TaskHandle
    registry.register_model("segmenter", arch_type="b")(Doubling)
    assert refused(lambda: made(registry, SegmenterConfig(name="net"))) == (
        "model 'net': there are 2 architectures for model_type 'segmenter'; say which by "
        "arch_type: a, b"
    )


def test_only_configs_become_handles(registry):
    parts = HandleParts(FakeInvoker(), FakeInvoker(), FakeCatalog(spec([])), 1)
    assert refused(lambda: registry.create({"name": "a"}, parts)) == (
        "expected a config, as DetectorConfig(name=…), got dict {'name': 'a'}; "
        "DetectorConfig.from_dict(…) makes one of a mapping"
    )


def test_a_config_of_another_kind_is_told_apart():
    config = EncoderConfig(name="e")
    assert expected_config(EncoderConfig, config) is config
    assert expected_config(EncoderConfig, {"name": "e"}) == config
    assert refused(lambda: expected_config(DetectorConfig, config)) == (
        "expected a DetectorConfig or a mapping, got EncoderConfig; pool.create(config) takes any"
    )
    assert refused(lambda: expected_config(DetectorConfig, "e")) == (
        "expected a DetectorConfig or a mapping, got str 'e'"
    )


def test_a_handle_has_an_object_of_its_own_with_the_config_if_it_wants_it(registry):
    seen = []

    class WithConfig(Doubling):
        def __init__(self, config):
            seen.append(config)

    class WithNamed(Doubling):
        def __init__(self, extra=1, config=None):
            seen.append((extra, config))

    class WithDefault(Doubling):
        def __init__(self, extra=1):
            seen.append(extra)

    class WithAny(Doubling):
        def __init__(self, *args, **kwargs):
            seen.append((args, kwargs))

    @dataclass
    class Counted(Doubling):
        config: object

        def __post_init__(self):
            seen.append(self.config)

    for kind in (WithConfig, WithNamed, WithDefault, WithAny, Counted):
        registry.register_model("encoder")(kind)
    config = EncoderConfig(name="net", arch_type="withconfig")
    made(registry, config)
    made(registry, config)
    assert seen == [config, config]
    seen.clear()
    for name in ("withnamed", "withdefault", "withany", "counted"):
        made(registry, EncoderConfig(name="net", arch_type=name))
    counted = EncoderConfig(name="net", arch_type="counted")
    named = EncoderConfig(name="net", arch_type="withnamed")
    assert seen == [(1, named), 1, ((), {}), counted]


def test_what_an_architectures_init_raises_is_the_callers(registry):
    class Broken(Doubling):
        def __init__(self):
            raise KeyError("weights")

    registry.register_model("encoder")(Broken)
    with pytest.raises(KeyError, match="weights"):
        made(registry, EncoderConfig(name="net", arch_type="broken"))


def test_a_subclass_decides_what_is_found(registry):
    class Lenient(ModelRegistry):
        def architecture(self, model_type, arch_type):
            return super().architecture(model_type, arch_type.removesuffix("-v2"))

    lenient = Lenient()
    lenient.register_model("encoder")(Doubling)
    made(lenient, EncoderConfig(name="net", arch_type="doubling-v2"))


def test_a_registry_may_stand_on_another(registry):
    registry.register_model_type(SegmenterConfig)
    registry.register_model("segmenter")(Doubling)

    class Team(ModelRegistry):
        def config_class(self, model_type):
            return registry.config_class(model_type)

        def architecture(self, model_type, arch_type):
            return registry.architecture(model_type, arch_type)

        def registered_models(self, model_type=None):
            return registry.registered_models(model_type)

    made(Team(), SegmenterConfig(name="net"))
    config = Team().config_from_dict({"model_type": "segmenter", "name": "net"})
    assert config == SegmenterConfig(name="net")


# --- calls ---------------------------------------------------------------------------------------

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


async def test_an_encoder_of_ones_own(registry):
    registry.register_model("encoder")(Doubling)
    encoder, invoker = made(registry, EncoderConfig(name="net", arch_type="doubling"))
    np.testing.assert_array_equal(await encoder(list(ROWS)), ROWS * 2 + 1)
    np.testing.assert_array_equal(await encoder.one(ROWS[1]), ROWS[1] * 2 + 1)
    assert [call.rows for call in invoker.calls] == [3, 1]


async def test_a_classifier_of_ones_own_has_labels_and_choices(registry):
    @registry.register_model("classifier")
    class Reverse:
        def preprocess(self, inputs):
            return np.stack(inputs)[:, ::-1]

        def postprocess(self, outputs):
            return outputs["OUT"].tolist()

    config = ClassifierConfig(name="net", arch_type="reverse", labels=["a", "b", "c", "d"], top_k=1)
    classifier, _ = made(registry, config)
    answer = await classifier.one(np.array([9, 1, 1, 1], np.float32))
    assert answer.label == "d"


async def test_a_task_of_ones_own(registry):
    registry.register_model_type(SegmenterConfig)

    @registry.register_model("segmenter")
    class Masks:
        def __init__(self, config: SegmenterConfig):
            self.threshold = config.threshold

        def preprocess(self, inputs):
            return Preprocessed({"IN": np.stack(inputs)}, [row.shape for row in inputs])

        def postprocess(self, outputs, context):
            rows = outputs["OUT"] > self.threshold
            return [(bool(row.any()), shape) for row, shape in zip(rows, context, strict=True)]

    handle, _ = made(registry, SegmenterConfig(name="net", threshold=7))
    assert await handle(ROWS) == [(False, (4,)), (False, (4,)), (True, (4,))]
    assert await handle(row for row in ROWS) == await handle(list(ROWS))
    assert await handle.one(ROWS[2]) == (True, (4,))


async def test_results_are_counted_by_items_not_by_rows(registry):
    registry.register_model_type(SegmenterConfig)

    @registry.register_model("segmenter")
    class Tiles:
        def preprocess(self, inputs):
            return np.repeat(np.stack(inputs), 2, axis=0)

        def postprocess(self, outputs):
            return [pair.sum() for pair in outputs["OUT"].reshape(-1, 2, 4)]

    handle, invoker = made(registry, SegmenterConfig(name="net"))
    assert await handle(ROWS) == [12, 44, 76]
    assert invoker.calls[0].rows == 6
    assert await handle.one(ROWS[0]) == 12


async def test_postprocess_alone_reads_what_the_model_made_of_the_input(registry):
    registry.register_model_type(SegmenterConfig)

    @registry.register_model("segmenter")
    class Sums:
        def postprocess(self, outputs):
            return outputs["OUT"].sum(axis=1)

    handle, _ = made(registry, SegmenterConfig(name="net"))
    assert await handle(ROWS) == [6, 22, 38]
    assert await handle({"IN": ROWS}) == [6, 22, 38]
    assert await handle.one(ROWS[1]) == 22


async def test_preprocess_alone_leaves_the_results_to_the_handle(registry):
    class Halving:
        def preprocess(self, inputs):
            return [row / 2 for row in inputs]

    class Named:
        def preprocess(self, inputs):
            return {"IN": np.stack(inputs) / 2}

    class Wrapped:
        def preprocess(self, inputs):
            return Preprocessed({"IN": np.stack(inputs) / 2}, None)

    for kind in (Halving, Named, Wrapped):
        registry.register_model("encoder")(kind)
        config = EncoderConfig(name="net", arch_type=kind.__name__.lower(), normalize=True)
        encoder, _ = made(registry, config)
        vectors = await encoder(ROWS)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(vectors[0], ROWS[0] / np.sqrt(14), rtol=1e-6)
        assert (await encoder.one(ROWS[0])).shape == (4,)

    registry.register_model_type(SegmenterConfig)
    registry.register_model("segmenter")(Named)
    handle, _ = made(registry, SegmenterConfig(name="net"))
    first, *others = await handle(ROWS)
    assert len(others) == 2
    np.testing.assert_array_equal(first["OUT"], ROWS[0] / 2)


async def test_a_detectors_postprocess_alone_is_a_decoder(registry):
    """Boxes in the model's pixels come back in the image's."""

    @registry.register_model("detector")
    class OneBox:
        def postprocess(self, outputs):
            one = Candidates(
                np.array([[0, 2, 8, 6]], np.float32), np.array([0.9], np.float32), np.array([0])
            )
            return [one for _ in outputs["OUT"]]

    config = DetectorConfig(name="net", arch_type="onebox", labels=["cat"])
    detector, _ = made(registry, config, inputs=IMAGES)
    found = await detector.one(np.zeros((16, 32), np.uint8))  # 8 x 8: scaled by 4, 2 rows beside it
    np.testing.assert_allclose(found.boxes, [[0, 0, 32, 16]])
    assert found.labels == ("cat",)


def test_what_the_outputs_mean_is_said_once(registry):
    text = refused(lambda: made(registry, DetectorConfig(name="d", arch_type="ssd", decode="detr")))
    assert text == (
        "detector 'd': arch_type='ssd' says what the outputs mean, and so does decode='detr'; give "
        "one of the two"
    )
    made(registry, DetectorConfig(name="d", arch_type="ssd", decode="ssd"))
    made(registry, DetectorConfig(name="d", arch_type="auto", decode="ssd"))
    made(registry, DetectorConfig(name="d", decode=len))
    registry.register_model("detector")(Doubling)
    assert "so does decode='ssd'" in refused(
        lambda: made(registry, DetectorConfig(name="d", arch_type="doubling", decode="ssd"))
    )


def test_a_named_architecture_is_the_detectors_decoder(registry):
    detector, _ = made(registry, DetectorConfig(name="d", arch_type="ssd"))
    given, _ = made(registry, DetectorConfig(name="d", decode="ssd"))
    auto, _ = made(registry, DetectorConfig(name="d"))
    assert detector._reading._choice == given._reading._choice == "ssd"
    assert auto._reading._choice == "auto"


def test_a_tokenizer_and_an_architecture_exclude_each_other(registry):
    registry.register_model("encoder")(Doubling)
    config = EncoderConfig(name="e", arch_type="doubling", tokenizer="x")
    assert refused(lambda: made(registry, config)) == (
        "encoder 'e': architecture 'doubling' makes the model's inputs itself, so that tokenizer "
        "has no use; leave one of the two out"
    )


# --- calls that go wrong -------------------------------------------------------------------------


def task_of(registry, kind, **kwargs):
    registry.register_model_type(SegmenterConfig)
    registry.register_model("segmenter", arch_type="mine")(kind)
    return made(registry, SegmenterConfig(name="net"), **kwargs)


@pytest.mark.parametrize(
    ("results", "got"),
    [
        ([1, 2], "2"),
        ([1, 2, 3, 4], "4"),
        (None, "NoneType"),
        ("abc", "str"),
        ({1: 1, 2: 2, 3: 3}, "dict"),
        (5, "int"),
    ],
)
async def test_there_is_one_result_for_each_item(registry, results, got):
    class Wrong(Doubling):
        def postprocess(self, outputs):
            return results

    handle, _ = task_of(registry, Wrong)
    with pytest.raises(ConfigurationError) as caught:
        await handle(ROWS)
    assert str(caught.value) == (
        "model 'net': expected the postprocess of architecture 'mine' to return 3 result(s), one "
        f"for each item, got {got}"
    )


@pytest.mark.parametrize("batch", ["text", b"bytes", {"IN": 1}, 3, None])
async def test_what_is_no_batch_is_refused(registry, batch):
    handle, invoker = task_of(registry, Doubling)
    with pytest.raises(InvalidInputError) as caught:
        await handle(batch)
    assert str(caught.value) == (
        f"architecture 'mine': expected a batch of items, got {type(batch).__name__}; use "
        "handle.one(item) for a single one"
    )
    with pytest.raises(InvalidInputError, match="expected a batch of items, got an empty one"):
        await handle([])
    assert not invoker.calls


@pytest.mark.parametrize("step", ["preprocess", "postprocess"])
async def test_what_an_architecture_raises_goes_to_the_caller_with_a_note(registry, step):
    error = ZeroDivisionError("mine")

    def fail(self, given):
        raise error

    handle, _ = task_of(registry, type("Failing", (Doubling,), {step: fail}))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            await handle(ROWS)
        assert caught.value is error
    assert error.__notes__ == [f"in the {step} of architecture 'mine'"]


async def test_an_input_error_of_preprocess_asks_for_the_signature_anew_once(registry):
    class Picky(Doubling):
        def preprocess(self, inputs):
            raise InvalidInputError("no such thing")

    handle, invoker = task_of(registry, Picky)
    with pytest.raises(InvalidInputError, match="^no such thing"):
        await handle(ROWS)
    assert handle._catalog.asked == 2
    assert not invoker.calls


async def test_a_stop_iteration_ends_no_call_in_silence(registry):
    class Ends(Doubling):
        def preprocess(self, inputs):
            return next(iter(()))

    handle, _ = task_of(registry, Ends)
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(handle(ROWS), 5)


class TwoInputs(Doubling):
    def preprocess(self, inputs):
        return np.stack(inputs)


async def test_several_inputs_must_be_named(registry):
    handle, _ = task_of(registry, TwoInputs, inputs=[*PLAIN, TensorSpec("B", "FP32", (-1, 1))])
    with pytest.raises(ConfigurationError) as caught:
        await handle(ROWS)
    assert str(caught.value) == (
        "model 'net': expected the preprocess of architecture 'mine' to return arrays by the names "
        "of the model's inputs ('IN', 'B'), got ndarray"
    )


async def test_optional_inputs_may_be_left_out(registry):
    optional = TensorSpec("B", "FP32", (-1, 1), optional=True)
    handle, invoker = task_of(registry, TwoInputs, inputs=[*PLAIN, optional])
    assert len(await handle(ROWS)) == 3
    assert [each.name for each in invoker.calls[0].inputs] == ["IN"]


async def test_inputs_that_do_not_fit_the_model_are_refused_by_name(registry):
    class Wide(Doubling):
        def preprocess(self, inputs):
            return {"IN": np.zeros((len(inputs), 5), np.float32)}

    handle, _ = task_of(registry, Wide)
    with pytest.raises(InvalidInputError, match=r"model 'net', input 'IN': expected shape"):
        await handle(ROWS)


async def test_a_context_goes_to_who_takes_it(registry):
    class Ignores(Doubling):
        def preprocess(self, inputs):
            return Preprocessed({"IN": np.stack(inputs)}, 1)

    class Misses(Doubling):
        def postprocess(self, outputs, context):
            return outputs["OUT"]

    class May(Doubling):
        def postprocess(self, outputs, context="none"):
            return [context] * len(outputs["OUT"])

    handle, _ = task_of(registry, Ignores)
    with pytest.raises(ConfigurationError) as caught:
        await handle(ROWS)
    assert str(caught.value) == (
        "model 'net', architecture 'mine': preprocess gives a context, and postprocess(outputs) "
        "takes none; write postprocess(outputs, context), or return the inputs alone"
    )
    registry = ModelRegistry()
    handle, _ = task_of(registry, Misses)
    with pytest.raises(ConfigurationError) as caught:
        await handle(ROWS)
    assert str(caught.value) == (
        "model 'net', architecture 'mine': postprocess(outputs, context) takes a context, and "
        "preprocess gives none; return Preprocessed(inputs, context)"
    )
    handle, _ = task_of(ModelRegistry(), May)
    assert await handle(ROWS) == ["none"] * 3


async def test_a_context_goes_with_an_array_alone_as_well(registry):
    class Alone:
        def preprocess(self, inputs):
            return Preprocessed(np.stack(inputs), len(inputs))

        def postprocess(self, outputs, context):
            return [context] * len(outputs["OUT"])

    handle, _ = task_of(registry, Alone)
    assert await handle(ROWS) == [3, 3, 3]


async def test_results_may_come_from_a_generator_whose_errors_are_its_own(registry):
    class Yields:
        def postprocess(self, outputs):
            for row in outputs["OUT"]:
                yield row.sum()
                if row.sum() > 100:
                    raise TypeError("too much")

    handle, _ = task_of(registry, Yields)
    assert await handle(np.ones((3, 4), np.float32)) == [4, 4, 4]
    with pytest.raises(TypeError, match="too much") as caught:
        await handle(np.full((3, 4), 100, np.float32))
    assert caught.value.__notes__ == ["in the postprocess of architecture 'mine'"]


async def test_the_event_loop_is_free_while_an_architecture_works(registry):
    loop_thread = threading.get_ident()
    threads = []

    class Watching(Doubling):
        def preprocess(self, inputs):
            threads.append(threading.get_ident())
            return super().preprocess(inputs)

        def postprocess(self, outputs):
            threads.append(threading.get_ident())
            return super().postprocess(outputs)

    handle, _ = task_of(registry, Watching)
    await handle(ROWS)
    assert len(threads) == 2
    assert loop_thread not in threads


# --- handles of one's own ------------------------------------------------------------------------


class Counter:
    """No handle of this package at all."""

    def __init__(self, name, invoker):
        self.name = name
        self.invoker = invoker


@dataclass(frozen=True, kw_only=True)
class CounterConfig(HandleConfig[Counter]):
    model_type = "counter"
    arch_types = ("counter", "other")

    def build(self, parts):
        return Counter(f"{self.name} {self.arch_type}", parts.invoker)


class Segmenter(TaskHandle[Any, Any]):
    async def largest(self, batch):
        return max(await self(batch))


@dataclass(frozen=True, kw_only=True)
class OwnSegmenterConfig(HandleConfig[Segmenter]):
    model_type = "own"


@dataclass(frozen=True, kw_only=True)
class LostConfig(HandleConfig[Counter]):
    model_type = "lost"
    arch_types = ("lost",)


async def test_a_config_that_builds_its_handle(registry):
    registry.register_model_type(CounterConfig)
    counter, invoker = made(registry, CounterConfig(name="n", arch_type="other"))
    assert (counter.name, counter.invoker) == ("n other", invoker)
    assert [m.arch_type for m in registry.registered_models("counter")] == ["counter", "other"]


async def test_a_task_handle_with_methods_of_its_own(registry):
    class Sums:
        def postprocess(self, outputs):
            return outputs["OUT"].sum(axis=1)

    registry.register_model_type(OwnSegmenterConfig)
    registry.register_model("own")(Sums)
    handle, _ = made(registry, OwnSegmenterConfig(name="n", timeout_s=3))
    assert type(handle) is Segmenter
    assert handle._timeout_s == 3
    assert await handle.largest(ROWS) == 38


def test_a_config_that_builds_nothing_is_told_so(registry):
    registry.register_model_type(LostConfig)
    assert "LostConfig makes no TaskHandle: give it a build(parts) that makes its handle" in (
        refused(lambda: made(registry, LostConfig(name="n")))
    )


def test_a_deeper_config_makes_the_same_handle(registry):
    @dataclass(frozen=True, kw_only=True)
    class Deeper(OwnSegmenterConfig):
        model_type = "deeper"

    registry.register_model_type(Deeper)
    registry.register_model("deeper")(Doubling)
    assert type(made(registry, Deeper(name="n"))[0]) is Segmenter


# --- threads -------------------------------------------------------------------------------------


def test_threads_may_register_and_look_up_at_once(registry):
    """Each name goes to exactly one of the threads that want it."""
    start, won, lost = threading.Barrier(8), [], []

    def register(number):
        start.wait()
        for index in range(50):
            try:
                registry.register_model("encoder", arch_type=f"a{index}")(Doubling)
            except ConfigurationError:
                lost.append(index)
            else:
                won.append(index)
            registry.registered_models()

    threads = [threading.Thread(target=register, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(50))
    assert len(lost) == 7 * 50


# --- the default registry ------------------------------------------------------------------------


def test_the_functions_are_the_default_registrys(tmp_path, monkeypatch):
    monkeypatch.setattr("tritonasync.handles.registry.registry.default_registry", ModelRegistry())
    register_model_type(SegmenterConfig)
    register_model(model_type="segmenter", arch_type="twice")(Doubling)
    assert registered_models("segmenter") == (RegisteredModel("segmenter", "twice", Doubling),)
    with pytest.raises(ConfigurationError):
        register_model(model_type="segmenter", arch_type="twice")(Doubling)
    register_model(model_type="segmenter", arch_type="twice", override=True)(Doubling)
    register_model_type(SegmenterConfig, override=True)
    (tmp_path / "a.toml").write_text("[a.x]\nmodel_type='segmenter'\nthreshold=1")
    configs = load_configs(tmp_path / "a.toml", table="a")
    assert isinstance(configs, Mapping)
    assert configs == {"x": SegmenterConfig(name="x", threshold=1)}
    assert "segmenter" not in default_registry._types
