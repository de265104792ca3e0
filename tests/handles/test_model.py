"""The generic handle: options, one item, outputs."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import InvalidInputError, ProtocolError
from tritonasync.core.values import Reply
from tritonasync.handles import signature
from tritonasync.handles.model import ModelHandle, Outputs

pytestmark = pytest.mark.anyio

PAIR = spec(
    [("A", "FP32", (-1, 4)), ("outputs", "INT32", (-1, 1))],
    [("SUM", "FP32", (-1, 4)), ("N", "BYTES", (-1, 1))],
)
A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.array([[10], [20]], np.int32)


def add(call):
    total = tensor(call, "A") + tensor(call, "outputs").astype(np.float32)
    names = np.array([[b"row"]] * len(total), object)
    return Reply("net", "7", {"SUM": total, "N": names}, call.request_id, (("took", 3),))


@pytest.fixture
def invoker():
    return FakeInvoker(add)


@pytest.fixture
def model(invoker):
    return ModelHandle("net", "", invoker, FakeCatalog(PAIR), timeout_s=30.0)


@pytest.fixture
def unbatched():
    served = spec([("X", "FP32", (-1, 4))], max_batch_size=0)
    invoker = FakeInvoker(lambda call: {"OUT": tensor(call, "X")})
    return ModelHandle("net", "", invoker, FakeCatalog(served), timeout_s=30.0)


async def test_a_mapping_and_keywords_are_the_same_call(model, invoker):
    await model({"A": A, "outputs": B})
    await model({"outputs": B}, A=A)
    first, second = invoker.calls
    assert [t.name for t in first.inputs] == [t.name for t in second.inputs] == ["A", "outputs"]
    assert first.rows == second.rows == 2


async def test_an_input_named_like_an_option_goes_into_the_mapping(model):
    outputs = await model({"outputs": B, "A": A}, outputs=["SUM"])
    np.testing.assert_array_equal(outputs["SUM"], A + B)


async def test_an_input_given_twice_is_refused(model, invoker):
    with pytest.raises(InvalidInputError, match=r"model 'net': given twice.*'A'"):
        await model({"A": A, "outputs": B}, A=A)
    assert invoker.calls == []


async def test_an_array_in_place_of_a_mapping_is_refused(model):
    with pytest.raises(
        InvalidInputError, match=r"model 'net': expected a mapping of input names .* got ndarray"
    ):
        await model(A)


async def test_options_travel_with_the_call(model, invoker):
    outputs = await model(
        {"A": A, "outputs": B},
        outputs=["SUM", "N"],
        parameters={"triton_enable_empty_final_response": True, "beam": 4},
        request_id="r1",
        priority=1,
        queue_timeout_us=500,
    )
    (call,) = invoker.calls
    assert call.outputs == ("SUM", "N")
    assert call.request_id == "r1"
    assert dict(call.parameters) == {
        "triton_enable_empty_final_response": True,
        "beam": 4,
        "priority": 1,
        "timeout": 500,
    }
    assert outputs.request_id == "r1"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"priority": -1}, "priority is a whole number from 0 on, not -1"),
        ({"queue_timeout_us": -5}, "queue_timeout_us is a whole number from 0 on, not -5"),
        (
            {"queue_timeout_us": 5, "parameters": {"timeout": 9}},
            r"queue_timeout_us=5 and parameters\['timeout'\] are the same thing",
        ),
    ],
)
async def test_options_that_make_no_sense_are_refused(model, invoker, options, reason):
    with pytest.raises(InvalidInputError, match=f"model 'net': {reason}"):
        await model({"A": A, "outputs": B}, **options)
    assert invoker.calls == []


async def test_unknown_outputs_are_refused_before_anything_is_sent(model, invoker):
    with pytest.raises(InvalidInputError, match=r"unknown output 'SUN' \(did you mean 'SUM'"):
        await model({"A": A, "outputs": B}, outputs=["SUN"])
    assert invoker.calls == []


async def test_casting_is_the_users_choice(invoker):
    wide = {"A": A.astype(np.float64), "outputs": B}
    strict = ModelHandle("net", "", invoker, FakeCatalog(PAIR), timeout_s=30.0)
    with pytest.raises(InvalidInputError, match='casting="same_kind"'):
        await strict(wide)
    lenient = ModelHandle(
        "net", "", invoker, FakeCatalog(PAIR), timeout_s=30.0, casting="same_kind"
    )
    np.testing.assert_array_equal((await lenient(wide))["SUM"], A + B)


# --- one ---


async def test_one_takes_and_gives_arrays_without_the_batch_axis(model, invoker):
    outputs = await model.one({"A": A[0], "outputs": B[0]}, request_id="r2", outputs=["SUM", "N"])
    np.testing.assert_array_equal(outputs["SUM"], A[0] + B[0])
    assert outputs["N"].tolist() == [b"row"]
    assert (outputs.model, outputs.version, outputs.request_id) == ("net", "7", "r2")
    assert dict(outputs.parameters) == {"took": 3}
    assert invoker.calls[0].rows == 1
    assert invoker.calls[0].outputs == ("SUM", "N")


async def test_one_gives_arrays_even_where_a_row_is_a_single_value():
    served = spec([("X", "FP32", (-1, 1))])
    invoker = FakeInvoker(lambda call: {"OUT": tensor(call, "X")[:, 0]})
    model = ModelHandle("net", "", invoker, FakeCatalog(served), timeout_s=30.0)
    outputs = await model.one(X=[2.5])
    assert isinstance(outputs["OUT"], np.ndarray)
    assert outputs["OUT"].shape == ()


async def test_one_of_a_model_without_a_batch_axis_passes_arrays_unchanged(unbatched):
    array = np.zeros((3, 4), np.float32)
    outputs = await unbatched.one(X=array)
    assert outputs["OUT"].shape == (3, 4)


@pytest.mark.parametrize("shape", [(2, 4), ()])
async def test_an_answer_of_other_than_one_row_for_one_item_is_an_error(shape):
    served = spec([("X", "FP32", (-1, 4))])
    invoker = FakeInvoker(lambda call: {"OUT": np.zeros(shape)})
    model = ModelHandle("net", "", invoker, FakeCatalog(served), timeout_s=30.0)
    with pytest.raises(
        ProtocolError, match=r"model 'net', output 'OUT': expected one row .* got \["
    ):
        await model.one(X=A[0])


# --- long work ---


@pytest.mark.parametrize(("rows", "elsewhere"), [(2, False), (300_000, True)])
async def test_long_conversions_run_in_another_thread(monkeypatch, rows, elsewhere):
    threads = []
    convert = signature.to_array

    def spy(value, slot):
        threads.append(threading.get_ident())
        return convert(value, slot)

    monkeypatch.setattr(signature, "to_array", spy)
    invoker = FakeInvoker(lambda call: {"OUT": tensor(call, "X")})
    catalog = FakeCatalog(spec([("X", "FP32", (-1, 4))]))
    model = ModelHandle("net", "", invoker, catalog, timeout_s=30.0)
    outputs = await model(X=np.ones((rows, 4), np.uint8))
    assert (threads[0] != threading.get_ident()) == elsewhere
    assert outputs["OUT"].dtype == np.float32
    assert (outputs["OUT"] == 1).all()


# --- outputs ---


@pytest.fixture
def outputs():
    arrays = {"A": A, "NAMES": np.array([b"x"], object)}
    return Outputs(Reply("net", "7", arrays, "r", (("took", 3),)))


def test_outputs_are_a_mapping_that_copies_nothing(outputs):
    assert list(outputs) == ["A", "NAMES"]
    assert len(outputs) == 2
    assert outputs["A"] is A
    assert "B" not in outputs
    assert dict(outputs)["A"] is A


def test_outputs_show_their_shapes(outputs):
    expected = "<Outputs of 'net' version '7': A: float32[2, 4], NAMES: object[1]>"
    assert repr(outputs) == expected


def test_a_wrong_output_names_those_there_are(outputs):
    with pytest.raises(KeyError, match="model 'net' gave no output 'B'; it gave 'A', 'NAMES'"):
        outputs["B"]
    with pytest.raises(KeyError, match="gave no output 'B'"):
        outputs.array("B", np.float32)


def test_arrays_are_had_by_their_dtype(outputs):
    assert outputs.array("A", np.float32) is A
    with pytest.raises(TypeError, match="output 'A': expected float64, got float32"):
        outputs.array("A", np.float64)
