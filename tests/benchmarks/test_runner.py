"""The order of rounds, and what is done when a client or the server fails, without either."""

from dataclasses import replace

import pytest

from benchmarks.child import ChildError
from benchmarks.clients.protocol import QUANTILES, Order, Outcome
from benchmarks.environments import EnvironmentMissingError
from benchmarks.runner import Runner, Settings, needed, values_of
from benchmarks.server import Counts, ServerGoneError
from benchmarks.workloads import BY_NAME, PARTS, Workload
from tests.benchmarks.made import results, rounds

WORKLOAD = replace(BY_NAME["rows-64"], clients=("ours", "aio", "perf"), quick=("ours",))
SETTINGS = Settings(quick=False, rounds=4, seconds=0.5)


def outcome(rows: int = 100, **fields) -> Outcome:
    latency = tuple(float(i) for i in range(len(QUANTILES)))
    return Outcome(**{
        "rows": rows, "seconds": 2.0, "cpu_s": 0.001, "latency_us": latency,
        "peak_rss_mib": 60.0, "checked": 4, **fields,
    })  # fmt: skip


class FakeServer:
    def __init__(self) -> None:
        self.rows = 0
        self.gone = False
        self.revivals = 0

    def counts(self, workload: Workload) -> Counts:
        if self.gone:
            raise ServerGoneError("the server does not answer")
        self.rows += 10
        return Counts(rows=self.rows, executions=self.rows // 5)

    def revive(self) -> bool:
        was_gone, self.gone = self.gone, False
        self.revivals += was_gone
        return was_gone


class FakeChild:
    versions = {"python": "3"}  # noqa: RUF012 - nobody changes it

    def __init__(self, name: str, world: "World") -> None:
        self.name = name
        self.world = world

    def carry_out(self, order: Order) -> Outcome:
        self.world.log.append((self.name, order))
        self.world.server.gone = (self.name, order.seed) in self.world.crashes
        action = self.world.actions.get((self.name, order.seed))
        if action is not None:
            raise action
        return outcome()

    def close(self, *, patience_s: float = 1.0) -> None:
        self.world.closed.append(self.name)


class World:
    """A starter of fake children that remembers what they were told."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Order]] = []
        self.closed: list[str] = []
        self.started: list[tuple[str, bool]] = []
        self.actions: dict[tuple[str, int], Exception] = {}
        self.crashes: set[tuple[str, int]] = set()
        self.missing: dict[str, str] = {}
        self.server = FakeServer()
        self.results = results()
        self.said: list[str] = []

    def prepare(self, name: str) -> None:
        if name in self.missing:
            raise EnvironmentMissingError(self.missing[name])

    def start(self, name: str, *, precise: bool) -> FakeChild:
        self.started.append((name, precise))
        return FakeChild(name, self)

    def runner(self, settings: Settings = SETTINGS) -> Runner:
        return Runner(self.server, self, settings, self.results, self.said.append)

    def names(self) -> list[str]:
        return [name for name, order in self.log if not order.prepare]


@pytest.fixture
def world() -> World:
    return World()


def test_every_client_runs_in_every_round_and_the_order_turns(world: World):
    world.runner().run(WORKLOAD)
    assert "".join(name[0] for name in world.names()) == "oap" + "apo" + "poa" + "oap"
    assert [(r.client, r.number) for r in world.results.rounds[:4]] == [
        ("ours", 0), ("aio", 0), ("perf", 0), ("aio", 1),
    ]  # fmt: skip


def test_every_client_is_warmed_up_once_and_that_is_no_round(world: World):
    world.runner().run(WORKLOAD)
    assert [name for name, order in world.log if order.prepare] == ["ours", "aio", "perf"]
    assert len(world.results.rounds) == 12


def test_a_workload_says_how_long_it_warms_up(world: World):
    world.runner().run(replace(WORKLOAD, warm_s=3.0))
    assert {order.seconds for _, order in world.log if order.prepare} == {3.0}
    assert {order.seconds for _, order in world.log if not order.prepare} == {0.5}


def test_quick_runs_fewer_clients(world: World):
    world.runner(Settings(quick=True, rounds=1, seconds=0.1)).run(WORKLOAD)
    assert world.names() == ["ours"]


def test_a_client_keeps_its_process_over_workloads(world: World):
    runner = world.runner()
    runner.run(WORKLOAD)
    runner.run(replace(WORKLOAD, name="rows-1"))
    assert world.started == [("ours", False), ("aio", False), ("perf", False)]
    runner.close()
    assert sorted(world.closed) == ["aio", "ours", "perf"]


def test_a_client_without_an_environment_is_skipped_with_its_reason(world: World):
    world.missing["aio"] = "no such version"
    runner = world.runner()
    runner.prepare([WORKLOAD])
    runner.run(WORKLOAD)
    assert world.results.skipped == {"aio": "no such version"}
    assert "aio" not in world.names()
    assert any("no such version" in line for line in world.said)


def test_a_client_that_fails_is_out_of_the_workload_alone(world: World):
    world.actions["aio", 1] = ChildError("it ended: bad")
    runner = world.runner()
    runner.run(WORKLOAD)
    assert world.names().count("aio") == 2
    assert world.names().count("ours") == 4
    assert world.results.skipped == {"aio/rows-64": "it ended: bad"}
    assert world.closed == ["aio"]
    world.actions.clear()
    runner.run(replace(WORKLOAD, name="rows-1"))
    assert world.names().count("aio") == 2 + 4


def test_a_workload_that_loses_every_client_ends(world: World):
    for name in WORKLOAD.clients:
        world.actions[name, 0] = ChildError("no")
    world.runner().run(WORKLOAD)
    assert world.results.rounds == []
    assert len(world.results.skipped) == 3


def test_a_server_that_ended_is_started_again_and_all_clients_with_it(world: World):
    world.crashes.add(("aio", 0))
    world.runner().run(replace(WORKLOAD, clients=("perf", "aio")))
    assert world.server.revivals == 1
    assert "perf" in world.closed  # its connection was to the old server
    assert world.started.count(("perf", False)) == 2
    assert world.names().count("perf") == 4


def test_the_open_loop_runs_at_half_of_the_measured_capacity_with_the_same_arrivals(world: World):
    world.results.rounds += rounds("rows-64", "ours-unbatched", {"rows_per_s": [8e3, 9e3, 1e4]})
    workload = replace(BY_NAME["open"], clients=("ours", "aio"))
    world.runner().run(workload)
    assert {order.rate for _, order in world.log} == {4500.0}
    for number in range(4):
        seeds = [order.seed for _, order in world.log if order.seed == number]
        assert len(seeds) == 2
    assert world.started == [("ours", True), ("aio", True)]


def test_the_open_loop_is_skipped_where_the_capacity_is_not_known(world: World):
    world.runner().run(BY_NAME["open"])
    assert world.log == []
    assert "ours/open" in world.results.skipped


def test_what_a_workload_depends_on_is_measured_too():
    assert [each.name for each in needed(["open"])] == ["rows-64", "open"]
    assert [each.name for each in needed(["slow", "rows-1"])] == ["rows-1", "slow"]


def test_the_name_of_a_part_stands_for_its_workloads():
    assert [each.name for each in needed(["placing", "rows-1"])] == ["rows-1", *PARTS["placing"]]


def test_the_figures_of_a_round():
    counts = Counts(rows=96, executions=3)
    values = values_of(outcome(extras={"stall_ms": 4.0}), counts, WORKLOAD)
    assert values["rows_per_s"] == 50.0
    assert values["cpu_us_per_row"] == pytest.approx(10.0)
    assert values["rows_per_execution"] == 32.0
    assert values["p50_us"] == QUANTILES.index(0.5)
    assert values["stall_ms"] == 4.0
    assert "limit_share" not in values


def test_a_round_without_answers_has_no_cpu_a_row():
    values = values_of(outcome(rows=0, latency_us=()), Counts(), WORKLOAD)
    assert "cpu_us_per_row" not in values
    assert "p50_us" not in values


def test_the_limit_is_that_of_full_batches_back_to_back():
    counts = Counts(rows=100, executions=10, busy_s=0.101, full=2, full_s=0.02)
    values = values_of(outcome(), counts, BY_NAME["slow"])
    assert values["limit_rows_per_s"] == pytest.approx(3200.0)
    assert values["limit_share"] == pytest.approx(50 / 3200)


def test_where_no_batch_is_full_the_limit_comes_from_those_there_are():
    counts = Counts(rows=10, executions=10, busy_s=0.1)
    assert counts.limit_rows_per_s(BY_NAME["slow"]) == pytest.approx(3200.0)
    assert Counts().limit_rows_per_s(BY_NAME["slow"]) is None


def test_counts_of_a_round_are_differences():
    assert Counts(9, 5, 0.5, 3, 0.25) - Counts(4, 3, 0.25, 1, 0.125) == Counts(5, 2, 0.25, 2, 0.125)
