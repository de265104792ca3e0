"""Run every benchmark and print goal, measured, met: ``python -m benchmarks [--quick]``."""

from __future__ import annotations

import argparse
import sys

from benchmarks import imports, latency, wire_bytes
from benchmarks.samples import HEADER


def main() -> int:
    """Return 0 if every goal was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute")
    options = parser.parse_args()
    print(HEADER)
    figures = []
    for benchmark in (imports, wire_bytes, latency):
        for figure in benchmark.run(quick=options.quick):
            print(figure.line(), flush=True)
            figures.append(figure)
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
