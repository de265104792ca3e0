"""The pytest plugin in small projects as its users have them, on the real server."""

import subprocess
import sys
from pathlib import Path

import pytest

from tritonasync.serving import cache_folder

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parents[1]

USES = """
import urllib.request
import pytest

def test_plain(triton_server):
    with urllib.request.urlopen(triton_server.http_url + "/v2/models/ident/ready") as response:
        assert response.status == 200

@pytest.mark.anyio
async def test_async(triton_server):
    assert triton_server.running
"""
CONFTEST = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.fixture(scope="session")
def real_cache() -> Path:
    """The user's cache, asked for before pytester moves the home folder away."""
    return cache_folder()


@pytest.fixture
def project(
    real_cache: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A project with one model and one test file."""
    monkeypatch.setenv("TRITONASYNC_CACHE", str(real_cache))
    (pytester.path / "models").mkdir()
    (pytester.path / "models" / "ident").symlink_to(TESTS / "models" / "ident")
    pytester.makepyfile(test_it=USES)
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.mark.server
def test_an_ini_option_is_all_that_a_project_needs(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntriton_repository = models\n")
    project.runpytest_subprocess("-W", "error").assert_outcomes(passed=2)


@pytest.mark.server
def test_the_option_in_pyproject_works_from_a_folder_below(project: pytest.Pytester) -> None:
    project.makepyprojecttoml('[tool.pytest.ini_options]\ntriton_repository = "models"\n')
    below = project.mkdir("below")
    (project.path / "test_it.py").rename(below / "test_it.py")
    done = project.run(sys.executable, "-m", "pytest", str(below))
    done.assert_outcomes(passed=2)


@pytest.mark.server
def test_fixtures_are_overridden_in_conftest(project: pytest.Pytester) -> None:
    project.makeconftest(
        CONFTEST
        + """
from pathlib import Path

@pytest.fixture(scope="session")
def triton_repository():
    return Path(__file__).parent / "models"

@pytest.fixture(scope="session")
def triton_options():
    return {"model_control": "explicit", "load_models": ("ident",), "metrics": False}
"""
    )
    project.makepyfile(test_more="def test_it(triton_server): assert not triton_server.metrics_url")
    project.runpytest_subprocess().assert_outcomes(passed=3)


@pytest.mark.server
def test_a_failed_test_shows_the_end_of_the_servers_log(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntriton_repository = models\n")
    project.makepyfile(test_it="def test_it(triton_server): assert False")
    done = project.runpytest_subprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*Triton log, its end*", "*successfully loaded 'ident'*"])


@pytest.mark.server
def test_every_xdist_worker_has_a_server_of_its_own(project: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    project.makeini("[pytest]\ntriton_repository = models\n")
    project.makepyfile(
        test_it="""
        from pathlib import Path
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_it(triton_server, number):
            Path(f"server-{number}").write_text(str(triton_server.pid))
        """
    )
    done = project.runpytest_subprocess("-n", "2", "--dist", "load", "-p", "no:randomly")
    done.assert_outcomes(passed=2)
    pids = {(project.path / f"server-{number}").read_text() for number in range(2)}
    assert len(pids) == 2


@pytest.mark.server
def test_a_broken_model_is_shown_with_its_reason_and_without_a_traceback(
    project: pytest.Pytester,
) -> None:
    project.makeini(f"[pytest]\ntriton_repository = {TESTS / 'broken_models'}\n")
    done = project.runpytest_subprocess("-k", "plain")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["triton_server did not start*", "*the weights are missing*"])
    done.stdout.no_fnmatch_line("*plugin.py:*")


def test_a_project_without_a_repository_is_told_what_to_write(project: pytest.Pytester) -> None:
    done = project.runpytest_subprocess("-k", "plain")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*set `triton_repository = models` in the pytest section*"])
    done.stdout.no_fnmatch_line("*plugin.py:*")


def test_a_repository_that_is_not_there_is_named(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntriton_repository = gone\n")
    done = project.runpytest_subprocess("-k", "plain")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([f"*model repository {project.path}/gone does not exist*"])


def test_a_project_that_does_not_use_the_fixture_needs_no_option(project: pytest.Pytester) -> None:
    project.makepyfile(test_it="def test_it(): pass")
    project.runpytest_subprocess("--strict-config", "--strict-markers").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        ("tritonasync.testing.plugin", {"grpc", "numpy", "anyio", "tritonasync.core.errors"}),
        ("tritonasync.serving.__main__", {"grpc", "numpy", "typer", "rich", "tritonasync.pool"}),
    ],
)
def test_importing_is_cheap(module: str, kept_out: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    assert not kept_out & set(done.stdout.splitlines())
