"""A pool on the shared server."""

import pytest

from tritonasync import TritonPool


@pytest.fixture
async def pool(server):
    async with TritonPool(server.grpc_url) as pool:
        yield pool
