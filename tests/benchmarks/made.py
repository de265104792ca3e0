"""Results made by hand, for the tests of what reads them."""

from collections.abc import Mapping, Sequence

from benchmarks.clients.protocol import QUANTILES
from benchmarks.results import Results, Round, Taken

MACHINE = {"processor": "a <fast> one", "cores": "2"}


def results(*rounds: Round) -> Results:
    taken = Taken("2026-11-21T10:00:00+01:00", dict(MACHINE), {"python": "3.11"}, {"quick": "no"})
    return Results(taken, clients={"aio": {"grpcio": "1.85"}}, rounds=list(rounds))


def rounds(
    workload: str, client: str, values: Mapping[str, Sequence[float]], *, errors: int = 0
) -> list[Round]:
    """One round for each value; the names of ``values`` are those of measures."""
    count = len(next(iter(values.values())))
    return [
        Round(
            workload,
            client,
            number,
            {name: series[number] for name, series in values.items()},
            tuple(100.0 * (1 + q) for q in QUANTILES),
            checked=1,
            errors=errors,
            first_error="Error: it <failed>" if errors else "",
        )
        for number in range(count)
    ]
