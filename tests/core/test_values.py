from dataclasses import FrozenInstanceError

import pytest

from tritonasync.core.deadline import NEVER
from tritonasync.core.values import DATATYPES, Call, ModelSpec, SequenceStep


def test_there_are_fourteen_datatypes():
    assert len(DATATYPES) == len(set(DATATYPES)) == 14


@pytest.mark.parametrize(("max_batch_size", "batched"), [(0, False), (1, True), (256, True)])
def test_a_model_with_a_batch_size_has_a_batch_axis(max_batch_size, batched):
    spec = ModelSpec("m", "", ("1",), "", max_batch_size, (), ())
    assert spec.batched is batched


def test_a_call_is_a_value_that_never_expires_by_default():
    call = Call("m", "", ())
    assert call == Call("m", "", ())
    assert call.deadline is NEVER
    with pytest.raises(FrozenInstanceError):
        call.model = "other"


def test_a_call_is_a_step_of_a_sequence_by_its_own_word_or_by_its_parameters():
    assert not Call("m", "", ()).in_sequence
    assert not Call("m", "", (), parameters=(("priority", 1),)).in_sequence
    assert Call("m", "", (), parameters=(("priority", 1), ("sequence_id", 7))).in_sequence
    assert Call("m", "", (), sequence=SequenceStep("mine")).in_sequence
