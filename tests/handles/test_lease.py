"""Which inputs are lent, in which shapes; who holds the slot meanwhile."""

import gc

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, spec
from tritonasync.core.errors import ConfigurationError, InvalidInputError, UsageError
from tritonasync.core.ports import Block
from tritonasync.core.values import Reply, TensorSpec
from tritonasync.handles.lease import slots_of
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.signature import signature_of
from tritonasync.memory.lease import Lease, Lessor
from tritonasync.memory.system import SystemMemory

pytestmark = pytest.mark.anyio

IMAGE = ("IMAGE", "FP32", (-1, 3, 4))
TEXT = ("TEXT", "BYTES", (-1, 1))
FREE = ("FREE", "INT8", (-1, -1, 2))
EXTRA = TensorSpec("EXTRA", "FP16", (-1, 5), optional=True)


def lent(*inputs, rows=2, shapes=None, **options):
    found, nbytes = slots_of(signature_of(spec(inputs, **options), "safe"), rows, shapes)
    return {each.name: (each.shape, str(each.dtype), each.at) for each in found}, nbytes


def test_inputs_of_fixed_shape_are_lent_aligned_one_behind_the_other():
    assert lent(IMAGE, ("B", "UINT8", (-1, 1)), ("C", "FP64", (-1, 40))) == (
        {
            "IMAGE": ((2, 3, 4), "float32", 0),
            "B": ((2, 1), "uint8", 256),
            "C": ((2, 40), "float64", 512),
        },
        512 + 768,
    )


def test_strings_and_optional_inputs_are_left_out():
    assert set(lent(IMAGE, TEXT, EXTRA)[0]) == {"IMAGE"}
    assert lent(IMAGE, EXTRA, shapes={"EXTRA": [5]})[0]["EXTRA"] == ((2, 5), "float16", 256)


def test_a_free_axis_is_given():
    assert lent(FREE, shapes={"FREE": np.array([7, 2])})[0]["FREE"][0] == (2, 7, 2)


def test_a_model_without_a_batch_axis_has_no_rows():
    tensor = ("A", "FP32", (3,))
    assert lent(tensor, rows=None, max_batch_size=0)[0]["A"][0] == (3,)
    with pytest.raises(InvalidInputError, match="no batch axis: leave the rows out"):
        lent(tensor, rows=1, max_batch_size=0)


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ([IMAGE], {"rows": None}, "how many rows\\? 1 to 8"),
        ([IMAGE], {"rows": 0}, "from 1 to 8 \\(max_batch_size\\), not 0"),
        ([IMAGE], {"rows": 9}, "not 9"),
        ([IMAGE], {"rows": 1.5}, "not 1.5"),
        ([IMAGE], {"rows": True}, "not True"),
        ([IMAGE], {"shapes": {"IMAGE": (3, 5)}}, "expected shape \\[3, 4\\], got \\(3, 5\\)"),
        ([IMAGE], {"shapes": {"NOPE": (3,)}}, "no such input: 'NOPE'"),
        ([FREE], {}, "leaves an axis free: say which is wanted, shapes={'FREE': \\(…\\)}"),
        ([FREE], {"shapes": {"FREE": (-1, 2)}}, "got \\(-1, 2\\)"),
        ([FREE], {"shapes": {"FREE": (0, 2)}}, "got \\(0, 2\\)"),
        ([TEXT], {"shapes": {"TEXT": (1,)}}, "strings have no fixed size"),
        ([TEXT], {}, "no input that can be lent"),
        ([IMAGE], {"shapes": 5}, "shapes maps names of inputs to shapes, not 5"),
        ([IMAGE], {"shapes": {"IMAGE": 5}}, "got 5"),
        ([IMAGE], {"shapes": {"IMAGE": (3.0, 4)}}, "got \\(3.0, 4\\)"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, options, words):
    with pytest.raises(InvalidInputError, match=words):
        lent(*inputs, **options)


class OneSlot(Lessor):
    """Lends one slot of real memory."""

    def __init__(self, folder):
        super().__init__()
        self.region = SystemMemory(folder).create(65_536)
        self.given_back = 0
        self.orders = []

    async def lend(self, order):
        self.orders.append(order)
        return Lease(self, Block(self.region, 256, 65_280), order.nbytes, "a test")

    def wake(self):
        raise AssertionError

    def note_copy(self, nbytes):
        raise AssertionError("nothing is copied")

    def let_go(self, lease):
        self.given_back += 1
        lease.drained()

    def read(self):
        gc.collect()
        while self.notes:
            self.notes.popleft()()
        return self.given_back


class Echo:
    """Notes calls and gives their inputs back."""

    def __init__(self):
        self.calls = []

    async def infer(self, call):
        self.calls.append(call)
        return Reply("net", "1", {"OUT": call.inputs[0].parts[0]})


@pytest.fixture
def lessor(tmp_path):
    made = OneSlot(tmp_path)
    yield made
    made.region.close()


def handle(lessor, *inputs, invoker=None, lend=True, **options):
    return ModelHandle(
        "net",
        "",
        invoker or Echo(),
        FakeCatalog(spec(inputs or (IMAGE,), **options)),
        timeout_s=30.0,
        lend=lessor.lend if lend else None,
    )


async def test_the_arrays_are_writable_and_any_part_of_one_holds_the_slot(lessor):
    async with handle(lessor).lease(2) as slot:
        assert list(slot) == ["IMAGE"]
        assert len(slot) == 1
        assert slot["IMAGE"].shape == (2, 3, 4)
        assert repr(slot) == "<LeasedInputs IMAGE: float32[2, 3, 4]>"
        slot["IMAGE"][...] = 3
        kept = slot["IMAGE"][1]
        assert not lessor.read()
    assert repr(slot) == "<LeasedInputs given back>"
    assert not lessor.read()
    assert (kept == 3).all()
    del kept
    assert lessor.read() == 1


async def test_a_slot_is_sent_as_it_is_and_alone(lessor):
    echo = Echo()
    model = handle(lessor, invoker=echo)
    async with model.lease(2) as slot:
        await model(slot)
        await model({"IMAGE": slot["IMAGE"]})  # as any array
        assert echo.calls[0].inputs[0].parts[0] is slot["IMAGE"]
    assert [call.alone for call in echo.calls] == [True, False]
    echo.calls.clear()


async def test_other_inputs_go_with_a_slot(lessor):
    echo = Echo()
    model = handle(lessor, IMAGE, TEXT, invoker=echo)
    async with model.lease(2) as slot:
        await model(slot, TEXT=[["a"], ["b"]])
    (call,) = echo.calls
    assert [tensor.name for tensor in call.inputs] == ["IMAGE", "TEXT"]
    assert call.alone
    echo.calls.clear()


async def test_an_error_within_gives_the_slot_back(lessor):
    with pytest.raises(LookupError):
        async with handle(lessor).lease(1):
            raise LookupError
    assert lessor.read() == 1


async def test_a_wrong_lease_takes_nothing(lessor):
    with pytest.raises(InvalidInputError):
        await handle(lessor).lease(9).__aenter__()
    assert not lessor.orders


async def test_a_lease_is_entered_once(lessor):
    lending = handle(lessor).lease(1)
    async with lending:
        with pytest.raises(UsageError, match="entered once"):
            await lending.__aenter__()


async def test_a_handle_without_memory_says_so(lessor):
    with pytest.raises(UsageError, match="without shared memory"):
        await handle(lessor, lend=False).lease(1).__aenter__()


async def test_the_order_carries_what_the_user_said(lessor):
    async with handle(lessor).lease(1, memory="cuda", when_full="raise", timeout_s=5):
        pass
    (order,) = lessor.orders
    assert (order.memory, order.when_full, order.model) == ("cuda", "raise", "net")
    assert order.deadline.timeout_s == 5
    assert order.nbytes == 256


@pytest.mark.parametrize(
    "options", [{"memory": "gpu"}, {"when_full": "x"}, {"when_full": []}, {"timeout_s": -1}]
)
def test_options_that_make_no_sense_are_refused(lessor, options):
    with pytest.raises(ConfigurationError):
        handle(lessor).lease(1, **options)


# --- what an answer's arrays can do ---------------------------------------------------------------


async def test_a_copy_may_be_changed_and_shares_nothing(lessor):
    model = handle(lessor)
    sent = np.ones((2, 3, 4), np.float32)
    out = await model(IMAGE=sent, copy=True)
    assert not np.shares_memory(out["OUT"], sent)
    item = await model.one(IMAGE=sent[0], copy=True)
    assert item["OUT"].shape == (3, 4)
    item["OUT"][0] = 5


async def test_released_outputs_are_empty(lessor):
    out = await handle(lessor)(IMAGE=np.ones((2, 3, 4), np.float32))
    out.release()
    assert not out
    with pytest.raises(KeyError, match="gave no output 'OUT'"):
        out["OUT"]
