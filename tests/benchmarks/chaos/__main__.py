"""The chaos benchmark: syncs with a violent event in their midst, and whether the trail is true."""

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
from tests.benchmarks.chaos.report import print_report, told, write_json
from tests.benchmarks.chaos.rounds import Round, RoundPlan, play

_OUTPUT: Final = Path(__file__).parents[3] / ".local" / "benchmarks" / "chaos.json"
_WIDTH_IN_A_FILE: Final = 150
_console: Final = Console(
    width=None if sys.stdout.isatty() else _WIDTH_IN_A_FILE, log_path=False, highlight=False
)


def main() -> int:
    """Play the rounds, print and write what came of them; 1 when something was not as it must.

    Ctrl-C ends it with 130; what has been played by then is told.
    """
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rounds: list[Round] = []
    try:
        for played in _rounds(arguments):
            rounds.append(played)
            _console.log(told(played), markup=False)
    except StartFailed as failure:
        _console.print(str(failure), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        print_report(rounds, _console)
        write_json(rounds, arguments.json)
    return int(any(played.violations for played in rounds))


def _rounds(arguments: argparse.Namespace) -> Iterator[Round]:
    with chaos_parts() as parts:
        events = islice(cycle(arguments.event), arguments.rounds)
        for seed, event in enumerate(events, start=arguments.seed):
            yield play(parts, RoundPlan.drawn(seed, event, arguments.items))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.chaos",
        description=__doc__,
        epilog="To repeat a round: --rounds 1 --seed ITS_SEED --event ITS_EVENT",
    )
    parser.add_argument("--rounds", type=int, default=54, help="default: %(default)s")
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
