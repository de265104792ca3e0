"""The gate lets in who may call, and closing waits for those inside."""

import asyncio
import os
import warnings

import pytest

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import PoolClosedError, WrongContextError
from tritonasync.core.values import Call, Reply
from tritonasync.transport.gate import Gate, GateState

CALL = Call("m", "", ())
REPLY = Reply("m", "1", {})


class Stage:
    """Answers when told to."""

    def __init__(self):
        self.go = asyncio.Event()
        self.forgotten = []

    async def infer(self, call):
        await self.go.wait()
        return REPLY

    async def describe(self, model, version, deadline):
        return (model, version, deadline)

    async def renew(self, model, version, deadline):
        return await self.describe(model, version, deadline)

    def known(self, model, version):
        return None

    def forget(self, model):
        self.forgotten.append(model)


def open_gate():
    gate, stage = Gate(), Stage()
    gate.open()
    gate.lead_to(stage, stage)
    return gate, stage


@pytest.mark.anyio
async def test_calls_pass_an_open_gate():
    gate, stage = open_gate()
    stage.go.set()
    assert await gate.infer(CALL) is REPLY
    assert await gate.describe("m", "2", NEVER) == ("m", "2", NEVER)
    gate.forget("m")
    assert stage.forgotten == ["m"]


@pytest.mark.anyio
async def test_a_gate_that_was_never_opened_says_how_to_open_it():
    gate = Gate()
    with pytest.raises(PoolClosedError, match="async with"):
        await gate.infer(CALL)
    with pytest.raises(PoolClosedError, match="async with"):
        await gate.describe("m", "", NEVER)
    gate.forget("m")


@pytest.mark.anyio
async def test_closing_waits_for_those_inside_and_refuses_others():
    gate, stage = open_gate()
    inside = asyncio.create_task(gate.infer(CALL))
    await asyncio.sleep(0)
    closing = asyncio.create_task(gate.close(NEVER))
    await asyncio.sleep(0)
    with pytest.raises(PoolClosedError, match="closing"):
        await gate.infer(CALL)
    assert not closing.done()
    assert gate.inside == 1
    stage.go.set()
    await closing
    assert inside.done()
    gate.shut()
    with pytest.raises(PoolClosedError, match="closed"):
        await gate.infer(CALL)


@pytest.mark.anyio
async def test_closing_gives_up_at_its_deadline():
    gate, stage = open_gate()
    inside = asyncio.create_task(gate.infer(CALL))
    await asyncio.sleep(0)
    await gate.close(Deadline.after(0.05))
    assert gate.inside == 1
    stage.go.set()
    await inside


@pytest.mark.anyio
async def test_a_cancelled_call_leaves_the_gate():
    gate, _ = open_gate()
    inside = asyncio.create_task(gate.infer(CALL))
    await asyncio.sleep(0)
    inside.cancel()
    await asyncio.wait({inside})
    assert gate.inside == 0
    await gate.close(NEVER)


@pytest.mark.anyio
async def test_a_gate_opens_once():
    gate, _ = open_gate()
    with pytest.raises(PoolClosedError, match="open already"):
        gate.open()
    await gate.close(NEVER)
    gate.shut()
    with pytest.raises(PoolClosedError, match="make a new one"):
        gate.open()


def test_another_event_loop_is_refused():
    async def make():
        return open_gate()[0]

    gate = asyncio.run(make())
    with pytest.raises(WrongContextError, match="another event loop"):
        asyncio.run(gate.infer(CALL))
    assert gate.state is GateState.OPEN


def test_no_event_loop_is_refused():
    with pytest.raises(WrongContextError, match="asyncio"):
        Gate().open()


@pytest.mark.anyio
async def test_a_forked_child_is_refused():
    gate, _ = open_gate()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        child = os.fork()
    if not child:
        try:
            gate.check()
        except WrongContextError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert b"fork" in os.read(reader, 1000)
    os.close(reader)
    os.waitpid(child, 0)  # noqa: ASYNC222 - it has ended: its end of the pipe is closed
    gate.check()


# --- calls with many responses -------------------------------------------------------------------


class Given:
    """Responses that come when told to, and what was asked of them."""

    def __init__(self, count=2):
        self.count = count
        self.go = asyncio.Event()
        self.asked = 0
        self.left = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.asked += 1
        await self.go.wait()
        self.count -= 1
        if self.count < 0:
            raise StopAsyncIteration
        return REPLY

    def leave(self):
        self.left += 1


class Streamer:
    def __init__(self, given):
        self.given = given
        self.calls = []

    def stream(self, call):
        self.calls.append(call)
        return self.given


def streaming_gate(count=2):
    gate, stage, streamer = Gate(), Stage(), Streamer(Given(count))
    gate.open()
    gate.lead_to(stage, stage, streamer=streamer)
    return gate, streamer


@pytest.mark.anyio
async def test_responses_pass_an_open_gate():
    gate, streamer = streaming_gate()
    streamer.given.go.set()
    assert [reply async for reply in gate.stream(CALL)] == [REPLY, REPLY]
    assert streamer.calls == [CALL]
    assert gate.inside == 0


@pytest.mark.anyio
async def test_a_stream_is_inside_while_its_first_response_is_awaited_and_not_after_it():
    gate, streamer = streaming_gate()
    responses = gate.stream(CALL)
    assert gate.inside == 0
    first = asyncio.create_task(anext(responses))
    await asyncio.sleep(0)
    assert gate.inside == 1
    closing = asyncio.create_task(gate.close(NEVER))
    await asyncio.sleep(0)
    assert not closing.done()
    streamer.given.go.set()
    assert await first is REPLY
    await closing
    assert gate.inside == 0
    assert [reply async for reply in responses] == [REPLY]  # what was begun may be read to its end


@pytest.mark.anyio
@pytest.mark.parametrize("failure", ["cancelled", "none"])
async def test_a_first_response_that_never_comes_leaves_the_gate(failure):
    gate, streamer = streaming_gate(count=0)
    first = asyncio.create_task(anext(gate.stream(CALL), None))
    await asyncio.sleep(0)
    if failure == "cancelled":
        first.cancel()
    streamer.given.go.set()
    await asyncio.wait({first})
    assert gate.inside == 0
    await gate.close(NEVER)


@pytest.mark.anyio
async def test_a_stream_that_did_not_begin_before_closing_is_refused_however_often_it_is_asked():
    gate, streamer = streaming_gate()
    streamer.given.go.set()
    responses = gate.stream(CALL)
    await gate.close(NEVER)
    with pytest.raises(PoolClosedError, match="closing"):
        gate.stream(CALL)
    for _ in range(2):
        with pytest.raises(PoolClosedError, match="closing"):
            await anext(responses)
    assert streamer.given.asked == 0
    assert gate.inside == 0


@pytest.mark.anyio
async def test_leaving_passes_the_gate():
    gate, streamer = streaming_gate()
    responses = gate.stream(CALL)
    assert aiter(responses) is responses
    responses.leave()
    assert streamer.given.left == 1


def test_a_stream_is_refused_in_another_event_loop():
    async def make():
        gate, _ = streaming_gate()
        return gate, gate.stream(CALL)

    gate, responses = asyncio.run(make())

    async def elsewhere():
        with pytest.raises(WrongContextError, match="another event loop"):
            gate.stream(CALL)
        with pytest.raises(WrongContextError, match="another event loop"):
            await anext(responses)

    asyncio.run(elsewhere())
