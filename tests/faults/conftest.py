"""Three real servers, and proxies before them."""

from __future__ import annotations

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
    """A proxy before each server."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(FaultProxy(server.grpc_url)) for server in three_servers
        ]
