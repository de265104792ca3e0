"""Who is compared: each client's title, and how its process is started.

Owns: the list. Refuses to know: what is measured, and when.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import Child
from benchmarks.clients.perf import BINARY
from benchmarks.environments import (
    Environment,
    around_tritonclient,
    load_generator,
    pytriton,
)
from tritonasync.serving import TritonRuntime
from tritonasync.serving.once import Progress

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A client.

    Attributes:
        name: As in workloads and results.
        title: As in the report.
        how: What one of its callers does, for the report.
        environment: Makes what it lives in; ``None`` for the session's own.
    """

    name: str
    title: str
    how: str
    environment: Callable[[], Environment] | None = None


ONE_TENSOR = "InferInput, set_data_from_numpy, infer, as_numpy"
UNBATCHED = "the same with TritonPool(url, batching=None"
EACH_ALONE = f'{UNBATCHED}, transport="unary"'
NEW = "a new pool for each workload"

PEERS = (
    Peer("ours", "tritonasync", "TritonPool(url): model.one(…) for a row, model(…) for a batch"),
    Peer(
        "ours-wire",
        "tritonasync, no shared memory",
        'the same with TritonPool(url, shared_memory="off")',
    ),
    Peer(
        "ours-leased",
        "tritonasync, rows in place",
        "model.lease for as many rows as make a batch, written before the round, as by a producer "
        "that writes in place; then model(slot) again and again: as many rows are out as elsewhere",
    ),
    Peer(
        "ours-leased-anew",
        "tritonasync, a lease a call",
        "the same with a lease for each call, and the rows copied into it by the caller: in its "
        "time what a producer does, which is in nobody else's",
    ),
    Peer(
        "ours-unbatched",
        "tritonasync, batching=None",
        "the same with TritonPool(url, batching=None)",
    ),
    Peer("ours-placed", "tritonasync, placed", f'{EACH_ALONE}, shared_memory="system"), {NEW}'),
    Peer("ours-unplaced", "tritonasync, on the wire", f'{EACH_ALONE}, shared_memory="off"), {NEW}'),
    Peer("ours-unary", "tritonasync, calls", f'{UNBATCHED}, transport="unary")'),
    Peer("ours-stream", "tritonasync, streams", f'{UNBATCHED}, transport="stream")'),
    Peer(
        "ours-one-stream",
        "tritonasync, one stream",
        f'{UNBATCHED}, transport="stream", streams=StreamPolicy(max_streams=1))',
    ),
    Peer(
        "ours-batched-stream",
        "tritonasync, batches on streams",
        'the same with TritonPool(url, transport="stream")',
    ),
    Peer(
        "ours-auto",
        "tritonasync, auto",
        f'{UNBATCHED}, transport="auto"), {NEW}: what it has decided for one load is not known '
        "to the next",
    ),
    Peer("aio", "tritonclient grpc.aio", f"one client: {ONE_TENSOR}"),
    Peer(
        "aio-shared",
        "tritonclient, shared memory",
        "grpc.aio and tritonclient.utils.shared_memory: a region for each caller, registered "
        "before the round: set_shared_memory_region, infer, get_contents_as_numpy, a view",
    ),
    Peer(
        "stream",
        "tritonclient stream_infer",
        "one stream of grpc.aio, open from the start; answers find their callers by request id, "
        "responses of decoupled models a queue for each request",
    ),
    Peer(
        "threads", "tritonclient in threads", f"one blocking client, up to 64 threads: {ONE_TENSOR}"
    ),
    Peer(
        "pytriton",
        "PyTriton AsyncioModelClient",
        "a gRPC client a model: infer_sample for a row, infer_batch for a batch",
        pytriton,
    ),
    Peer(
        "tritony",
        "tritony",
        "create_with_asyncio a model, with its defaults: aio_infer",
        lambda: around_tritonclient("tritony", "tritony==0.0.23"),
    ),
    Peer(
        "async-batcher",
        "async-batcher + grpc.aio",
        "AsyncBatcher.process: np.stack and one infer; the model's batch size, 4 batches at once, "
        "no queue time",
        lambda: around_tritonclient("async-batcher", "async-batcher==0.2.2"),
    ),
    Peer(
        "batched",
        "batched + grpc.aio",
        "aio.dynamically: np.stack and one infer; the model's batch size, timeout_ms=0.2",
        lambda: around_tritonclient("batched", "batched==0.1.5"),
    ),
    Peer(
        "perf",
        "perf_analyzer (C++)",
        "-i grpc, 3 windows of a third of the round; unbatched with up to 64 out (its best), whole "
        "batches with -b; never --streaming",
    ),
)
TITLES = {peer.name: peer.title for peer in PEERS}


class Starter:
    """Starts clients' processes.

    Args:
        url: The server's gRPC port.
        runtime: The server's; the load generator takes libraries from it.
        scratch: A folder for the length of the run.
        progress: Told when an environment is made.
    """

    def __init__(self, url: str, runtime: TritonRuntime, scratch: Path, progress: Progress) -> None:
        self._url = url
        self._runtime = runtime
        self._scratch = scratch
        self._progress = progress
        self._ready: dict[str, tuple[str, Mapping[str, str]]] = {}

    def prepare(self, name: str) -> None:
        """Make what the client lives in, if need be.

        Raises:
            EnvironmentMissingError: It cannot be made.
        """
        if name not in self._ready:
            self._ready[name] = self._home(name)

    def start(self, name: str, *, precise: bool) -> Child:
        """Start a client that was prepared.

        Args:
            name: The client's.
            precise: Whether its event loop's timers are of microseconds.

        Raises:
            ChildError: It did not come up.
        """
        python, variables = self._ready[name]
        command = [python, "-m", "benchmarks.clients.serve", name, self._url]
        if precise:
            command.append("--precise")
        environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
        return Child(command, environment, ROOT)

    def _home(self, name: str) -> tuple[str, Mapping[str, str]]:
        """Return the interpreter and the variables of a client."""
        if name == "perf":
            binary, variables = load_generator(self._runtime, self._scratch, self._progress)
            return sys.executable, {**variables, BINARY: str(binary)}
        environment = next(peer.environment for peer in PEERS if peer.name == name)
        if environment is None:
            return sys.executable, {}
        return str(environment().ensure(self._progress) / "bin" / "python"), {}
