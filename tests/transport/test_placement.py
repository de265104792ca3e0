import numpy as np
import pytest

from tritonasync.core.values import Call, InputTensor, Reply
from tritonasync.transport.cargo import layout
from tritonasync.transport.placement import Wanted, choose
from tritonasync.transport.sizes import MOST, WINDOW, LearnedSizes

K = 1024


def call_of(**fields):
    tensor = InputTensor("IN", "FP32", (2, 4), (np.zeros((2, 4), np.float32),))
    return Call("m", "", (tensor,), 2, **fields)


def chosen(sharing="auto", *, inputs=0, outputs=0, gpu=False, **fields):
    wanted = choose(
        call_of(**fields),
        sharing,
        min_nbytes=64 * K,
        input_nbytes=inputs,
        output_nbytes=outputs,
        gpu=gpu,
    )
    return wanted.inputs, wanted.outputs


@pytest.mark.parametrize(
    ("inputs", "outputs", "places"),
    [
        (64 * K - 1, 64 * K - 1, (None, None)),
        (64 * K, 0, ("system", None)),
        (0, 64 * K, (None, "system")),
        (64 * K, 64 * K, ("system", "system")),
    ],
)
def test_inputs_and_outputs_are_placed_from_the_threshold_on_each_for_itself(
    inputs, outputs, places
):
    assert chosen(inputs=inputs, outputs=outputs) == places
    assert chosen("off", inputs=inputs, outputs=outputs) == (None, None)


def test_arrays_of_a_gpu_go_through_its_memory_where_that_can_be_whatever_their_size():
    assert chosen(inputs=8, device=True, gpu=True) == ("cuda", None)
    assert chosen(inputs=64 * K, device=True, gpu=False) == ("system", None)
    assert chosen(inputs=64 * K, device=False, gpu=True) == ("system", None)


def test_outputs_are_on_a_gpu_where_they_are_wanted():
    both = {"inputs": 64 * K, "outputs": 64 * K, "gpu": True, "device": True}
    assert chosen(**both, output_memory="gpu") == ("cuda", "cuda")
    assert chosen(**both, output_memory="host") == ("cuda", "system")
    assert chosen(**{**both, "gpu": False}, output_memory="gpu") == ("system", "system")


def test_what_is_insisted_on_is_done_below_the_threshold():
    assert chosen("system", inputs=4 * K, outputs=4 * K) == ("system", "system")
    assert chosen("system", inputs=4 * K - 1, outputs=4 * K - 1) == (None, None)
    assert chosen("cuda", inputs=8, outputs=64 * K) == ("cuda", "system")
    assert chosen("cuda", inputs=8, outputs=64 * K, output_memory="gpu") == ("cuda", "cuda")
    assert chosen("cuda") == (None, None)


def test_a_model_that_must_not_run_twice_gets_no_place_for_outputs():
    assert chosen(inputs=64 * K, outputs=64 * K, idempotent=False) == ("system", None)


def test_whether_it_is_insisted_on_is_told():
    options = {"min_nbytes": 1, "input_nbytes": 1, "output_nbytes": 0, "gpu": False}
    assert choose(call_of(), "auto", **options) == Wanted("system", None)
    assert choose(call_of(), "system", **{**options, "input_nbytes": 5 * K}) == Wanted(
        "system", None, insisted=True
    )


def test_tensors_are_laid_out_aligned():
    assert layout([("A", 1), ("B", 256), ("C", 257)]) == ({"A": 0, "B": 256, "C": 512}, 1024)
    assert layout([]) == ({}, 0)


# --- learned sizes --------------------------------------------------------------------------------

N = 1000  # bytes of the inputs


def reply_of(**shapes):
    outputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return Reply("m", "1", outputs)


@pytest.fixture
def sizes():
    return LearnedSizes()


def test_sizes_are_learned_for_each_row(sizes):
    assert sizes.of(call_of(), N) is None
    sizes.learn(call_of(), N, reply_of(A=(2, 10), B=(2, 3)))
    known = sizes.of(call_of(), N)
    assert known.of(2) == {"A": 80, "B": 24}
    assert known.of(5) == {"A": 200, "B": 60}
    assert known.total == 52


def test_a_model_without_rows_is_known_by_the_call(sizes):
    tensor = InputTensor("IN", "FP32", (4,), (np.zeros(4, np.float32),))
    call = Call("m", "", (tensor,))
    sizes.learn(call, N, reply_of(A=(7,)))
    assert sizes.of(call, N).of(0) == {"A": 28}


def test_the_most_that_was_seen_of_late_counts(sizes):
    for shape in ((2, 3), (2, 9), (2, 5)):
        sizes.learn(call_of(), N, reply_of(A=shape))
    assert sizes.of(call_of(), N).of(1) == {"A": 36}
    for _ in range(2 * WINDOW):
        sizes.learn(call_of(), N, reply_of(A=(2, 5)))
    assert sizes.of(call_of(), N).of(1) == {"A": 20}
    assert sizes.of(call_of(), N).total == 20


def test_calls_with_inputs_of_another_size_are_known_for_themselves(sizes):
    sizes.learn(call_of(), N, reply_of(A=(2, 3)))
    assert sizes.of(call_of(), N // 4) is None
    sizes.learn(call_of(), N // 4, reply_of(A=(2, 1)))
    assert sizes.of(call_of(), N + 20).of(1) == {"A": 12}
    assert sizes.of(call_of(), N // 4).of(1) == {"A": 4}


def test_strings_are_known_and_take_no_place(sizes):
    outputs = {"A": np.zeros((2, 3), np.float32), "S": np.array([[b"x"], [b"y"]], object)}
    sizes.learn(call_of(), N, Reply("m", "1", outputs))
    assert sizes.of(call_of(), N).of(2) == {"A": 24, "S": 0}


def test_other_outputs_than_before_are_learned_anew(sizes):
    sizes.learn(call_of(), N, reply_of(A=(2, 3)))
    sizes.learn(call_of(), N, reply_of(B=(2, 1)))
    assert sizes.of(call_of(), N).of(1) == {"B": 4}
    sizes.forget(call_of(), N)
    sizes.forget(call_of(), N)
    assert sizes.of(call_of(), N) is None


def test_each_choice_of_outputs_is_known_for_itself(sizes):
    sizes.learn(call_of(outputs=("A",)), N, reply_of(A=(2, 3)))
    assert sizes.of(call_of(), N) is None


def test_a_place_that_was_too_small_teaches(sizes):
    sizes.grow(call_of(), N, "A", 100)  # nothing is known: nothing was placed
    assert sizes.of(call_of(), N) is None
    sizes.learn(call_of(), N, reply_of(A=(2, 3)))
    sizes.grow(call_of(), N, "A", 101)
    assert sizes.of(call_of(), N).of(2) == {"A": 102}
    sizes.grow(call_of(), N, "A", 10)
    assert sizes.of(call_of(), N).of(2) == {"A": 102}
    assert sizes.of(call_of(), N).total == 51


def test_of_calls_that_need_no_place_some_answers_are_looked_at(sizes):
    sizes.learn(call_of(), N, reply_of(A=(2, 3)))
    known = sizes.of(call_of(), N)
    assert [known.due() for _ in range(2 * WINDOW)].count(True) == 2
    assert not known.due()


def test_what_is_remembered_is_bounded(sizes):
    for index in range(MOST + 1):
        sizes.learn(Call(f"m{index}", "", call_of().inputs, 2), N, reply_of(A=(2, 3)))
    assert len(sizes._known) == 1
