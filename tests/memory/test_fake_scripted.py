"""The scripted memory does what it is told, and objects to what a device would not survive."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from tritonasync.core.errors import DeviceError, MemoryExhaustedError, WrongContextError
from tritonasync.core.ports import Completion, Memory, Region
from tritonasync.testing.scripted import POISON, ScriptedMemory, ScriptedRegion

BYTE = np.dtype("u1")


@pytest.fixture
def memory() -> ScriptedMemory:
    return ScriptedMemory()


@pytest.fixture
def region(memory: ScriptedMemory) -> ScriptedRegion:
    return memory.create(8)


def full(value: int, nbytes: int = 4) -> np.ndarray:
    return np.full(nbytes, value, np.uint8)


def read(region: ScriptedRegion, nbytes: int = 4) -> list[int]:
    return region.view(0, (nbytes,), BYTE, None, writable=False).tolist()


def test_it_is_what_the_ports_ask_for(memory, region):
    def all_three(memory: Memory, region: Region, completion: Completion | None) -> bool:
        return completion is not None and completion.done()

    assert not all_three(memory, region, region.write(0, [full(1)]))
    assert not all_three(memory, region, region.fence())


def test_bytes_arrive_when_a_write_is_completed_and_not_before(memory, region):
    work = region.write(0, [full(1, 2), full(2, 2)])
    assert memory.pending == [work.number] == [0]
    assert not work.done()
    assert read(region) == [POISON] * 4
    memory.complete(0)
    assert work.done()
    assert read(region, 8) == [1, 1, 2, 2, *[POISON] * 4]
    assert memory.pending == []


def test_parts_that_are_changed_too_early_arrive_changed(memory, region):
    part = full(1)
    region.write(0, [part])
    part.fill(9)
    memory.complete(0)
    part.fill(10)
    assert read(region) == [9] * 4


def test_writes_can_be_completed_in_any_order(memory, region):
    first, second, third = (region.write(0, [full(value)]) for value in (1, 2, 3))
    memory.complete(1, 0)
    assert read(region) == [1] * 4
    assert [work.done() for work in (first, second, third)] == [True, True, False]
    memory.complete_all()
    assert read(region) == [3] * 4


def test_a_fence_cannot_overtake_the_writes_before_it(memory, region):
    other = memory.create(8)
    region.write(0, [full(1)])
    fence = region.fence()
    region.write(0, [full(2)])
    elsewhere = other.fence()
    with pytest.raises(RuntimeError, match="fence 1 cannot be done before"):
        memory.complete(1)
    assert not fence.done()
    memory.complete(3)
    assert elsewhere.done()
    memory.complete(0, 1)  # a write behind it is no hindrance
    assert fence.done()
    assert memory.pending == [2]


def test_a_fence_follows_a_write_that_failed(memory, region):
    region.write(0, [full(1)])
    fence = region.fence()
    memory.fail(0)
    memory.complete(1)
    assert fence.done()


def test_failed_work_tells_so_and_its_bytes_never_arrive(memory, region):
    work = region.write(0, [full(1)])
    memory.fail(0)
    with pytest.raises(DeviceError, match="work 0 on .* failed"):
        work.done()
    with pytest.raises(DeviceError, match="failed"):
        work.wait()
    assert read(region) == [POISON] * 4
    region.close()


def test_lost_work_is_never_done_and_who_waits_is_let_go_at_the_end(memory, region):
    work = region.write(0, [full(1)])
    fence = region.fence()
    memory.lose(0)
    memory.complete_all()
    assert not work.done()
    assert not fence.done()
    assert memory.pending == [1]
    raised: list[DeviceError] = []

    def wait() -> None:
        with pytest.raises(DeviceError, match="never done") as caught:
            work.wait()
        raised.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.02)
    assert thread.is_alive()
    memory.end()
    thread.join(60)
    assert len(raised) == 1
    assert read(region) == [POISON] * 4


def test_who_waits_goes_on_when_the_work_is_done(memory, region):
    work = region.fence()
    over = threading.Event()
    thread = threading.Thread(target=lambda: (work.wait(), over.set()))
    thread.start()
    assert not over.wait(0.02)
    memory.complete(0)
    assert over.wait(60)
    thread.join()


@pytest.mark.parametrize("how", ["complete", "fail", "lose"])
@pytest.mark.parametrize("before", ["complete", "fail", "lose"])
def test_work_is_settled_once(memory, region, before, how):
    region.write(0, [full(1)])
    getattr(memory, before)(0)
    with pytest.raises(RuntimeError, match="work 0 is not pending: it is"):
        getattr(memory, how)(0)


@pytest.mark.parametrize("state", ["pending", "lost"])
def test_a_region_cannot_be_given_back_under_work(memory, region, state):
    region.fence()
    if state == "lost":
        memory.lose(0)
    with pytest.raises(RuntimeError, match="given back while there is work"):
        region.close()
    assert memory.regions == [region]
    assert not region.closed


def test_what_was_given_back_is_poison_to_who_still_looks(memory, region):
    region.write(0, [full(1)])
    memory.complete_all()
    view = region.view(0, (4,), BYTE, None, writable=False)
    region.close()
    assert view.tolist() == [POISON] * 4
    assert region.closed
    assert memory.regions == []


def test_a_refused_write_is_not_enqueued(memory, region):
    with pytest.raises(ValueError, match="lie within"):
        region.write(5, [full(1)])
    assert memory.work == []


def test_a_server_would_open_it_by_its_handle(memory, region):
    assert memory.opened(region.handle) is region
    region.close()
    with pytest.raises(KeyError):
        memory.opened(region.handle)


def test_names_differ_among_memories(memory, region):
    assert ScriptedMemory().create(1).name != region.name
    assert ScriptedMemory(device_id=3).create(1).device_id == 3


def test_a_limit_on_what_there_is():
    memory = ScriptedMemory(max_nbytes=100)
    first = memory.create(60)
    with pytest.raises(MemoryExhaustedError, match="no region of 41 bytes: 60 of 100"):
        memory.create(41)
    memory.create(40)
    first.close()
    memory.create(60)


def test_one_that_plays_a_forked_child_refuses_all(memory, region):
    memory.forked = True
    for refused in (
        lambda: memory.create(1),
        lambda: region.write(0, []),
        lambda: region.view(0, (1,), BYTE, None, writable=False),
        region.fence,
    ):
        with pytest.raises(WrongContextError):
            refused()
    region.close()
    assert not region.closed


def test_an_automatic_one_is_done_at_once():
    region = ScriptedMemory(automatic=True).create(8)
    work = region.write(0, [full(1)])
    assert work.done()
    assert region.fence().done()
    assert read(region) == [1] * 4


def test_it_does_not_need_pytest():
    code = "import sys, tritonasync.testing.scripted; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
