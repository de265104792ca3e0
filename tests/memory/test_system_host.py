"""Arrays and bytes: what is asked for, within the bounds, or a refusal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.memory.host import HostBytes


@given(
    st.lists(
        st.tuples(
            st.integers(-3, 70),
            st.lists(st.tuples(st.sampled_from(["u1", "i2", "f4", "f8", "V0"]), st.integers(0, 9))),
        )
    )
)
def test_bytes_are_where_they_were_put_and_nowhere_else(writes):
    buffer = bytearray(64)
    model = bytearray(64)
    space = HostBytes(buffer, "these")
    for number, (offset, layout) in enumerate(writes):
        parts = [np.zeros(count, dtype) for dtype, count in layout]
        for part in parts:
            if part.itemsize:  # not of V0
                part[...] = number + 1
        data = b"".join([part.tobytes() for part in parts])
        if 0 <= offset <= 64 - len(data):
            space.write(offset, parts)
            model[offset : offset + len(data)] = data
        else:
            with pytest.raises(ValueError, match="do not lie within these, which has 64"):
                space.write(offset, parts)
            with pytest.raises(ValueError, match="do not lie within these, which has 64"):
                space.check(offset, parts)
        assert buffer == model


@given(
    st.integers(-3, 70),
    st.lists(st.integers(-2, 9), max_size=4).map(tuple),
    st.sampled_from(["u1", "i2", "f4", "f8", "S0", "S3"]),
)
def test_a_view_is_within_the_bytes_or_refused(offset, shape, dtype):
    buffer = bytearray(range(64))
    wanted = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * wanted.itemsize
    space = HostBytes(buffer, "these")
    if min(shape, default=0) >= 0 and 0 <= offset <= 64 - nbytes:
        view = space.view(offset, shape, wanted, None, writable=False)
        assert view.shape == shape
        assert view.nbytes == nbytes
        assert view.tobytes() == buffer[offset : offset + nbytes]
    else:
        with pytest.raises(ValueError):
            space.view(offset, shape, wanted, None, writable=False)
