"""The conformance kit for regions whose size is rounded up by more than the kit reckons with."""

import numpy as np
import pytest

from tritonasync.testing.memory import MemoryConformance

FAR = 1 << 40


class CudaConformance(MemoryConformance):
    @pytest.mark.parametrize("offset", [-1, -256, FAR, 2**63, -(2**63)])
    def test_a_write_out_of_bounds_is_refused_and_changes_nothing(self, memory, region, offset):
        self._check_refused(memory, region, offset, [np.zeros(1, np.uint8)])

    @pytest.mark.parametrize(
        ("offset", "shape"),
        [
            (-1, (1,)),
            (-8, (8,)),
            (0, (FAR,)),
            (0, (2**40, 2**40)),
            (0, (2**32, 2**32)),
            (FAR, (1,)),
            (FAR, (0,)),
            (-1, (0,)),
            (0, (-1,)),
            (0, (-1, -1)),
            (2**64, (1,)),
        ],
    )
    def test_a_view_out_of_bounds_is_refused(self, region, offset, shape):
        with pytest.raises(ValueError, match="lie within"):
            region.view(offset, shape, np.dtype(np.uint8), None, writable=False)
