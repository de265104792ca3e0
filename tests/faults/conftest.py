"""Three real servers, and proxies before them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.load import server
from tests.faults.proxy import FaultProxy
from tritonasync.serving import EmbeddedTriton


@pytest.fixture(scope="module")
def three_servers() -> Iterator[list[EmbeddedTriton]]:
    """Servers of this module's own, which may be killed; a test leaves them running."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server()) for _ in range(3)]


@pytest.fixture
async def proxies(three_servers) -> AsyncIterator[list[FaultProxy]]:
    """A proxy before each server; a server that a broken connection ended is started again.

    Below 2.59, a server may end with a segmentation fault when a connection with calls in flight
    breaks, as it may when they are cancelled. Any other end fails the test.
    """
    async with contextlib.AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(FaultProxy(server.grpc_url)) for server in three_servers
        ]
        over = asyncio.Event()
        keeping = asyncio.create_task(_keep_up(three_servers, proxies, over))
        try:
            yield proxies
        finally:
            over.set()
            await keeping


async def _keep_up(
    servers: list[EmbeddedTriton], proxies: list[FaultProxy], over: asyncio.Event
) -> None:
    while True:
        last = over.is_set()
        for triton, proxy in zip(servers, proxies, strict=True):
            if not triton.running:
                log = triton.log_tail()
                await asyncio.to_thread(triton.restart)
                assert proxy.broken, log
        if last:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 0.2)
