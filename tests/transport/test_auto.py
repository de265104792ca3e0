"""Each call the faster way, where both are harmless; where that is not known, by itself."""

from __future__ import annotations

import asyncio
import re

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.transport.scripted import Gated, RefusalError, make_endpoint, of_version
from tests.transport.scripted_streams import (
    Client,
    StreamServer,
    call,
    echo,
    negated,
    turns,
    until,
    value_of,
)
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ModelFailedError
from tritonasync.core.values import Call, InputTensor, SequenceStep
from tritonasync.transport import auto
from tritonasync.transport.backend import EndpointBackend
from tritonasync.transport.choice import BLOCK, FIRST_AFTER

pytestmark = pytest.mark.anyio

ASKS = FIRST_AFTER + 1
"""Calls of which the last one has the server asked."""

ENOUGH = FIRST_AFTER + 8 * BLOCK
"""Calls one after the other, the first trial among them."""


def index(*names: str):
    """The models that a server says it has."""
    message = pb.RepositoryIndexResponse()
    for name in names:
        message.models.add(name=name, version="1", state="READY")

    async def answer(_: bytes) -> bytes:
        return message.SerializeToString()

    return answer


async def config(message: bytes) -> bytes:
    """The configuration of a model, which is decoupled if its name says so."""
    name = pb.ModelConfigRequest.FromString(message).name
    answer = pb.ModelConfigResponse()
    answer.config.name = name
    answer.config.model_transaction_policy.decoupled = "decoupled" in name
    return answer.SerializeToString()


def serve(script=echo, **methods) -> StreamServer:
    return StreamServer(
        script,
        **{"ModelInfer": negated, "RepositoryIndex": index("m"), "ModelConfig": config, **methods},
    )


def connect(server, **options) -> Client:
    return Client(server.target, transport="auto", **options)


async def make_calls(client, count: int, *, callers: int = 1, **options) -> list[int]:
    """Make so many calls; return the answers, which are negative where a call went by itself."""
    answers = []
    for _ in range(0, count, callers):
        answers += await asyncio.gather(*[client.call(1, **options) for _ in range(callers)])
    return answers


async def until_asked(client, server, times: int = 1) -> None:
    await until(lambda: server.count("RepositoryIndex") == times)
    await until(lambda: client.backend._auto._asking is None)


def why(client) -> str:
    (choice,) = client.backend.statistics().choices
    return choice.why


async def test_a_short_program_asks_nothing_and_opens_no_stream():
    async with serve() as server, connect(server) as client:
        assert set(await make_calls(client, FIRST_AFTER - 1)) == {-1}
        assert server.count("RepositoryIndex") == 0
        assert server.streams == []
        assert why(client) == f"the other way is tried after {FIRST_AFTER} calls"


async def test_streams_are_tried_where_no_model_is_decoupled():
    async with serve(RepositoryIndex=index("m", "n")) as server, connect(server) as client:
        assert set(await make_calls(client, ASKS)) == {-1}
        await until_asked(client, server)
        assert why(client) == "the other way is being tried"
        answers = await make_calls(client, ENOUGH)
        assert set(answers) == {1, -1}
        assert server.count("ModelConfig") == 2
        assert re.match(r"in trial \d a call took", why(client))
        (choice,) = client.backend.statistics().choices
        assert (choice.model, choice.up_to_nbytes) == ("m", 15)
        assert choice.calls == ASKS + ENOUGH


async def test_the_faster_way_is_taken():
    async def slow(message: bytes) -> bytes:
        await asyncio.sleep(0.01)
        return await negated(message)

    async with serve(ModelInfer=slow) as server, connect(server) as client:
        await make_calls(client, ASKS + 31, callers=32)
        await until_asked(client, server)
        await make_calls(client, 1_600, callers=32)
        (choice,) = client.backend.statistics().choices
        assert choice.using == "stream"
        assert choice.stream_s < choice.unary_s
        assert set(await make_calls(client, 32)) == {1}


REFUSING = RefusalError(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted")


async def refuse(_: bytes) -> bytes:
    raise REFUSING


DOUBTS = {
    "a decoupled model": (
        {"RepositoryIndex": index("m", "decoupled_one")},
        "the server has a decoupled model, 'decoupled_one'",
    ),
    "many models": (
        {"RepositoryIndex": index(*[f"m{n}" for n in range(65)])},
        "the server has more than 64 models",
    ),
    "no index": (
        {"RepositoryIndex": refuse},
        "the server did not say which models it has: AccessDeniedError",
    ),
    "no configuration": (
        {"ModelConfig": refuse},
        "the server did not say which models it has: AccessDeniedError",
    ),
}


@pytest.mark.parametrize("doubt", DOUBTS)
async def test_streams_are_not_used_where_that_may_do_harm(doubt):
    methods, reason = DOUBTS[doubt]
    async with serve(**methods) as server, connect(server) as client:
        await make_calls(client, ASKS)
        await until_asked(client, server)
        assert set(await make_calls(client, ENOUGH)) == {-1}
        assert server.streams == []
        assert server.count("RepositoryIndex") == 1
        assert why(client) == reason


async def test_a_decoupled_call_ends_the_use_of_streams_by_others():
    async with serve() as server, connect(server) as client:
        await make_calls(client, ASKS)
        await until_asked(client, server)
        assert await client.read(5) == [5]
        assert set(await make_calls(client, ENOUGH)) == {-1}
        assert why(client) == "decoupled models are called on streams, which bear no other calls"


async def test_calls_that_can_be_cancelled_by_themselves_go_by_themselves():
    methods = {"ServerMetadata": of_version("2.60.0")}
    server = serve(**methods)
    async with server, connect(server, cancel_on_server=True) as client:
        await make_calls(client, 1)
        await until(lambda: client.backend.statistics().server_version)
        assert set(await make_calls(client, ENOUGH)) == {-1}
        assert why(client) == "calls of their own can be cancelled on this server"
        assert server.count("RepositoryIndex") == 0


async def test_calls_with_headers_of_their_own_go_by_themselves():
    async with serve() as server, connect(server, headers=dict) as client:
        assert set(await make_calls(client, ENOUGH)) == {-1}
        assert server.count("RepositoryIndex") == 0


async def test_calls_to_a_name_with_many_servers_go_by_themselves():
    async with serve() as server:
        endpoint = make_endpoint(f"dns:///{server.target}")
        backend = EndpointBackend(endpoint, transport="auto")
        answers = [value_of(await backend.infer(call(1))) for _ in range(FIRST_AFTER + 9)]
        assert set(answers) == {-1}
        assert server.count("RepositoryIndex") == 0
        await backend.aclose(Deadline.after(9))


@pytest.mark.parametrize(
    "options",
    [
        {"request_id": "mine"},
        {"sequence": SequenceStep(3)},
        {"parameters": (("sequence_id", 3),)},
    ],
)
async def test_calls_with_an_id_and_steps_of_sequences_go_by_themselves(options):
    async with serve() as server, connect(server) as client:
        assert set(await make_calls(client, ENOUGH, **options)) == {-1}
        assert client.backend.statistics().choices == ()
        assert server.streams == []


async def test_asking_holds_up_no_call_and_until_the_answer_none_goes_on_a_stream():
    gated = Gated()
    async with serve(RepositoryIndex=gated) as server, connect(server) as client:
        assert set(await make_calls(client, ENOUGH)) == {-1}
        assert server.count("RepositoryIndex") == 1
        gated.go.set()


async def asked_anew(client, server):
    """Have the trials begun, and then the server be another one, perhaps."""
    client.backend.watch_reconnections(lambda: None)
    await make_calls(client, ASKS)
    await until_asked(client, server)
    assert 1 in await make_calls(client, ENOUGH)
    client.backend.endpoint.link._peer.on_reconnected()


async def test_a_server_that_may_be_another_one_is_asked_anew():
    async with serve() as server, connect(server) as client:
        await asked_anew(client, server)
        server.methods["RepositoryIndex"] = index("decoupled_one")
        assert "asked anew" in why(client)
        assert set(await make_calls(client, 1)) == {-1}
        await until_asked(client, server, 2)
        assert set(await make_calls(client, ENOUGH)) == {-1}
        assert why(client) == "the server has a decoupled model, 'decoupled_one'"


async def test_what_was_asked_of_the_server_before_is_not_believed_of_the_next():
    gated = Gated()

    async def gated_index(message: bytes) -> bytes:
        await gated(message)
        return await index("m")(message)

    async with serve(RepositoryIndex=gated_index) as server, connect(server) as client:
        client.backend.watch_reconnections(lambda: None)
        await make_calls(client, ASKS)
        await gated.arrived.acquire()
        client.backend.endpoint.link._peer.on_reconnected()
        server.methods["RepositoryIndex"] = index("decoupled_one")
        gated.go.set()
        await until_asked(client, server, 1)
        assert set(await make_calls(client, ENOUGH)) == {-1}
        assert server.count("RepositoryIndex") == 2
        assert server.streams == []


async def test_an_answer_is_asked_for_again_and_again(monkeypatch):
    monkeypatch.setattr(auto, "_ASK_AGAIN_S", 0.05)
    monkeypatch.setattr(auto, "_VALID_S", 0.1)
    async with serve() as server, connect(server) as client:
        await make_calls(client, ASKS)
        await until_asked(client, server)
        assert 1 in await make_calls(client, ENOUGH)
        server.methods["RepositoryIndex"] = index("decoupled_one")
        await asyncio.sleep(0.15)
        await make_calls(client, 1)
        await until(lambda: "decoupled_one" in why(client))
        assert set(await make_calls(client, ENOUGH)) == {-1}


async def test_an_answer_that_is_not_renewed_holds_no_longer(monkeypatch):
    monkeypatch.setattr(auto, "_VALID_S", 0.1)
    async with serve() as server, connect(server) as client:
        await make_calls(client, ASKS)
        await until_asked(client, server)
        await asyncio.sleep(0.15)
        assert set(await make_calls(client, ENOUGH)) == {-1}


async def test_models_and_sizes_are_chosen_for_by_themselves_up_to_a_number(monkeypatch):
    monkeypatch.setattr(auto, "_MAX_CHOICES", 3)
    async with serve() as server, connect(server) as client:
        for options in ({}, {"model": "n"}, {"pad": 1 << 12}, {"pad": 1 << 14}):
            assert await make_calls(client, 2, **options) == [-1, -1]
        choices = client.backend.statistics().choices
        assert [(choice.model, choice.up_to_nbytes) for choice in choices] == [
            ("m", 15),
            ("n", 15),
            ("m", 4**7 - 1),
        ]


async def test_strings_count_as_some_bytes_each():
    tensor = InputTensor("VALUE", "BYTES", (100,), (np.array([b"x"] * 100, object),))
    assert auto._nbytes(Call("m", "", (tensor,))) == 3_200


async def test_errors_reach_the_caller_and_end_a_trial():
    def script(stream, asked):
        stream.refuse(asked, "it raised")

    async with serve(script) as server, connect(server) as client:
        await make_calls(client, ASKS)
        await until_asked(client, server)
        with pytest.raises(ModelFailedError):
            await make_calls(client, 1)
        assert set(await make_calls(client, 64)) == {-1}


async def test_a_trial_overtaken_by_a_decoupled_call_goes_on_by_itself():
    async with serve() as server, connect(server) as client:
        await make_calls(client, ASKS)
        await until_asked(client, server)
        trial = client.call(1, pad=0)
        reader = client.read(7)
        await turns(1)
        assert await trial in {1, -1}
        assert await reader == [7]
        for stream in server.streams:
            assert {asked.value for asked in stream.asked} in ({1}, {7})


async def test_closing_while_the_server_is_asked_leaves_nothing():
    gated = Gated()
    before = asyncio.all_tasks()
    async with serve(RepositoryIndex=gated) as server:
        client = connect(server)
        await make_calls(client, ASKS)
        await gated.arrived.acquire()
        closing = asyncio.create_task(client.backend.aclose(Deadline.after(9)))
        await asyncio.sleep(0.05)
        gated.go.set()
        await closing
        left = {task for task in asyncio.all_tasks() - before if "AutoInvoker" in repr(task)}
        assert left == set()
