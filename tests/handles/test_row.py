"""Items that land in one batch: the short way, and one reading of the reply for all of them."""

import asyncio

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import DeadlineExceededError, InvalidRequestError
from tritonasync.core.offload import LONG_NBYTES
from tritonasync.core.values import Reply, TensorSpec
from tritonasync.handles.classifier import Classifier
from tritonasync.handles.encoder import Encoder

pytestmark = pytest.mark.anyio

SERVED = spec([("X", "FP32", (-1, 4))], [("Y", "FP32", (-1, 4))])
ITEM = np.array([0, 1, 2, 3], np.float32)


class FakeLane:
    """Has items wait until a test answers the batch; answers alone what it is told to."""

    def __init__(self):
        self.valid = True
        self.entered = []
        self.waiting = []
        self.turned_away = False

    def enter(self, arrays):
        if self.turned_away:
            return None
        self.entered.append(arrays)
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]

    def land(self, outputs):
        waiting, self.waiting = self.waiting, []
        reply = Reply("net", "1", outputs)
        for row, future in enumerate(waiting):
            future.set_result((reply, row))


class Lanes:
    """Where handles find lanes: one for each time."""

    def __init__(self, *, none=False):
        self.none = none
        self.asked = []
        self.lanes = {}

    def __call__(self, call, timeout_s):
        self.asked.append((call, timeout_s))
        return None if self.none else self.lanes.setdefault(timeout_s, FakeLane())


def made(kind=Classifier, served=SERVED, lanes=None, model=None, catalog=None, **options):
    invoker = FakeInvoker(model or (lambda call: {"Y": tensor(call, "X")}))
    catalog = catalog or FakeCatalog(served)
    lanes = lanes or Lanes()
    handle = kind("net", "", invoker, catalog, timeout_s=30.0, lane=lanes, **options)
    return handle, invoker, lanes


async def opened(kind=Classifier, **options):
    """A handle whose first item went the long way."""
    handle, invoker, lanes = made(kind, **options)
    await handle.one(ITEM)
    return handle, invoker, lanes


async def entered(handle, lane, count, *, item=ITEM, **options):
    tasks = [asyncio.ensure_future(handle.one(item, **options)) for _ in range(count)]
    while len(lane.waiting) < count:
        await asyncio.sleep(0)
    return tasks


async def test_the_first_item_goes_the_long_way_and_the_others_the_short_one():
    handle, invoker, lanes = await opened(activation="none")
    ((call, timeout_s),) = lanes.asked
    assert (call.rows, call.outputs, timeout_s) == (1, (), 30.0)
    tasks = await entered(handle, lanes.lanes[30.0], 3)
    scores = np.eye(3, 4, dtype=np.float32)
    lanes.lanes[30.0].land({"Y": scores})
    assert [found.index for found in await asyncio.gather(*tasks)] == [0, 1, 2]
    assert len(invoker.calls) == 1, "the first, and no other"


async def test_a_reply_is_read_once_for_all_items_in_it():
    handle, _, lanes = await opened()
    read, times = handle._read, []
    handle._read = lambda *given: times.append(given[2]) or read(*given)
    tasks = await entered(handle, lanes.lanes[30.0], 5)
    lanes.lanes[30.0].land({"Y": np.arange(20, dtype=np.float32).reshape(5, 4)})
    found = await asyncio.gather(*tasks)
    assert times == [5]
    assert all(each.scores.base is found[0].scores.base for each in found)
    await asyncio.sleep(0)
    assert handle._latest is None, "not kept: it may lie in shared memory"


async def test_each_time_has_a_way_of_its_own():
    handle, invoker, lanes = await opened()
    await handle.one(ITEM, timeout_s=3)
    assert set(lanes.lanes) == {30.0, 3}
    (task,) = await entered(handle, lanes.lanes[3], 1, timeout_s=3)
    assert not lanes.lanes[30.0].waiting
    lanes.lanes[3].land({"Y": ITEM[None]})
    await task
    assert len(invoker.calls) == 2


@pytest.mark.parametrize(
    "item", [[0, 1, 2, 3], ITEM.astype(np.float16), (0, 1, 2, 3)], ids=["list", "cast", "tuple"]
)
async def test_what_must_be_converted_first_opens_no_way(item):
    handle, _, lanes = made()
    await handle.one(item)
    assert not lanes.asked


async def test_what_a_lane_turns_away_goes_the_long_way():
    handle, invoker, lanes = await opened()
    lanes.lanes[30.0].turned_away = True
    assert (await handle.one(ITEM)).index == 3
    assert len(invoker.calls) == 2


async def test_what_a_lane_gives_up_goes_the_long_way():
    handle, invoker, lanes = await opened()
    (task,) = await entered(handle, lanes.lanes[30.0], 1)
    lanes.lanes[30.0].waiting[0].set_result(None)
    assert (await task).index == 3
    assert len(invoker.calls) == 2


async def test_where_there_is_no_way_it_is_looked_for_once():
    handle, invoker, lanes = made(lanes=Lanes(none=True))
    for _ in range(3):
        await handle.one(ITEM)
    assert len(lanes.asked) == 1
    assert len(invoker.calls) == 3


async def test_a_reloaded_model_is_bound_anew():
    """The lane says that it is over; then the item is checked against what is served now."""
    catalog = FakeCatalog(SERVED)
    handle, _, lanes = await opened(catalog=catalog)
    lanes.lanes[30.0].turned_away = True
    catalog.served = spec([("X", "FP32", (-1, 4))], [("Z", "FP32", (-1, 4))])
    catalog.forget("net")
    handle._invoker.model = lambda call: {"Z": tensor(call, "X")[:, ::-1]}
    assert (await handle.one(ITEM)).index == 0
    assert len(lanes.asked) == 2, "and a way opened for it"


async def test_an_item_of_a_model_that_changed_has_the_signature_asked_for_again():
    catalog = FakeCatalog(SERVED)
    handle, _, lanes = await opened(catalog=catalog)
    (task,) = await entered(handle, lanes.lanes[30.0], 1)
    lanes.lanes[30.0].waiting[0].set_exception(
        InvalidRequestError("no such input", code="INVALID_ARGUMENT", details="")
    )
    with pytest.raises(InvalidRequestError):
        await task
    assert catalog.known("net", "") is None


async def test_other_errors_pass():
    handle, _, lanes = await opened()
    (task,) = await entered(handle, lanes.lanes[30.0], 1)
    late = DeadlineExceededError("late", stage="queue", timeout_s=30.0)
    lanes.lanes[30.0].waiting[0].set_exception(late)
    with pytest.raises(DeadlineExceededError):
        await task


async def test_a_long_reply_is_read_row_by_row():
    """Nobody is held up by the reading of what is not theirs."""
    wide = LONG_NBYTES // 8
    served = spec([("X", "FP32", (-1, 4))], [("Y", "FP32", (-1, wide))])
    row = np.zeros((1, wide), np.float32)
    handle, _, lanes = await opened(served=served, model=lambda call: {"Y": row})
    read, times = handle._read, []
    handle._read = lambda *given: times.append(given[2]) or read(*given)
    tasks = await entered(handle, lanes.lanes[30.0], 3)
    scores = np.zeros((3, wide), np.float32)
    scores[range(3), range(3)] = 9
    lanes.lanes[30.0].land({"Y": scores})
    assert [found.index for found in await asyncio.gather(*tasks)] == [0, 1, 2]
    assert times == [1, 1, 1]


async def test_names_of_classes_that_are_not_known_any_more_are_asked_for_with_the_items_own_row():
    output = TensorSpec("Y", "FP32", (-1, 4), label_filename="names.txt")
    catalog = FakeCatalog(spec([("X", "FP32", (-1, 4))], [output]))
    catalog.class_names = ("a", "b", "c", "d")
    handle, _, lanes = await opened(catalog=catalog)
    assert len(catalog.questions) == 1
    catalog._labels = None  # as after a reload
    (task,) = await entered(handle, lanes.lanes[30.0], 1)
    lanes.lanes[30.0].land({"Y": np.array([[5, 0, 0, 0]], np.float32)})
    assert (await task).label == "a"
    question = catalog.questions[-1]
    np.testing.assert_array_equal(tensor(question.call, "X"), ITEM[None])


async def test_with_image_options_an_array_is_an_image_and_takes_the_long_way():
    served = spec([("X", "FP32", (-1, 1, 2, 2))], [("Y", "FP32", (-1, 4))])
    handle, _, lanes = made(
        served=served, scaling="unit", model=lambda call: {"Y": tensor(call, "X").reshape(-1, 4)}
    )
    await handle.one(np.zeros((2, 2), np.uint8))
    assert not lanes.asked


async def test_a_model_with_outputs_besides_is_asked_for_the_one_that_is_read():
    served = spec([("X", "FP32", (-1, 4))], [("Y", "FP32", (-1, 4)), ("LOG", "BYTES", (-1, 1))])
    handle, invoker, lanes = made(served=served)
    await handle.one(ITEM)
    assert invoker.calls[0].outputs == ("Y",)
    assert not lanes.asked, "a lane asks for all"


async def test_vectors_of_a_batch_are_scaled_together():
    handle, _, lanes = await opened(Encoder, normalize=True)
    tasks = await entered(handle, lanes.lanes[30.0], 2)
    lanes.lanes[30.0].land({"Y": np.array([[3, 4, 0, 0], [0, 0, 0, 2]], np.float32)})
    first, second = await asyncio.gather(*tasks)
    np.testing.assert_allclose(first, [0.6, 0.8, 0, 0], atol=1e-7)
    np.testing.assert_allclose(second, [0, 0, 0, 1])
    assert first.base is second.base


async def test_a_cancelled_item_leaves_the_others_theirs():
    handle, _, lanes = await opened()
    tasks = await entered(handle, lanes.lanes[30.0], 2)
    waiting = list(lanes.lanes[30.0].waiting)
    tasks[0].cancel()
    await asyncio.sleep(0)
    reply = Reply("net", "1", {"Y": np.eye(2, 4, dtype=np.float32)})
    waiting[1].set_result((reply, 1))
    assert (await tasks[1]).index == 1
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
