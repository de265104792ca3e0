"""A conformance kit for kinds of shared memory, which any ``Memory`` has to pass.

Owns: what the docstrings of ``Memory`` and ``Region`` (:mod:`tritonasync.core.ports`) promise, as
tests. Refuses to know: servers, GPUs, files.

Use: inherit from :class:`MemoryConformance` in a class whose name begins with ``Test``, and give it
a fixture ``memory``::

    class TestSystemMemory(MemoryConformance):
        @pytest.fixture
        def memory(self, tmp_path):
            return SystemMemory(tmp_path)

Importing this file imports pytest; :mod:`tritonasync.testing.scripted`, whose fake is here as well,
does not.
"""

# A test's name says what a docstring would, and it asserts; its arguments come by name.
# ruff: noqa: D102, FBT001, S101

from __future__ import annotations

import gc
import importlib.util
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pytest

from tritonasync.core.ports import Completion, Memory, Region
from tritonasync.core.values import Array
from tritonasync.testing.scripted import POISON, ScriptedMemory, ScriptedRegion, ScriptedWork

__all__ = ["POISON", "MemoryConformance", "ScriptedMemory", "ScriptedRegion", "ScriptedWork"]

_BYTE: Final = np.dtype(np.uint8)
_NBYTES: Final = 8192
_DTYPES: Final = ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class Owner:
    """Something for a view to keep; it can be watched."""


class MemoryConformance:
    """The tests. What they make is closed by the fixture ``region``, and by themselves."""

    @pytest.fixture
    def region(self, memory: Memory) -> Iterator[Region]:
        """A region of 8,192 bytes, or a little more."""
        region = memory.create(_NBYTES)
        yield region
        region.close()

    # What an implementation may have to say otherwise.

    def settle(self, memory: Memory, completion: Completion | None) -> None:
        """Wait for work; a scripted memory is told to do it."""
        if isinstance(memory, ScriptedMemory):
            memory.complete_all()
        if completion is not None:
            completion.wait()
            assert completion.done()

    def fetch(self, array: object) -> Array:
        """Return a host's copy of a view, which a device's array gives by its ``get``."""
        fetch: Any = getattr(array, "get", None)
        return np.array(array) if fetch is None else fetch()

    # Regions.

    @pytest.mark.parametrize("nbytes", [1, 4095, 4096, 4097, 1 << 20])
    def test_a_region_has_the_bytes_asked_for(self, memory: Memory, nbytes: int) -> None:
        region = memory.create(nbytes)
        try:
            assert region.nbytes >= nbytes
            self._write(memory, region, region.nbytes - 1, [np.array([7], np.uint8)])
            assert self._read(region, region.nbytes - 1, 1).tolist() == [7]
        finally:
            region.close()

    @pytest.mark.parametrize("nbytes", [0, -1])
    def test_a_region_has_a_byte(self, memory: Memory, nbytes: int) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - each in its own words
            memory.create(nbytes)

    def test_what_a_server_opens_a_region_by(self, memory: Memory, region: Region) -> None:
        assert region.kind == memory.kind
        assert region.device_id >= 0
        if region.kind == "system":
            assert region.key.startswith("/")
            assert (region.handle, region.device_id) == (b"", 0)
        else:
            assert region.key == ""
            assert isinstance(region.handle, bytes)
            assert len(region.handle) == 64

    def test_names_and_handles_are_unique_also_among_threads(self, memory: Memory) -> None:
        with ThreadPoolExecutor(8) as threads:
            regions = list(threads.map(memory.create, [256] * 32))
        try:
            assert len({region.name for region in regions}) == 32
            assert len({region.key or region.handle for region in regions}) == 32
        finally:
            for region in regions:
                region.close()

    def test_regions_do_not_share_bytes(self, memory: Memory, region: Region) -> None:
        other = memory.create(_NBYTES)
        try:
            self._write(memory, region, 0, [np.full(_NBYTES, 1, np.uint8)])
            self._write(memory, other, 0, [np.full(_NBYTES, 2, np.uint8)])
            assert set(self._read(region, 0, _NBYTES).tolist()) == {1}
        finally:
            other.close()

    def test_a_region_may_be_closed_twice_and_not_used_after(self, memory: Memory) -> None:
        region = memory.create(_NBYTES)
        region.close()
        region.close()
        with pytest.raises(ValueError):  # noqa: PT011 - the same
            region.write(0, [np.zeros(1, np.uint8)])
        with pytest.raises(ValueError):  # noqa: PT011 - the same
            region.view(0, (1,), _BYTE, None, writable=False)

    # Writes.

    @pytest.mark.parametrize("dtype", _DTYPES)
    @pytest.mark.parametrize("offset", [0, 256, 5])
    def test_a_write_lands_byte_for_byte(
        self, memory: Memory, region: Region, dtype: str, offset: int
    ) -> None:
        part = _bytes(600).view(dtype) if dtype != "?" else _bytes(600) > 99
        self._check_write(memory, region, offset, [part])

    def test_a_write_of_bf16_lands_byte_for_byte(self, memory: Memory, region: Region) -> None:
        part = _bytes(600).view(_bfloat16()).reshape(3, 100)
        self._check_write(memory, region, 256, [part])
        self._check_write(memory, region, 256, [part[:, ::2], part])

    @pytest.mark.parametrize(
        "shapes",
        [
            [(3, 5)] * 4,
            [(5,)] * 40,
            [()] * 9,
            [(2, 5), (5,), (1, 5)],
            [(0, 5), (2, 5), (0,)],
            [(7,)],
        ],
    )
    def test_parts_land_one_behind_the_other(
        self, memory: Memory, region: Region, shapes: list[tuple[int, ...]]
    ) -> None:
        parts = [_bytes(8 * int(np.prod(shape)), at).view("f8") for at, shape in enumerate(shapes)]
        shaped = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        self._check_write(memory, region, 512, shaped)

    def test_strided_parts_land_in_order_of_their_elements(
        self, memory: Memory, region: Region
    ) -> None:
        whole = _bytes(960).view("i4").reshape(4, 6, 10)
        for part in (
            whole[:, ::2],
            whole.T,
            whole[::-1, :, 3:],
            np.broadcast_to(whole[0], (2, 6, 10)),
        ):
            self._check_write(memory, region, 256, [part])
            self._check_write(memory, region, 256, [part, np.ascontiguousarray(part), part])

    def test_parts_of_several_dtypes_keep_their_bytes(self, memory: Memory, region: Region) -> None:
        raw = _bytes(64)
        self._check_write(memory, region, 0, [raw.view("f4"), raw, raw.view("f8"), raw.view("i4")])
        self._check_write(memory, region, 0, [raw.view("u4"), raw.view("i4")])

    @pytest.mark.parametrize("parts", [[], [np.zeros((0, 3), np.float32)]])
    def test_nothing_may_be_written_even_at_the_end(
        self, memory: Memory, region: Region, parts: list[Array]
    ) -> None:
        self._check_write(memory, region, region.nbytes, parts)

    @pytest.mark.parametrize("offset", [-1, -256, _NBYTES * 99, 2**63, -(2**63)])
    def test_a_write_out_of_bounds_is_refused_and_changes_nothing(
        self, memory: Memory, region: Region, offset: int
    ) -> None:
        self._check_refused(memory, region, offset, [np.zeros(1, np.uint8)])

    def test_a_write_over_the_end_is_refused_and_changes_nothing(
        self, memory: Memory, region: Region
    ) -> None:
        row = np.zeros(16, np.uint8)
        self._check_refused(memory, region, region.nbytes - 15, [row])
        self._check_refused(memory, region, region.nbytes - 31, [row, row])
        self._check_refused(memory, region, 0, [np.broadcast_to(row, (region.nbytes, 16))])

    def test_a_part_may_be_changed_once_its_write_is_done(
        self, memory: Memory, region: Region
    ) -> None:
        part = np.full(100, 3, np.uint8)
        self._write(memory, region, 0, [part])
        part.fill(9)
        assert set(self._read(region, 0, 100).tolist()) == {3}

    def test_a_fence_follows_the_writes_before_it(self, memory: Memory, region: Region) -> None:
        region.write(0, [np.full(_NBYTES, 4, np.uint8)])
        self.settle(memory, region.fence())
        assert set(self._read(region, 0, _NBYTES).tolist()) == {4}

    # Views.

    @pytest.mark.parametrize("shape", [(), (1,), (6, 4), (2, 3, 4), (0,), (0, 3), (3, 0)])
    @pytest.mark.parametrize("dtype", _DTYPES)
    def test_a_view_has_shape_dtype_and_bytes(
        self, memory: Memory, region: Region, shape: tuple[int, ...], dtype: str
    ) -> None:
        wanted = np.zeros(shape, dtype)
        wanted[...] = np.arange(wanted.size).reshape(shape)
        self._write(memory, region, 256, [wanted])
        view = region.view(256, shape, np.dtype(dtype), None, writable=False)
        assert (view.shape, view.dtype) == (shape, wanted.dtype)
        assert self.fetch(view).tobytes() == wanted.tobytes()

    def test_a_view_of_bf16(self, memory: Memory, region: Region) -> None:
        wanted = np.arange(12).reshape(3, 4).astype(_bfloat16())
        self._write(memory, region, 512, [wanted])
        view = region.view(512, (3, 4), wanted.dtype, None, writable=False)
        assert view.dtype == wanted.dtype
        assert self.fetch(view).tobytes() == wanted.tobytes()

    def test_the_whole_region_may_be_viewed(self, region: Region) -> None:
        view = region.view(0, (region.nbytes,), _BYTE, None, writable=True)
        assert view.nbytes == region.nbytes
        end = region.view(region.nbytes, (0, 4), np.dtype("f4"), None, writable=True)
        assert end.size == 0

    @pytest.mark.parametrize(
        ("offset", "shape"),
        [
            (-1, (1,)),
            (-8, (8,)),
            (0, (_NBYTES * 99,)),
            (0, (2**40, 2**40)),
            (0, (2**32, 2**32)),  # 2**64 bytes are 0 to who counts in 64 bits
            (_NBYTES * 99, (1,)),
            (_NBYTES * 99, (0,)),
            (-1, (0,)),
            (0, (-1,)),
            (0, (-1, -1)),
            (2**64, (1,)),
        ],
    )
    def test_a_view_out_of_bounds_is_refused(
        self, region: Region, offset: int, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - the same
            region.view(offset, shape, _BYTE, None, writable=False)

    def test_a_view_over_the_end_is_refused(self, region: Region) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - the same
            region.view(region.nbytes - 7, (1,), np.dtype("f8"), None, writable=False)

    def test_python_objects_are_refused(self, region: Region) -> None:
        with pytest.raises((ValueError, TypeError)):
            region.view(0, (1,), np.dtype(object), None, writable=False)
        with pytest.raises((ValueError, TypeError)):
            region.write(0, [np.array([None])])

    def test_what_is_computed_in_place_is_there(self, memory: Memory, region: Region) -> None:
        view = region.view(256, (4,), np.dtype("f4"), None, writable=True)
        view[...] = 1.5
        view += 1
        self.settle(memory, region.fence())
        assert self._read(region, 256, 16).view("f4").tolist() == [2.5] * 4

    def test_a_numpy_view_cannot_be_written_unless_that_was_asked_for(self, region: Region) -> None:
        view = region.view(0, (8,), _BYTE, None, writable=False)
        if not isinstance(view, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
            pytest.skip("a device's arrays have no such flag")
        assert not view.flags.writeable
        for array in (view, view[2:], view.view("u2")):
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True

    @pytest.mark.parametrize("writable", [False, True])
    @pytest.mark.parametrize("shape", [(4, 6), (0, 6)])
    def test_an_owner_lives_as_long_as_the_last_view_on_a_view(
        self, region: Region, shape: tuple[int, ...], writable: bool
    ) -> None:
        owner = Owner()
        alive = weakref.ref(owner)
        view = region.view(0, shape, np.dtype("f4"), owner, writable=writable)
        del owner
        rest = view[1:].reshape(-1).view(np.int32)[::2].T
        del view
        gc.collect()
        assert alive() is not None
        del rest
        gc.collect()
        assert alive() is None

    def test_each_view_keeps_its_own_owner(self, region: Region) -> None:
        owners = Owner(), Owner()
        alive = [weakref.ref(owner) for owner in owners]
        views = [region.view(0, (4,), _BYTE, owner, writable=False) for owner in owners]
        del owners
        views.pop(0)
        gc.collect()
        assert alive[0]() is None
        assert alive[1]() is not None

    # How the tests look at it.

    def _write(self, memory: Memory, region: Region, offset: int, parts: Sequence[Array]) -> None:
        self.settle(memory, region.write(offset, parts))

    def _read(self, region: Region, offset: int, nbytes: int) -> Array:
        return self.fetch(region.view(offset, (nbytes,), _BYTE, None, writable=False))

    def _check_write(
        self, memory: Memory, region: Region, offset: int, parts: Sequence[Array]
    ) -> None:
        self._write(memory, region, 0, [np.full(region.nbytes, 0xEE, np.uint8)])
        self._write(memory, region, offset, parts)
        landed = b"".join([part.tobytes() for part in parts])
        after = region.nbytes - offset - len(landed)
        wanted = b"\xee" * offset + landed + b"\xee" * after
        assert self._read(region, 0, region.nbytes).tobytes() == wanted

    def _check_refused(
        self, memory: Memory, region: Region, offset: int, parts: Sequence[Array]
    ) -> None:
        self._write(memory, region, 0, [np.full(region.nbytes, 0xEE, np.uint8)])
        with pytest.raises(ValueError):  # noqa: PT011 - the same
            region.write(offset, parts)
        self.settle(memory, region.fence())
        assert set(self._read(region, 0, region.nbytes).tolist()) == {0xEE}


def _bytes(nbytes: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def _bfloat16() -> np.dtype[Any]:
    if importlib.util.find_spec("ml_dtypes") is None:
        pytest.skip("ml_dtypes is not installed")
    ml_dtypes: Any = importlib.import_module("ml_dtypes")
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
