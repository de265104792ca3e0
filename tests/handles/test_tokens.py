"""Which inputs take tokens, and which output has the vectors: by name, usual name, or kind."""

from __future__ import annotations

import pytest

from tests.handles.fakes import spec
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import TensorSpec
from tritonasync.handles.signature import signature_of
from tritonasync.handles.text.tokens import (
    TokenNames,
    bind_tokens,
    token_inputs_text,
    vector_output,
)

OUT = TensorSpec("OUT", "FP32", (-1, 4))


def ints(*names, datatype="INT64", axes=(-1, -1)):
    return [(name, datatype, axes) for name in names]


def bound(inputs, *, max_batch_size=8, **names):
    signature = signature_of(spec(inputs, [OUT], max_batch_size=max_batch_size), "safe")
    found = bind_tokens(signature, TokenNames(**names), OUT)
    roles = (found.ids, found.mask, found.types, found.positions)
    return tuple(None if tensor is None else tensor.name for tensor in roles)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (
            ("input_ids", "attention_mask", "token_type_ids"),
            ("input_ids", "attention_mask", "token_type_ids", None),
        ),
        (
            ("input_word_ids", "input_mask", "input_type_ids"),
            ("input_word_ids", "input_mask", "input_type_ids", None),
        ),
        (("INPUT_IDS", "POSITION_IDS"), ("INPUT_IDS", None, None, "POSITION_IDS")),
        (("mask:0", "tokens:0"), ("tokens:0", "mask:0", None, None)),
        (("segment_ids", "ids"), ("ids", None, "segment_ids", None)),
        (("INPUT__0",), ("INPUT__0", None, None, None)),
        (("x", "attention_mask"), ("x", "attention_mask", None, None)),
    ],
)
def test_usual_names_are_known_and_one_more_input_is_the_ids(inputs, expected):
    assert bound(ints(*inputs)) == expected


def test_a_bool_input_is_the_mask_and_other_kinds_of_masks_are_taken_by_name():
    assert bound([*ints("x"), ("y", "BOOL", (-1, -1))]) == ("x", "y", None, None)
    assert bound([*ints("x"), ("mask", "FP32", (-1, -1))]) == ("x", "mask", None, None)


def test_inputs_named_by_the_user_come_first():
    inputs = ints("INPUT__0", "INPUT__1")
    assert bound(inputs, ids="INPUT__1", mask="INPUT__0") == ("INPUT__1", "INPUT__0", None, None)
    assert bound(ints("ids", "tokens"), ids="tokens", types="ids") == ("tokens", None, "ids", None)


def test_an_optional_input_of_another_kind_is_left_out():
    image = TensorSpec("pixels", "FP32", (-1, 3, 8, 8), optional=True)
    assert bound([*ints("input_ids"), image]) == ("input_ids", None, None, None)
    most = TensorSpec("most", "INT64", (-1, 1), optional=True)
    assert bound([most, *ints("x")]) == ("x", None, None, None)


@pytest.mark.parametrize(
    ("inputs", "names", "message"),
    [
        (
            ints("INPUT__0", "INPUT__1"),
            {},
            "model 'net' has 2 inputs that may take the tokens' numbers; say which is which by "
            "input_name=…, mask_name=…, token_types_name=…, positions_name=…: 'INPUT__0' INT64 "
            "[batch, any]; 'INPUT__1' INT64 [batch, any]",
        ),
        (
            ints("ids", "tokens"),
            {},
            "model 'net' has 2 inputs that may take the tokens' numbers; say which is which by "
            "input_name=…, mask_name=…, token_types_name=…, positions_name=…: 'ids' INT64 [batch, "
            "any]; 'tokens' INT64 [batch, any]",
        ),
        (
            [("X", "FP32", (-1, -1)), ("Y", "INT64", (-1,))],
            {},
            "model 'net' has no input for tokens, INT32 or INT64 of shape [batch, tokens]; it has "
            "'X' FP32 [batch, any]; 'Y' INT64 [batch]",
        ),
        (
            ints("input_ids", "attention_mask", "task"),
            {},
            "model 'net' needs more inputs than those found for tokens ('input_ids' for the "
            "tokens' numbers, 'attention_mask' for the mask): 'task' INT64 [batch, any]; say what "
            "they are by token_types_name=…, positions_name=…, or call it by pool.model('net')",
        ),
        (
            [*ints("input_ids"), ("weights", "FP32", (-1, -1))],
            {},
            "model 'net' needs more inputs than those found for tokens ('input_ids' for the "
            "tokens' numbers): 'weights' FP32 [batch, any]; say what they are by mask_name=…, "
            "token_types_name=…, positions_name=…, or call it by pool.model('net')",
        ),
        (
            ints("input_ids"),
            {"mask": "attention"},
            "model 'net' has no input 'attention'; it has 'input_ids' INT64 [batch, any]",
        ),
        (
            [*ints("input_ids"), ("X", "FP32", (-1, 3))],
            {"types": "X"},
            "model 'net': expected token_types_name to be an input of INT32 or INT64 [batch, "
            "tokens], got 'X' FP32 [batch, 3]",
        ),
        (
            ints("input_ids"),
            {"ids": "input_ids", "mask": "input_ids"},
            "model 'net': input 'input_ids' is named twice, the second time by mask_name",
        ),
        (
            [*ints("input_ids", axes=(-1, 8)), *ints("attention_mask", axes=(-1, 9))],
            {},
            "model 'net': expected inputs of tokens that are all of one length, got 'input_ids' "
            "INT64 [batch, 8]; 'attention_mask' INT64 [batch, 9]",
        ),
    ],
)
def test_what_is_unclear_lists_the_candidates(inputs, names, message):
    with pytest.raises(ConfigurationError) as caught:
        bound(inputs, **names)
    assert str(caught.value) == message


def test_the_length_is_that_of_the_fixed_axis_of_any_input():
    signature = signature_of(
        spec([*ints("input_ids"), *ints("attention_mask", axes=(-1, 9))], [OUT]), "safe"
    )
    assert bind_tokens(signature, TokenNames(), OUT).length == 9


def test_only_models_of_several_inputs_are_said_to_take_tokens():
    assert token_inputs_text(spec(ints("input_ids"))) is None
    assert token_inputs_text(spec([("TEXT", "BYTES", (-1, 1))])) is None
    text = token_inputs_text(spec(ints("input_ids", "attention_mask")))
    assert text == "'input_ids' INT64 [batch, any]; 'attention_mask' INT64 [batch, any]"


# --- outputs -----------------------------------------------------------------------------------

ROWS = ("sentence_embedding", "FP32", (-1, 384))
PER_TOKEN = ("token_embeddings", "FP32", (-1, -1, 384))
NAMES = ("NAMES", "BYTES", (-1, 2))


@pytest.mark.parametrize(
    ("outputs", "of_tokens", "expected"),
    [
        ([ROWS, PER_TOKEN], True, "token_embeddings"),
        ([ROWS, PER_TOKEN], False, "sentence_embedding"),
        ([NAMES, ROWS], None, "sentence_embedding"),
        ([NAMES, PER_TOKEN], True, "token_embeddings"),
        ([("pooled", "FP16", (-1, 2048, 1, 1))], None, "pooled"),
    ],
)
def test_the_output_is_chosen_by_what_it_has(outputs, of_tokens, expected):
    served = spec(ints("x"), outputs)
    assert vector_output(served, None, of_tokens=of_tokens).name == expected


@pytest.mark.parametrize(
    ("outputs", "name", "of_tokens", "message"),
    [
        (
            [ROWS, PER_TOKEN],
            None,
            None,
            "has 2 outputs, 2 of them of vectors: [batch, D], or [batch, tokens, D] with "
            "pooling=…; say which one by output_name=…: 'sentence_embedding' FP32 [batch, 384]; "
            "'token_embeddings' FP32 [batch, any, 384]",
        ),
        (
            [NAMES, ("B", "BOOL", (-1, 3))],
            None,
            False,
            "has 2 outputs, none of them of vectors; say which one by output_name=…: 'NAMES' "
            "BYTES [batch, 2]; 'B' BOOL [batch, 3]",
        ),
        ([ROWS], "EMBEDDING", None, "has no output 'EMBEDDING'; it has 'sentence_embedding' FP32"),
        (
            [ROWS],
            None,
            True,
            "expected an output of a vector a token: numbers of shape [batch, tokens, D], got "
            "'sentence_embedding' FP32 [batch, 384]; leave out pooling for one that has a vector "
            "a row",
        ),
    ],
)
def test_an_output_that_is_unclear_or_unfit_is_refused(outputs, name, of_tokens, message):
    with pytest.raises(ConfigurationError) as caught:
        vector_output(spec(ints("x"), outputs), name, of_tokens=of_tokens)
    assert message in str(caught.value)
