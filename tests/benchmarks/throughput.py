"""The throughput benchmark: our sync beside simpler loops, on servers of its own."""

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console

from scripts.local.process import StartFailed
from tests.benchmarks.checks import BenchmarkFailed
from tests.benchmarks.figures import Section
from tests.benchmarks.parts import benchmark_parts
from tests.benchmarks.plot import write_plot
from tests.benchmarks.report import print_report, write_json
from tests.benchmarks.sections import MILLION, SECTIONS, Bench, large

_OUTPUT: Final = Path(__file__).parents[2] / ".local" / "benchmarks"
_WIDTH_IN_A_FILE: Final = 150
_console: Final = Console(
    width=None if sys.stdout.isatty() else _WIDTH_IN_A_FILE, log_path=False, highlight=False
)


def main() -> int:
    """Measure, print and write; 1 when a run did not do its work, whatever the goals say."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sections = list(_measured(arguments))
    except (BenchmarkFailed, StartFailed) as failure:
        _console.print(str(failure), style="red", markup=False)
        return 1
    print_report(sections, _console)
    write_json(sections, arguments.json)
    write_plot(sections, arguments.plot)
    return 0


def _measured(arguments: argparse.Namespace) -> Iterator[Section]:
    with benchmark_parts() as parts:
        bench = Bench(parts, arguments.rounds, _OUTPUT / "node", _console.log)
        if arguments.million:
            yield large(bench, MILLION)
            return
        for name in arguments.only:
            yield SECTIONS[name](bench)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.throughput")
    parser.description = __doc__
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="NAME",
        help=f"some of: {', '.join(SECTIONS)}",
    )
    parser.add_argument("--million", action="store_true", help="a million items, nothing else")
    parser.add_argument("--json", type=Path, default=_OUTPUT / "throughput.json")
    parser.add_argument("--plot", type=Path, default=_OUTPUT / "throughput.png")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
