"""However the program that started a server ends, nothing of the server outlives it.

Each case runs a program of its own, which starts a server with one model (so that there is a stub
and its shared memory) and then does one thing.
"""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tritonasync.serving import EmbeddedTriton

MODELS = Path(__file__).parents[1] / "models"
Leftovers = Callable[[int], list[str]]

PRELUDE = f"""
import os, signal, sys, threading, time
from tritonasync.serving import EmbeddedTriton

server = EmbeddedTriton({str(MODELS)!r}, model_control="explicit", load_models=("ident",))

def say(*words):
    print(*words, flush=True)

def listen():
    return sys.stdin.readline().strip()
"""

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("leaves_nothing")]


class Program:
    """A program that starts a server, and talks in lines."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate()
        return line

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture
def program() -> Iterator[Callable[[str], Program]]:
    programs: list[Program] = []

    def start(code: str) -> Program:
        programs.append(Program(code))
        return programs[-1]

    yield start
    for started in programs:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_that_is_killed_takes_its_server_along(
    number: signal.Signals, program: Callable[[str], Program], leftovers: Leftovers
) -> None:
    killed = program("""
        with server:
            say("ready")
            listen()
    """)
    killed.hear()
    killed.process.send_signal(number)
    assert killed.end()[0] == -number
    assert not leftovers(killed.pid)


def test_ctrl_c_reaches_the_program_and_the_program_stops_the_server(
    program: Callable[[str], Program], leftovers: Leftovers
) -> None:
    interrupted = program("""
        try:
            with server:
                try:
                    say(server.pid)
                    time.sleep(60)
                except KeyboardInterrupt:
                    say("the server runs" if server.running else "the server is gone")
                    raise
        except KeyboardInterrupt:
            say(server.log_tail(3).splitlines()[-1])
    """)
    interrupted.hear()
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert interrupted.hear() == "the server runs"
    assert "Found 0 live models" in interrupted.hear()  # it ended in order
    assert interrupted.end()[0] == 0
    assert not leftovers(interrupted.pid)


@pytest.mark.parametrize("ending", ["pass", "raise LookupError('mine')", "sys.exit(3)"])
def test_a_server_that_was_never_stopped_is_gone_when_the_interpreter_is(
    ending: str, program: Callable[[str], Program]
) -> None:
    careless = program(f"""
        server.start()
        say(server.pid)
        {ending}
    """)
    pid = int(careless.hear())
    code, err = careless.end()
    assert code == {"pass": 0, "sys.exit(3)": 3}.get(ending, 1), err
    # Without patience: the interpreter's exit waited for the server's.
    assert not psutil.pid_exists(pid)
    assert not [*Path("/dev/shm").glob(f"tritonasync-{careless.pid}-*")]


def test_a_forked_child_neither_stops_the_server_at_its_exit_nor_by_asking(
    program: Callable[[str], Program],
) -> None:
    forking = program("""
        from tritonasync.core.errors import WrongContextError
        with server:
            child = os.fork()
            if not child:
                server.stop()
                server.kill()
                server._process.stop()
                try:
                    server.start()
                except WrongContextError:
                    sys.exit(7)
                sys.exit(1)
            _, status = os.waitpid(child, 0)
            time.sleep(0.5)  # a word to the keeper would have been heard by now
            say(os.waitstatus_to_exitcode(status), "Signal" not in server.log_tail())
        say("stopped" if not server.running else "runs on")
    """)
    assert forking.hear() == "7 True"
    assert forking.hear() == "stopped"
    assert forking.end()[0] == 0


def test_a_forked_child_that_lives_on_does_not_keep_the_server_of_a_killed_program(
    program: Callable[[str], Program], leftovers: Leftovers
) -> None:
    forking = program("""
        server.start()
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        say(child)
        listen()
    """)
    child = int(forking.hear())
    forking.process.kill()
    forking.process.wait()
    try:
        assert not leftovers(forking.pid)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_killed_keeper_takes_the_server_along_and_stop_clears_up_the_rest(
    repository_of: Callable[[str], Path],
) -> None:
    server = EmbeddedTriton(repository_of("import subprocess; subprocess.Popen(['sleep', '60'])"))
    server.start()
    process = psutil.Process(server.pid)
    keeper, family = process.parent(), process.children(recursive=True)
    assert keeper is not None
    assert os.getsid(keeper.pid) == keeper.pid, "out of reach of our terminal's signals"
    keeper.kill()
    _, alive = psutil.wait_procs([process], timeout=10)
    assert not alive
    assert "sleep" in {member.name() for member in family if member.is_running()}
    server.stop()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_server_started_in_a_thread_outlives_the_thread() -> None:
    server = EmbeddedTriton(MODELS, model_control="explicit")
    starting = threading.Thread(target=server.start)
    starting.start()
    starting.join()
    time.sleep(0.5)  # a signal at the thread's death would have come by now
    assert server.running
    server.stop()


def test_a_server_whose_object_is_gone_warns_and_is_stopped() -> None:
    server = EmbeddedTriton(MODELS, model_control="explicit")
    server.start()
    process = psutil.Process(server.pid)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del server
        gc.collect()
    assert [str(warning.message) for warning in caught if "never stopped" in str(warning.message)]
    psutil.wait_procs([process], timeout=20)
    assert not process.is_running()


def test_a_server_that_does_not_end_in_time_is_killed() -> None:
    server = EmbeddedTriton(
        MODELS, model_control="explicit", load_models=("ident",), stop_timeout_s=0.0
    )
    server.start()
    process = psutil.Process(server.pid)
    family = [process, *process.children()]
    server.stop()
    assert not any(member.is_running() for member in family)


def test_what_a_model_started_in_a_session_of_its_own_ends_with_the_server(
    repository_of: Callable[[str], Path], tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    body = (
        "import subprocess; child = subprocess.Popen(['sleep', '60'], start_new_session=True); "
        f"open({str(note)!r}, 'w').write(str(child.pid))"
    )
    with EmbeddedTriton(repository_of(body)):
        stray = psutil.Process(int(note.read_text()))
        assert stray.name() == "sleep"
    assert not stray.is_running()
