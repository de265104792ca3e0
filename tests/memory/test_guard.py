"""A guard is there, locked, for exactly as long as its process is."""

import fcntl
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.memory.processes import descriptors, living, names, run
from tritonasync.core.errors import MemoryExhaustedError
from tritonasync.memory.guard import Guard, guard_name, guard_of, region_name
from tritonasync.memory.janitor import is_dead, sweep


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    guard = Guard(tmp_path)
    yield guard
    guard.release()


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_process_has_one_guard_in_a_folder(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with ThreadPoolExecutor(8) as threads:
        guards = {id(guard) for guard in threads.map(guard_of, [str(tmp_path), tmp_path] * 20)}
    assert len(guards) == 1
    assert names(tmp_path) == ["other", guard_of(tmp_path).name]
    assert guard_of(other).name != guard_of(tmp_path).name


def test_a_guard_is_locked_and_nobody_elses_to_read(guard, tmp_path):
    path = tmp_path / guard.name
    assert is_locked(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert guard.name.startswith(f"ta-{os.getpid()}-")
    assert guard_name(guard.name) == guard.name


def test_names_of_regions_never_come_again(guard):
    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(lambda _: guard.region_name(), range(2000)))
    assert len(set(given)) == 2000
    assert {guard_name(name) for name in given} == {guard.name}
    assert guard.name not in given


def test_a_name_is_to_be_had_without_a_guard_at_hand(tmp_path):
    assert guard_name(region_name(tmp_path)) == guard_of(tmp_path).name


@pytest.mark.parametrize(
    ("name", "guard"),
    [
        ("ta-12-0123456789ab", "ta-12-0123456789ab"),
        ("ta-12-0123456789ab-1", "ta-12-0123456789ab"),
        ("ta-12-0123456789ab-123", "ta-12-0123456789ab"),
        ("ta-12-0123456789ab-", None),
        ("ta-12-0123456789ab-x", None),
        ("ta-12-0123456789ab-1-1", None),
        ("ta-12-0123456789ab-1\n", None),
        ("ta-12-0123456789ab-\u0661", None),
        ("ta-12-0123456789abc", None),
        ("ta-12-0123456789a", None),
        ("ta-12-0123456789aB", None),
        ("ta-x-0123456789ab", None),
        ("ta-", None),
        ("xta-12-0123456789ab", None),
        ("/ta-12-0123456789ab-1", None),
        ("", None),
    ],
)
def test_which_guard_a_name_is_under(name, guard):
    assert guard_name(name) == guard


def test_a_janitor_that_takes_the_new_file_before_it_is_locked_does_no_harm(tmp_path, monkeypatch):
    flock = fcntl.flock
    taken = []

    def late(descriptor: int, how: int) -> None:
        if len(taken) < 2:
            monkeypatch.setattr(fcntl, "flock", flock)
            taken.extend(sweep(tmp_path))
            monkeypatch.setattr(fcntl, "flock", late)
        flock(descriptor, how)

    before = descriptors()
    monkeypatch.setattr(fcntl, "flock", late)
    guard = Guard(tmp_path)
    assert len(taken) == 2
    assert names(tmp_path) == [guard.name]
    assert is_locked(tmp_path / guard.name)
    guard.release()
    assert names(tmp_path) == []
    assert descriptors() == before


def test_nothing_is_left_of_a_guard_that_cannot_be_locked(tmp_path, monkeypatch):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = descriptors()
    with pytest.raises(MemoryExhaustedError, match="No locks available"):
        guard_of(tmp_path)
    assert names(tmp_path) == []
    assert descriptors() == before


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MemoryExhaustedError, match=r"gone: No such file") as caught:
        guard_of(tmp_path / "gone")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_guard_whose_file_is_gone_is_replaced_and_its_regions_are_not_dead(tmp_path):
    first = guard_of(tmp_path)
    name = first.region_name()
    (tmp_path / first.name).unlink()
    (tmp_path / name).touch()
    assert not first.stands()
    second = guard_of(tmp_path)
    assert second is not first
    assert second.stands()
    assert not is_dead(name, tmp_path)
    assert sweep(tmp_path) == []
    assert guard_of(tmp_path) is second


def test_a_guard_whose_name_is_another_file_now_does_not_stand(guard, tmp_path):
    (tmp_path / guard.name).unlink()
    (tmp_path / guard.name).touch()
    assert not guard.stands()


def test_a_release_removes_regions_and_nothing_else(tmp_path):
    guard = Guard(tmp_path)
    others = ["ta-1-000000000000", "ta-1-000000000000-1", "else", f"{guard.name}-x"]
    for name in [guard.region_name(), guard.region_name(), *others]:
        (tmp_path / name).touch()
    guard.release()
    assert names(tmp_path) == sorted(others)


def test_a_guard_is_released_after_its_regions_are_gone(tmp_path, monkeypatch):
    guard = Guard(tmp_path)
    (tmp_path / guard.region_name()).touch()
    removed = []
    unlink = Path.unlink

    def watched(path: Path) -> None:
        assert is_locked(tmp_path / guard.name)
        removed.append(path.name)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", watched)
    guard.release()
    assert removed == [f"{guard.name}-1", guard.name]


@pytest.mark.parametrize(
    ("ending", "exit_code"),
    [
        ("", 0),
        ("raise ValueError('on purpose')", 1),
        ("sys.exit(3)", 3),
        ("threading.Thread(target=memory.create, args=[1]).start()", 0),
        ("kept.append(kept)", 0),  # a cycle
    ],
)
def test_a_process_that_ends_leaves_nothing(tmp_path, ending, exit_code):
    code = f"""
    import warnings; warnings.simplefilter("ignore", ResourceWarning)
    kept = [memory.create(1) for _ in range(3)]
    kept += [view(region) for region in kept]
    guard_of(folder / "..")  # another folder
    say(len(os.listdir(folder)))
    {ending}
    """
    assert run(code, tmp_path, exit_code=exit_code) == ["4"]
    assert names(tmp_path) == []
    assert not [name for name in names(tmp_path.parent) if name.startswith("ta-")]


@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_a_process_of_multiprocessing_leaves_nothing(tmp_path, how):
    folder = tmp_path / "shm"
    folder.mkdir()
    code = f"""
    import multiprocessing
    def work(queue):
        guard = guard_of(folder)
        (folder / guard.region_name()).touch()
        queue.put(guard.name)
    if __name__ == "__main__":
        context = multiprocessing.get_context({how!r})
        mine, queue = guard_of(folder).name, context.SimpleQueue()
        process = context.Process(target=work, args=[queue])
        process.start()
        process.join()
        say(queue.get() != mine, os.listdir(folder) == [mine])
    """
    assert run(code, folder, script=tmp_path / "script.py") == ["True", "True"]
    assert names(folder) == []


FORK = """
region = memory.create(1)
guard = guard_of(folder)
gone, stays = os.pipe()
child = os.fork()
if not child:
    {child}
    os._exit(0)
_, status = os.waitpid(child, 0)
say(os.waitstatus_to_exitcode(status))
say(guard.stands(), guard is guard_of(folder), guard.forked, is_dead(region.name, folder))
region.close()
"""


@pytest.mark.parametrize(
    "child",
    [
        "pass",
        "sys.exit(0)",  # runs what was registered to run at the parent's exit
        "region.close(); sys.exit(0)",
        "SystemMemory(folder).create(1).close(); sys.exit(0)",
        "sweep(folder); assert not is_dead(region.name, folder)",
        "import gc; del region, guard; gc.collect()",
    ],
)
def test_a_forked_child_leaves_the_parents_files_alone(tmp_path, child):
    assert run(FORK.format(child=child), tmp_path) == ["0", "True", "True", "False", "False"]
    assert names(tmp_path) == []


def test_a_forked_child_has_a_guard_of_its_own(tmp_path):
    child = """
    assert guard.forked
    own = guard_of(folder)
    assert own.name.startswith(f'ta-{os.getpid()}-') and not own.forked
    assert own.name in os.listdir(folder) and guard.name in os.listdir(folder)
    sys.exit(0)
    """
    said = run(FORK.replace("    {child}", child), tmp_path)
    assert said == ["0", "True", "True", "False", "False"]
    assert names(tmp_path) == []


def test_the_lock_dies_with_the_parent_though_its_child_lives(tmp_path):
    code = """
    region = memory.create(1)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, b"!")
        signal.pause()
    os.read(reader, 1)
    say(child, region.name)
    """
    with living(code, tmp_path) as (parent, (child, name)):
        try:
            assert not is_dead(name, tmp_path)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            assert is_dead(name, tmp_path)
            assert sweep(tmp_path) == [guard_name(name), name]
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_fork_in_the_middle_of_making_a_guard_does_not_keep_its_lock(tmp_path):
    code = """
    import fcntl, time, warnings
    warnings.simplefilter("ignore")  # that threads and forks do not go together
    flock, entered = fcntl.flock, threading.Event()
    def slow(descriptor, how):
        flock(descriptor, how)
        entered.set()
        time.sleep(0.3)
    fcntl.flock = slow
    thread = threading.Thread(target=guard_of, args=[folder])
    thread.start()
    entered.wait()
    child = os.fork()
    if not child:
        opened = Path("/proc/self/fd").iterdir()
        kept = [fd for fd in opened if fd.is_symlink() and str(folder) in os.readlink(fd)]
        guard_of(folder)  # and nothing hangs
        os._exit(len(kept))
    thread.join()
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run(code, tmp_path) == ["0"]
    left = names(tmp_path)
    assert len(left) == 1  # of the child, which ended without a word
    assert sweep(tmp_path) == left


def test_what_is_started_does_not_inherit_the_lock(guard):
    opened = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    ours = [int(path.name) for path in opened if guard.name in str(path.readlink())]
    assert [os.get_inheritable(descriptor) for descriptor in ours] == [False]
