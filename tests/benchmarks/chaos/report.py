"""Reports the rounds: a table for the terminal, JSON for machines."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.chaos.events import Event
from tests.benchmarks.chaos.rounds import RoundResult
from tests.benchmarks.report import machine


def summary(result: RoundResult) -> str:
    """Return a round in one line, and a line for each of its violations."""
    line = (
        f"{result.plan}: {result.follow_ups} follow-ups, {result.resent} sent again, "
        f"ended {_seconds(result.end_seconds)} after it, {result.seconds:.0f} s in all"
    )
    return "\n  - ".join([line, *result.violations])


def print_report(results: Sequence[RoundResult], console: Console) -> None:
    """Print a row for each kind of event, and the number of rounds without a violation."""
    table = Table(title="Rounds by event", title_justify="left", caption_justify="left")
    table.add_column("event")
    headings = ("rounds", "clean", "sent again, most", "true end after, most", "follow-ups, most")
    for heading in headings:
        table.add_column(heading, justify="right")
    for event in Event:
        of_event = [result for result in results if event in result.plan.kinds]
        if of_event:
            table.add_row(event, *_figures(of_event))
    table.caption = f"{_clean(results)} of {len(results)} rounds without a violation"
    console.print(table)


def write_json(results: Sequence[RoundResult], path: Path) -> None:
    """Write every round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "rounds": [asdict(result) for result in results]}
    path.write_text(json.dumps(report, indent=2) + "\n")


def _figures(results: Sequence[RoundResult]) -> tuple[str, ...]:
    ends = [result.end_seconds for result in results]
    latest = None if None in ends else max(end for end in ends if end is not None)
    return (
        str(len(results)),
        str(_clean(results)),
        str(max(result.resent for result in results)),
        _seconds(latest),
        str(max(result.follow_ups for result in results)),
    )


def _clean(results: Iterable[RoundResult]) -> int:
    return sum(not result.violations for result in results)


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"
