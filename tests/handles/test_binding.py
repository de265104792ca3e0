"""Which inputs and outputs a typed handle takes: by name, by kind, or because there is no other."""

from __future__ import annotations

import numpy as np
import pytest

from tests.handles.fakes import spec
from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.core.values import Reply, TensorSpec
from tritonasync.handles.binding import Kind, bind_one, bind_some, bind_tensors, named
from tritonasync.handles.signature import signature_of

WIDE = Kind("that are wide: [batch, 9]", lambda tensor: tensor.shape[1:] == (9,))

INPUTS = [("X", "FP32", (-1, 4)), TensorSpec("HINT", "FP32", (-1, 1), optional=True)]
OUTPUTS = [("A", "FP32", (-1, 4)), ("B", "FP32", (-1, 9)), ("C", "FP32", (-1, 5))]


def signature(inputs=INPUTS, outputs=OUTPUTS, **options):
    return signature_of(spec(inputs, outputs, **options), "safe")


def refusal(*args, **options):
    with pytest.raises(ConfigurationError) as caught:
        bind_one(*args, **options)
    assert caught.value.model == "net"
    return str(caught.value)


def test_the_only_output_of_the_kind_is_taken():
    binding = bind_one(signature(), None, None, fits_output=WIDE)
    assert (binding.input.name, binding.output.name) == ("X", "B")
    assert binding.output_names == ("B",)


def test_a_name_is_stronger_than_the_kind():
    assert bind_one(signature(), None, "C", fits_output=WIDE).output.name == "C"


def test_the_only_output_is_taken_whatever_its_kind():
    only = signature(outputs=OUTPUTS[:1])
    assert bind_one(only, None, None, fits_output=WIDE).output.name == "A"


def test_several_of_the_kind_are_listed():
    several = signature(outputs=[*OUTPUTS, ("D", "INT8", (-1, 9))])
    assert refusal(several, None, None, fits_output=WIDE) == (
        "model 'net' has 4 outputs, 2 of them that are wide: [batch, 9]; say which one by "
        "output_name=…: 'B' FP32 [batch, 9]; 'D' INT8 [batch, 9]"
    )


def test_all_are_listed_where_none_is_of_the_kind():
    assert refusal(signature(outputs=OUTPUTS[::2]), None, None, fits_output=WIDE) == (
        "model 'net' has 2 outputs, none of them that are wide: [batch, 9]; say which one by "
        "output_name=…: 'A' FP32 [batch, 4]; 'C' FP32 [batch, 5]"
    )


def test_it_is_not_said_of_all_that_they_are_of_the_kind():
    wide = signature(outputs=[("B", "FP32", (-1, 9)), ("D", "INT8", (-1, 9))])
    assert "has 2 outputs; say which one" in refusal(wide, None, None, fits_output=WIDE)


def test_all_are_listed_where_no_kind_is_looked_for():
    assert refusal(signature(outputs=OUTPUTS[:2]), None, None) == (
        "model 'net' has 2 outputs; say which one by output_name=…: 'A' FP32 [batch, 4]; "
        "'B' FP32 [batch, 9]"
    )


def test_optional_inputs_are_no_candidates_unless_nothing_is_required():
    assert bind_one(signature(), None, "A").input.name == "X"
    free = signature(
        inputs=[
            TensorSpec(name, "FP32", (-1, n), optional=True) for name, n in [("P", 4), ("Q", 9)]
        ]
    )
    assert bind_one(free, None, "A", fits_input=WIDE).input.name == "Q"
    assert bind_one(free, "P", "A", fits_input=WIDE).input.name == "P"
    assert "has 2 inputs; say which one by input_name=…: 'P' FP32" in refusal(free, None, "A")


def test_two_required_inputs_are_one_too_many_even_if_one_is_of_the_kind():
    two = signature(inputs=[("X", "FP32", (-1, 4)), ("Y", "FP32", (-1, 9))])
    assert "has 2 inputs; say which one by input_name=…: 'X'" in refusal(two, None, "A")
    assert refusal(two, None, "A", fits_input=WIDE) == (
        "model 'net' needs more inputs than 'Y': 'X' FP32 [batch, 4]; call it by pool.model('net')"
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("Z", "A"), "has no input 'Z'; it has 'X' FP32 [batch, 4]; 'HINT' FP32 [batch, 1] (op"),
        (("HIMT", "A"), "has no input 'HIMT' (did you mean 'HINT'?); it has 'X' FP32"),
        ((None, "Z"), "has no output 'Z'; it has 'A' FP32 [batch, 4]; 'B' FP32"),
        (("HINT", "A"), "needs more inputs than 'HINT': 'X' FP32 [batch, 4]; call it by"),
    ],
)
def test_wrong_names_are_refused_with_the_candidates(names, reason):
    assert f"model 'net' {reason}" in refusal(signature(), *names)


def test_some_outputs_are_bound_in_the_order_given_or_all():
    assert bind_some(signature(), None, ("C", "A")).output_names == ("C", "A")
    assert bind_some(signature(), None, None).output_names == ()  # all
    with pytest.raises(ConfigurationError, match="has no output 'Z'"):
        bind_some(signature(), None, ("A", "Z"))


def test_bindings_are_remembered_for_equal_signatures():
    one, other = (bind_one(signature(), None, None, fits_output=WIDE) for _ in range(2))
    assert one is other


def test_several_inputs_may_be_bound():
    given = signature()
    inputs = tuple(named(given.spec, "input", name) for name in ("HINT", "X"))
    binding = bind_tensors(given, inputs, given.spec.outputs[:1])
    tensors, rows = binding.bind({"X": [[1, 2, 3, 4]], "HINT": [[1]]}, item=False)
    assert ([tensor.name for tensor in tensors], rows) == (["X", "HINT"], 1)


def fixed():
    return signature(
        inputs=[("X", "FP32", (4, 4))], outputs=[("A", "FP32", (9,))], max_batch_size=0
    )


def test_no_axis_for_a_batch_is_refused_where_several_outputs_are_read():
    with pytest.raises(
        ConfigurationError, match=r"has no axis for a batch.*'X' FP32 \[4, 4\]; 'A'"
    ):
        bind_some(fixed(), None, None)


def test_a_model_without_an_axis_for_a_batch_takes_one_item():
    binding = bind_one(fixed(), None, None, fits_output=WIDE)
    assert binding.output.shape[1:] == (9,)
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    for value, item in ((square, True), (square[None], False), (square.tolist(), True)):
        (tensor,), rows = binding.tensors(value, item=item)
        assert (tensor.shape, rows, binding.call_rows(rows)) == ((4, 4), 1, 0)
        np.testing.assert_array_equal(tensor.parts[0], square)
    nine = np.arange(9, dtype=np.float32)
    read = binding.floats(Reply("net", "1", {"A": nine}), binding.output, 1)
    np.testing.assert_array_equal(read, nine[None])
    with pytest.raises(InvalidInputError, match=r"'X': expected one item a call, .* got 2; make"):
        binding.tensors(np.zeros((2, 4, 4), np.float32), item=False)
    with pytest.raises(ProtocolError, match="expected 1 rows, got no such output"):
        binding.floats(Reply("net", "1", {}), binding.output, 1)


def test_the_output_of_such_a_model_is_found_by_its_kind():
    given = signature(
        inputs=[("X", "FP32", (4, 4))],
        outputs=[("A", "FP32", (1, 9)), ("B", "FP32", (9,))],
        max_batch_size=0,
    )
    assert bind_one(given, None, None, fits_output=WIDE).output.name == "B"
