import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.clients import data, perf, serve
from benchmarks.compiled import MODELS, SOURCES
from benchmarks.peers import PEERS, TITLES
from benchmarks.server import REPOSITORIES
from benchmarks.workloads import BY_NAME, CAPACITY, PARTS, SIZES, SWEEP, Workload


@pytest.mark.parametrize("workload", BY_NAME.values(), ids=lambda workload: workload.name)
def test_a_workload_fits_its_model(workload: Workload):
    roots = (*REPOSITORIES, SOURCES)
    (folder,) = (found for root in roots if (found := root / workload.model).is_dir())
    assert (folder.parent == SOURCES) is (workload.model in MODELS)
    config = (folder / "config.pbtxt").read_text()
    assert f"max_batch_size: {workload.max_batch_size}\n" in config
    assert (workload.rows or 1) <= workload.max_batch_size
    assert ("decoupled: true" in config) is (workload.responses is not None)
    dims = re.search(r"input \[.*?dims: \[ ([-\d, ]+) \]", config)
    assert dims is not None
    wanted = [int(dim) for dim in dims[1].split(",")]
    assert len(wanted) == len(workload.shape)
    assert all(want in (-1, got) for want, got in zip(wanted, workload.shape, strict=True))


@pytest.mark.parametrize("workload", BY_NAME.values(), ids=lambda workload: workload.name)
def test_the_clients_of_a_workload_are_known(workload: Workload):
    assert set(workload.clients) <= TITLES.keys()
    assert set(workload.quick) <= set(workload.clients)
    assert any(name.startswith("ours") for name in workload.clients)


@pytest.mark.parametrize("workload", BY_NAME.values(), ids=lambda workload: workload.name)
def test_a_decoupled_model_gives_as_many_responses_as_are_counted(workload: Workload):
    if workload.responses is not None:
        roots = (*REPOSITORIES, SOURCES)
        found = [path for root in roots for path in (root / workload.model).rglob("*.*")]
        sources = [path.read_text() for path in found if path.suffix in {".c", ".py"}]
        assert [f"RESPONSES = {workload.responses}" in source for source in sources] == [True]
        assert workload.rows_per_call == workload.responses


def test_every_peer_has_its_module_and_nobody_else():
    assert [peer.name for peer in PEERS] == list(serve.MODULES)
    for module, kind in serve.MODULES.values():
        source = Path(serve.__file__).with_name(f"{module}.py").read_text()
        assert f"class {kind}(" in source


def test_a_sweep_goes_through_the_same_sizes_with_every_number_of_callers():
    assert (SIZES[0], SIZES[-1]) == (4 << 10, 2 << 20)
    for callers, sweep in SWEEP.items():
        assert [each.callers for each in sweep] == [callers] * len(SIZES)
        assert [data.items(replace(each, callers=1))[0].nbytes for each in sweep] == [*SIZES]
    assert {"placed-1-4kib", "placed-64-2mib"} < {*PARTS["placing"]} < BY_NAME.keys()


def test_the_capacity_is_measured_in_quick_and_full_runs():
    workload, client = CAPACITY
    assert client in BY_NAME[workload].quick
    assert client in BY_NAME[workload].clients


@pytest.mark.parametrize(
    ("name", "concurrency", "rows"),
    [
        ("rows-1", 1, 1),
        ("rows-64", 64, 1),
        ("rows-1024", 64, 1),
        ("batches", 4, 256),
        ("slow", 4, 32),
    ],
)
def test_the_load_generator_sends_what_the_workload_asks_for(
    monkeypatch: pytest.MonkeyPatch, name: str, concurrency: int, rows: int
):
    monkeypatch.setenv(perf.BINARY, "/bin/perf_analyzer")
    line = perf.command(BY_NAME[name], "127.0.0.1:1", 1.5, Path("t.csv"))
    options = dict(zip(line[1::2], line[2::2], strict=True))
    assert options["--concurrency-range"] == f"{concurrency}:{concurrency}"
    assert options["-b"] == str(rows)
    assert options["-p"] == "500"
    assert "--streaming" not in line


def test_the_load_generators_windows_are_never_too_short():
    assert perf.window_ms(0.1) == perf.WINDOW_MS
