import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tritonasync.core.values import Call, InputTensor
from tritonasync.wire.encode import encode_request
from tritonasync.wire.large import LARGE_NBYTES, join_large

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=40).map(bytearray),
        arrays.arrays(
            st.sampled_from(["<f4", ">i8", "u1", "?", "<f2"]),
            arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
    ),
    min_size=1,
    max_size=6,
)


def as_bytes(piece) -> bytes:
    return piece.tobytes() if isinstance(piece, np.ndarray) else bytes(piece)


@given(PIECES, st.booleans())
def test_it_is_what_join_gives(pieces, transposed):
    pieces = [
        piece.T if transposed and isinstance(piece, np.ndarray) else piece for piece in pieces
    ]
    whole = b"".join(map(as_bytes, pieces))
    if not whole:
        with pytest.raises(ValueError, match="0 bytes"):
            join_large(pieces, 0)
        return
    joined = join_large(pieces, len(whole))
    assert joined == whole
    assert type(joined) is bytes
    assert hash(joined) == hash(whole)


def test_a_wrong_size_is_refused_before_anything_is_written():
    for nbytes in (3, 5):
        with pytest.raises(ValueError, match=f"not {nbytes} bytes"):
            join_large([b"four"], nbytes)


def test_nothing_else_holds_the_message():
    message = join_large([np.zeros(LARGE_NBYTES, np.uint8)], LARGE_NBYTES)
    assert sys.getrefcount(message) == 2


@pytest.mark.parametrize("strided", [False, True])
def test_other_threads_run_while_a_large_message_is_put_together(strided):
    rows = np.zeros((32, 3, 448 if strided else 224, 224), np.float32)[:, :, :: 1 + strided]
    call = Call("m", "", (InputTensor("IN", "FP32", rows.shape, (rows,)),))
    held: list[float] = []
    over = threading.Event()

    def probe() -> None:
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(0.0002)
            now = time.perf_counter()
            held.append(now - last)
            last = now

    thread = threading.Thread(target=probe)
    thread.start()
    began = time.perf_counter()
    for _ in range(10):
        assert len(encode_request(call)) > 19_000_000
    took = time.perf_counter() - began
    over.set()
    thread.join()
    # With the lock held, there is a gap of a whole message's time for each.
    assert sorted(held)[-10] < took / 10 / 2
