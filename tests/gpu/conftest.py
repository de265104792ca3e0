"""Marks these tests ``gpu``, skips them with the reason where there is no GPU, and runs the server.

The server is that of the rig (see docs/gpu.md): a folder with ``start_server.sh`` and ``models``,
``.gpu`` in the project's root or what TRITONASYNC_GPU_RIG says.
"""

import os
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
RIG = Path(os.environ.get("TRITONASYNC_GPU_RIG", HERE.parents[1] / ".gpu"))


def reason_to_skip():
    if find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy

    if not cupy.cuda.is_available():
        return "no CUDA GPU here: cupy.cuda.is_available() is false"
    return None


@pytest.hookimpl(trylast=True)  # after the shuffling
def pytest_collection_modifyitems(items):
    ours = [item for item in items if HERE in item.path.parents]
    if not ours:
        return
    reason = reason_to_skip()
    for item in ours:
        item.add_marker("gpu")
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
    # Each file rests on what the one before it has shown.
    ours.sort(key=lambda item: (item.path, item.location[1] or 0))
    items[:] = [item for item in items if HERE not in item.path.parents] + ours


class Server:
    """The rig's server, on the ports that its script has: 8000 to 8002 on loopback."""

    url = "127.0.0.1:8001"

    def __init__(self, log):
        self.log, self.pid = log, 0

    def start(self):
        script = ["bash", RIG / "start_server.sh", RIG / "models", self.log]
        done = subprocess.run(script, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        self.pid = int(done.stdout.split()[-1])

    def stop(self, how=signal.SIGTERM):
        if not self.pid:
            return
        process, self.pid = psutil.Process(self.pid), 0
        children = process.children(recursive=True)
        process.send_signal(how)
        # It is no child of ours: there is nobody to reap it but init.
        limit = time.monotonic() + 60
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < limit, "the server does not end"
            time.sleep(0.05)
        for child in children:
            if child.is_running():
                child.kill()


@pytest.fixture(scope="session")
def rig(tmp_path_factory):
    if not (RIG / "start_server.sh").exists():
        pytest.skip(f"no rig at {RIG}: see docs/gpu.md")
    server = Server(tmp_path_factory.mktemp("rig") / "server.log")
    yield server
    server.stop()


@pytest.fixture
def server(rig):
    if not rig.pid or not psutil.pid_exists(rig.pid):
        rig.start()
    return rig


@pytest.fixture
def spin():
    """Keeps a stream busy: ``spin(cycles)`` on the current one; about 1.5e9 cycles are a second."""
    import cupy

    kernel = cupy.RawKernel(
        r"""
        extern "C" __global__ void spin(long long cycles) {
            long long begin = clock64();
            while (clock64() - begin < cycles) {}
        }
        """,
        "spin",
    )
    kernel.compile()
    return lambda cycles: kernel((1,), (1,), (cycles,))
