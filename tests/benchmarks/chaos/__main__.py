"""The chaos benchmark: syncs with a fault in their midst, and checks of what they leave."""

import argparse
import signal
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from rich.console import Console

from scripts.local.process import StartFailed
from tests.benchmarks.chaos.events import Event
from tests.benchmarks.chaos.parts import chaos_parts
from tests.benchmarks.chaos.report import print_report, summary, write_json
from tests.benchmarks.chaos.rounds import RoundPlan, RoundResult, run_round

_OUTPUT: Final = Path(__file__).parents[3] / ".local" / "benchmarks" / "chaos.json"
_WIDTH_IN_A_FILE: Final = 150
_console: Final = Console(
    width=None if sys.stdout.isatty() else _WIDTH_IN_A_FILE, log_path=False, highlight=False
)


def main() -> int:
    """Run the rounds, print and write their results; 1 when there was a violation.

    Ctrl-C ends it with 130; the rounds that have ended by then are reported.
    """
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: list[RoundResult] = []
    try:
        for result in _results(arguments):
            results.append(result)
            _console.log(summary(result), markup=False)
    except StartFailed as failure:
        _console.print(str(failure), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        print_report(results, _console)
        write_json(results, arguments.json)
    return int(any(result.violations for result in results))


def _results(arguments: argparse.Namespace) -> Iterator[RoundResult]:
    with chaos_parts() as parts:
        events = islice(cycle(arguments.event), arguments.rounds)
        for seed, event in enumerate(events, start=arguments.seed):
            yield run_round(parts, RoundPlan.drawn(seed, event, arguments.items))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.chaos",
        description=__doc__,
        epilog="To repeat a round: --rounds 1 --seed ITS_SEED --event ITS_EVENT",
    )
    parser.add_argument("--rounds", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; then one more")
    parser.add_argument("--items", type=int, default=2_000, help="default: %(default)s")
    parser.add_argument(
        "--event",
        nargs="+",
        type=Event,
        default=list(Event),
        metavar="KIND",
        help=f"some of: {', '.join(Event)}; default: all, by turns",
    )
    parser.add_argument("--json", type=Path, default=_OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
