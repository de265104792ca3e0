"""A server's table of shared-memory regions, as its clients see it, for a scripted server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tests.transport.scripted import RefusalError, ScriptedServer, make_endpoint
from tritonasync.core.deadline import Deadline
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registrar import Registrar

KINDS = {"system": "SystemSharedMemory", "cuda": "CudaSharedMemory"}


@dataclass(frozen=True, eq=False)
class FakeRegion:
    """What a registrar sees of a region."""

    name: str
    kind: str = "system"
    nbytes: int = 4096
    device_id: int = 0

    @property
    def key(self) -> str:
        return f"/{self.name}" if self.kind == "system" else ""

    @property
    def handle(self) -> bytes:
        return b"" if self.kind == "system" else self.name.encode().ljust(64, b"\0")


class FakeLease:
    """Takes note of how often it was confirmed, and checks what the server knows by then."""

    def __init__(self, table: RegionTable | None = None, name: str = "") -> None:
        self.confirmed = 0
        self.event = asyncio.Event()
        self._table = table
        self._name = name

    def confirm(self) -> None:
        self.confirmed += 1
        self.event.set()
        if self._table is not None:
            assert self._name not in self._table.regions


def refuse(code: str, details: str) -> RefusalError:
    return RefusalError(grpc.StatusCode[code], details)


class RegionTable:
    """The rules of ``shared_memory_manager.cc``.

    Args:
        version: What the server says of itself, and how it treats regions in use: below 2.50 it
            unmaps them (``unmapped`` notes that), below 2.53 it refuses, later it puts off.

    Attributes:
        using: How many requests hold a region, by name.
        said: Every call, as method and name.
        next_answers: Refusals by method, each for one call; an event holds the answer up. With
            ``LOST`` what is asked is done all the same.
    """

    def __init__(self, version: str = "2.51.0") -> None:
        self.version = version
        self.regions: dict[str, Any] = {}
        self.using: Counter[str] = Counter()
        self.put_off: set[str] = set()
        self.unmapped: list[str] = []
        self.registered_twice: list[str] = []
        self.said: list[tuple[str, str]] = []
        self.next_answers: dict[str, list[RefusalError | asyncio.Event]] = {}
        self.arrived = asyncio.Event()

    def restart(self, version: str | None = None) -> None:
        self.version = version or self.version
        self.regions.clear()
        self.using.clear()
        self.put_off.clear()

    def end(self, name: str) -> None:
        """A request that used a region ends."""
        self.using[name] -= 1
        if not self.using[name] and name in self.put_off:
            self.put_off.discard(name)
            self.regions.pop(name, None)

    def count(self, method: str) -> int:
        return sum(said == method for said, _ in self.said)

    def script(self, method: str, *answers: RefusalError | asyncio.Event) -> None:
        self.next_answers.setdefault(method, []).extend(answers)

    # --- the calls ------------------------------------------------------------------------------

    def _register(self, request: Any) -> None:
        if request.name in self.regions:
            raise refuse(
                "ALREADY_EXISTS", f"shared memory region '{request.name}' already in manager"
            )
        key = getattr(request, "key", "")
        if key and any(getattr(held, "key", "") == key for held in self.regions.values()):
            self.registered_twice.append(key)
        self.regions[request.name] = request

    def _unregister(self, request: Any) -> None:
        name = request.name
        assert name, "this would drop everybody's regions"
        if name not in self.regions:
            return
        if self.using[name]:
            minor = int(self.version.split(".")[1])
            if minor >= 53:
                self.put_off.add(name)
                return
            if minor >= 50:
                raise refuse(
                    "INTERNAL",
                    f"Cannot unregister shared memory region '{name}', it is currently in use.",
                )
            self.unmapped.append(name)
        del self.regions[name]

    def _status(self, request: Any, kind: str, answer: Any) -> None:
        held = {
            name: region
            for name, region in self.regions.items()
            if type(region).__name__ == f"{KINDS[kind]}RegisterRequest"
            and request.name in {"", name}
        }
        if request.name and not held:
            raise refuse(
                "NOT_FOUND", f"Unable to find {kind} shared memory region: '{request.name}'"
            )
        for name, region in held.items():
            status = answer.regions[name]
            status.name, status.byte_size = name, region.byte_size
            if kind == "system":
                status.key = region.key

    async def answer(self, method: str, message: bytes) -> bytes:
        request = getattr(service_pb2, f"{method}Request").FromString(message)
        reply = getattr(service_pb2, f"{method}Response")()
        self.said.append((method, getattr(request, "name", "")))
        self.arrived.set()
        script = self.next_answers.get(method) or [None]
        scripted = script.pop(0)
        if isinstance(scripted, asyncio.Event):
            await scripted.wait()
        elif scripted is not None and scripted is not LOST:
            raise scripted
        kind = "cuda" if method.startswith("Cuda") else "system"
        if method.endswith("Unregister"):
            self._unregister(request)
        elif method.endswith("Register"):
            self._register(request)
        elif method.endswith("Status"):
            self._status(request, kind, reply)
        else:
            reply.version = self.version
        if isinstance(scripted, RefusalError):
            raise scripted
        return reply.SerializeToString()

    @property
    def methods(self) -> dict[str, Callable[[bytes], Any]]:
        names = [
            f"{prefix}{verb}"
            for prefix in KINDS.values()
            for verb in ("Register", "Unregister", "Status")
        ]

        def bound(method: str) -> Callable[[bytes], Any]:
            return lambda message: self.answer(method, message)

        return {method: bound(method) for method in [*names, "ServerMetadata"]}


def ours(caplog: Any) -> list[Any]:
    """What was logged about shared memory; gRPC logs at times, too."""
    return [record for record in caplog.records if record.name == "tritonasync.memory"]


LOST = refuse("UNAVAILABLE", "Socket closed")
"""The answer is lost on its way, with the connection."""


@asynccontextmanager
async def scripted_control(table: RegionTable) -> AsyncIterator[RegionControl]:
    async with ScriptedServer(**table.methods) as server:
        endpoint = make_endpoint(server.target)
        try:
            yield RegionControl(endpoint)
        finally:
            await endpoint.aclose(Deadline.after(10))


@asynccontextmanager
async def scripted_registrar(
    table: RegionTable, *, is_dead: Callable[[str], bool] = lambda _: False, **options: Any
) -> AsyncIterator[Registrar]:
    """A registrar that has unregistered what it could when the test is over."""
    async with scripted_control(table) as control:
        registrar = Registrar(control, **options, is_dead=is_dead)
        try:
            yield registrar
        finally:
            await registrar.aclose(Deadline.after(0.2))
            assert not table.registered_twice
            assert not table.unmapped
