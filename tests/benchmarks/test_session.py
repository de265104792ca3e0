"""What runs on which server, without one."""

import shutil
from pathlib import Path

import pytest

from benchmarks import compiled, session
from benchmarks.goals import Met, judge
from benchmarks.server import REPOSITORIES
from benchmarks.workloads import BY_NAME
from tests.benchmarks.made import results


def test_decoupled_models_and_others_are_never_on_one_server():
    groups = session.kept_apart([*BY_NAME.values()])
    assert sorted(each.name for group in groups for each in group) == sorted(BY_NAME)
    assert [{each.responses is None for each in group} for group in groups] == [{True}, {False}]
    assert session.kept_apart([]) == []
    assert session.kept_apart([BY_NAME["decoupled"]]) == [[BY_NAME["decoupled"]]]


def test_the_models_of_a_server_are_of_one_kind():
    """Whatever a workload says: what its server loads is decoupled, or is not."""
    for group in session.kept_apart([*BY_NAME.values()]):
        kinds = {
            "decoupled: true" in (root / each.model / "config.pbtxt").read_text()
            for each in group
            for root in (*REPOSITORIES, compiled.SOURCES)
            if (root / each.model).is_dir()
        }
        assert len(kinds) == 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("model", sorted(compiled.MODELS))
def test_a_compiled_model_is_a_whole_one(model: str, tmp_path: Path):
    compiled.make(model, tmp_path)
    assert f'backend: "{model}"' in (tmp_path / model / "config.pbtxt").read_text()
    assert (tmp_path / model / f"libtriton_{model}.so").stat().st_size > 0
    assert (tmp_path / model / "1").is_dir()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_source_that_does_not_compile_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "sources" / "bad"
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text("")
    (folder / "bad.c").write_text("this is no C")
    monkeypatch.setattr(compiled, "SOURCES", folder.parent)
    with pytest.raises(compiled.NotCompiledError, match=r"(?s)bad does not compile: .*error"):
        compiled.make("bad", tmp_path / "repository")


def test_without_a_compiler_a_workload_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    made, said = results(), []
    workloads = [BY_NAME["decoupled"], BY_NAME["first-token"]]
    assert session._made(workloads, tmp_path, made, said.append) == [BY_NAME["first-token"]]
    assert "there is no cc" in said[0]
    found = {each.work: each for each in judge(made)}[
        "decoupled model, small responses: responses/s"
    ]
    assert found.met is Met.UNMEASURED
    assert "there is no cc" in found.measured
