"""Texts out of models that generate them: which tensors, which form, which pieces."""

from __future__ import annotations

import numpy as np
import pytest

from tests.handles.fakes import END, FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import (
    ConfigurationError,
    InvalidInputError,
    ModelFailedError,
    ProtocolError,
)
from tritonasync.core.values import Reply, TensorSpec
from tritonasync.handles.generator import Generator
from tritonasync.handles.roles import roles_of
from tritonasync.handles.signature import signature_of

pytestmark = pytest.mark.anyio


def model(inputs, outputs=("TEXT",), *, max_batch_size=0, decoupled=True):
    """A signature; an input is (name, datatype, optional), an output of one text."""
    axes = (-1, 1) if max_batch_size else (1,)
    return spec(
        [TensorSpec(name, datatype, axes, optional) for name, datatype, optional in inputs],
        [(name, "BYTES", (-1,)) if isinstance(name, str) else name for name in outputs],
        max_batch_size=max_batch_size,
        decoupled=decoupled,
    )


PLAIN = model([("PROMPT", "BYTES", False), ("SEED", "INT32", True), ("HEAT", "FP32", True)])
VLLM = model(
    [
        ("text_input", "BYTES", False),
        ("image", "BYTES", True),
        ("stream", "BOOL", True),
        ("sampling_parameters", "BYTES", True),
        ("exclude_input_in_output", "BOOL", True),
    ],
    ["text_output", "finish_reason", ("cumulative_logprob", "FP32", (-1,)), "logprobs"],
)
TENSORRT_LLM = spec(
    [
        TensorSpec("text_input", "BYTES", (-1, 1)),
        TensorSpec("decoder_text_input", "BYTES", (-1, 1), optional=True),
        TensorSpec("max_tokens", "INT32", (-1, 1)),
        TensorSpec("stop_words", "BYTES", (-1, -1), optional=True),
        TensorSpec("stream", "BOOL", (-1, 1), optional=True),
    ],
    [("text_output", "BYTES", (-1, -1)), ("cum_log_probs", "FP32", (-1, -1))],
    decoupled=True,
)


def text(value, shape=(1,), name="TEXT"):
    return {name: np.array([value], object).reshape(shape)}


def made(served, invoker, **options):
    return Generator("net", "", invoker, FakeCatalog(served), invoker, timeout_s=30.0, **options)


async def sent(served, *arguments, options=None, **inputs):
    """What is sent for a prompt, by input name."""
    invoker = FakeInvoker(script=[END])
    generator = made(served, invoker, **(options or {}))
    await anext(generator(*arguments, **inputs), None)
    return invoker.streams[0].call


async def pieces(*responses, served=PLAIN, **options):
    invoker = FakeInvoker(script=[*responses, END])
    return [piece async for piece in made(served, invoker, **options)("go on")]


# --- which tensors ---


@pytest.mark.parametrize(
    ("served", "prompt", "output", "switches"),
    [
        (PLAIN, "PROMPT", "TEXT", ()),
        (VLLM, "text_input", "text_output", ("stream",)),
        (TENSORRT_LLM, "text_input", "text_output", ("stream",)),
        (
            model([("QUERY", "BYTES", True), ("USER", "BYTES", False)], ["Completion", "WHY"]),
            "QUERY",
            "Completion",
            (),
        ),
        (model([("Q", "BYTES", False), ("STOP", "BYTES", True)]), "Q", "TEXT", ()),
        (model([("Q", "BYTES", True), ("N", "INT32", False)]), "Q", "TEXT", ()),
        (model([("Q", "BYTES", False), ("STREAM", "BOOL", False)]), "Q", "TEXT", ("STREAM",)),
        (model([("Q", "BYTES", False), ("streaming", "BOOL", True)]), "Q", "TEXT", ("streaming",)),
        (model([("Q", "BYTES", False), ("stream", "INT32", True)]), "Q", "TEXT", ()),
        (
            model([("Q", "BYTES", False), ("stream", "BOOL", True)], decoupled=False),
            "Q",
            "TEXT",
            (),
        ),
    ],
)
def test_tensors_are_found_by_what_they_are_and_by_usual_names(served, prompt, output, switches):
    roles = roles_of(signature_of(served, "safe"), None, None)
    assert (roles.prompt, roles.text, roles.switches) == (prompt, output, switches)


async def test_tensors_are_found_by_the_names_given():
    options = {"prompt_input": "image", "output_name": "logprobs"}
    call = await sent(VLLM, "x", {"text_input": "y"}, options=options)
    assert tensor(call, "image").tolist() == ["x"]
    assert call.outputs == ("logprobs",)


@pytest.mark.parametrize(
    ("served", "options", "says"),
    [
        (
            model([("A", "BYTES", False), ("B", "BYTES", False)]),
            {},
            r"has 2 BYTES inputs; say which one by prompt_input=…: 'A' BYTES \[1\]; 'B' BYTES",
        ),
        (
            model([("prompt", "BYTES", True), ("text", "BYTES", True)]),
            {},
            "has 2 BYTES inputs; say which one by prompt_input=",
        ),
        (
            model([("A", "BYTES", False)], ["Y", "Z"]),
            {},
            r"has 2 BYTES outputs; say which one by output_name=…: 'Y' BYTES \[any\]; 'Z'",
        ),
        (model([("A", "INT32", False)]), {}, "has no input of BYTES"),
        (model([("A", "BYTES", False)], [("Y", "FP32", (1,))]), {}, "has no output of BYTES"),
        (PLAIN, {"prompt_input": "SEED"}, "has no BYTES input 'SEED'; it has 'PROMPT' BYTES"),
        (PLAIN, {"output_name": "text"}, "has no BYTES output 'text'; it has 'TEXT' BYTES"),
    ],
)
async def test_what_is_not_clear_is_an_error_that_lists_the_candidates(served, options, says):
    invoker = FakeInvoker()
    with pytest.raises(ConfigurationError, match=f"model 'net' {says}"):
        await anext(made(served, invoker, **options)("x"))
    assert invoker.streams == []


# --- inputs ---


async def test_single_values_take_the_shape_of_their_inputs():
    call = await sent(PLAIN, "grüße", SEED=3, HEAT=np.float32(0.5))
    assert [t.shape for t in call.inputs] == [(1,)] * 3
    assert tensor(call, "PROMPT").tolist() == ["grüße"]
    assert tensor(call, "SEED").dtype == np.int32
    assert call.rows == 0


async def test_the_batch_axis_is_added():
    call = await sent(TENSORRT_LLM, b"hi", {"max_tokens": 8}, stop_words=["a", "b"])
    shapes = {t.name: t.shape for t in call.inputs}
    assert shapes == {
        "text_input": (1, 1),
        "max_tokens": (1, 1),
        "stop_words": (1, 2),
        "stream": (1, 1),
    }
    assert tensor(call, "stream").tolist() == [[True]]
    assert call.rows == 1


async def test_the_switch_is_the_user_s_if_it_is_given():
    call = await sent(VLLM, "x", stream=False)
    assert tensor(call, "stream").tolist() == [False]


async def test_inputs_of_every_call_may_be_overridden():
    options = {"inputs": {"SEED": 1, "HEAT": 0.5}}
    call = await sent(PLAIN, "x", SEED=2, options=options)
    assert (tensor(call, "SEED"), tensor(call, "HEAT")) == ([2], [0.5])


@pytest.mark.parametrize(
    ("arguments", "inputs", "says"),
    [
        ((["a", "b"],), {}, "one prompt a call, a str or bytes, not list"),
        ((None,), {}, "one prompt a call"),
        (("x",), {"SEEDS": 3}, "unknown input 'SEEDS' .did you mean 'SEED'"),
        (("x",), {"PROMPT": "y"}, "given twice, as the prompt and among the inputs"),
        (("x", {"SEED": 1}), {"SEED": 2}, "given twice, in the mapping and by keyword"),
        (("x",), {"SEED": 0.5}, "expected INT32"),
        (("x",), {"SEED": [1, 2]}, r"expected shape \[1\], got \[2\]"),
    ],
)
async def test_inputs_that_make_no_sense_are_refused(arguments, inputs, says):
    with pytest.raises(InvalidInputError, match=says):
        await sent(PLAIN, *arguments, **inputs)


async def test_a_single_value_does_not_fill_an_input_of_several():
    served = spec(
        [("PROMPT", "BYTES", (1,)), ("PAIR", "INT32", (2,))],
        [("TEXT", "BYTES", (1,))],
        max_batch_size=0,
    )
    with pytest.raises(InvalidInputError, match=r"expected shape \[2\], got \[\]"):
        await sent(served, "x", PAIR=1)


async def test_options_go_with_the_call():
    call = await sent(
        PLAIN, "x", parameters={"p": 1}, request_id="r", priority=3, timeout_s=5, idle_timeout_s=2
    )
    assert dict(call.parameters) == {"p": 1, "priority": 3}
    assert (call.request_id, call.deadline.timeout_s, call.idle_s) == ("r", 5, 2)


@pytest.mark.parametrize(
    "options", [{"errors": "replaced"}, {"inputs": 3}, {"timeout_s": None, "name": ""}]
)
async def test_options_that_make_no_sense_are_refused_at_once(options):
    invoker = FakeInvoker()
    given = {"name": "net", "timeout_s": 30.0, **options}
    with pytest.raises((ConfigurationError, InvalidInputError)):
        Generator(given.pop("name"), "", invoker, FakeCatalog(PLAIN), invoker, **given)


# --- pieces ---


async def test_pieces_come_one_a_response_and_empty_ones_do_not():
    cat = "猫".encode()
    got = await pieces(
        text(b"a"),
        text(b""),
        {},
        text(cat[:1]),
        text(cat[1:] + b"b"),
        {"TEXT": np.empty(0, object)},
    )
    assert got == ["a", "猫b"]


@pytest.mark.parametrize("shape", [(1,), (1, 1), ()])
async def test_a_text_may_have_any_axes_of_one(shape):
    assert await pieces(text(b"a", shape)) == ["a"]


async def test_what_is_held_back_comes_at_the_end():
    assert await pieces(text(b"a\xe7")) == ["a", "\ufffd"]
    assert await pieces(text("a\ufffd".encode()), cumulative=True) == ["a", "\ufffd"]


async def test_texts_so_far_give_what_is_new():
    got = await pieces(text(b"a"), text(b"ab"), text(b"ab"), text(b"abc"), cumulative=True)
    assert got == ["a", "b", "c"]


@pytest.mark.parametrize(
    "response",
    [
        {"TEXT": np.array([b"a", b"b"], object)},
        {"OTHER": np.array([b"a"], object)},
        {"TEXT": np.array([1], np.int32)},
    ],
)
async def test_a_response_without_one_text_is_an_error(response):
    with pytest.raises(ProtocolError, match="model 'net': expected one text in output 'TEXT', got"):
        await pieces(response)


async def test_wrong_bytes_are_an_error_where_that_is_strict():
    with pytest.raises(ProtocolError, match="no UTF-8"):
        await pieces(text(b"\xff"), errors="strict")


async def test_an_error_comes_after_the_pieces_before_it():
    error = ModelFailedError("no", code="INTERNAL", details="no")
    invoker, got = FakeInvoker(script=[text(b"a"), text(b"\xe7"), error]), []

    async def read():
        async for piece in made(PLAIN, invoker)("x"):
            got.append(piece)

    with pytest.raises(ModelFailedError):
        await read()
    assert got == ["a"]


async def test_two_calls_of_a_handle_do_not_mix_their_texts():
    invoker = FakeInvoker(script=[text(b"\xe7\x8c"), text(b"\xab"), END])
    generator = made(PLAIN, invoker)
    assert [await generator.text("x"), await generator.text("y")] == ["猫", "猫"]


async def test_the_whole_text_is_had_with_the_same_arguments():
    invoker = FakeInvoker(script=[text(b"a"), text(b"b"), END])
    got = await made(PLAIN, invoker).text(
        "x", {"SEED": 1}, HEAT=0.5, timeout_s=5, idle_timeout_s=2, request_id="r", priority=1,
        queue_timeout_us=3, parameters={"p": 1},
    )  # fmt: skip
    assert got == "ab"
    call = invoker.streams[0].call
    assert [t.name for t in call.inputs] == ["PROMPT", "SEED", "HEAT"]
    assert (call.deadline.timeout_s, call.idle_s, call.request_id) == (5, 2, "r")
    assert dict(call.parameters) == {"p": 1, "priority": 1, "timeout": 3}


async def test_a_text_that_breaks_off_lets_go():
    invoker = FakeInvoker(script=[text(b"\xff"), text(b"a"), END])
    with pytest.raises(ProtocolError):
        await made(PLAIN, invoker, errors="strict").text("x")
    assert invoker.streams[0].left == 1


async def test_a_reply_s_model_is_named():
    reply = Reply("other", "1", {"NONE": np.zeros(1)})
    with pytest.raises(ProtocolError, match="model 'other'"):
        await pieces(reply)
