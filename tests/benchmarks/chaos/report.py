"""Tells what came of the rounds: tables for the terminal, JSON for machines."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.chaos.events import Event
from tests.benchmarks.chaos.rounds import Round
from tests.benchmarks.report import machine


def told(played: Round) -> str:
    """Return a round in one line, and a line for each of its violations."""
    line = (
        f"{played.plan}: {played.follow_ups} follow-ups, {played.resent} sent again, "
        f"ended {_seconds(played.end_seconds)} after it, {played.seconds:.0f} s in all"
    )
    return "\n  - ".join([line, *played.violations])


def print_report(rounds: Sequence[Round], console: Console) -> None:
    """Print a row for each kind of event, and how many rounds went as they must."""
    table = Table(title="Rounds by event", title_justify="left", caption_justify="left")
    table.add_column("event")
    headings = ("rounds", "clean", "sent again, most", "true end after, most", "follow-ups, most")
    for heading in headings:
        table.add_column(heading, justify="right")
    for event in Event:
        of_event = [played for played in rounds if event in played.events]
        if of_event:
            table.add_row(event, *_figures(of_event))
    table.caption = f"{_clean(rounds)} of {len(rounds)} rounds without a violation"
    console.print(table)


def write_json(rounds: Sequence[Round], path: Path) -> None:
    """Write everything that was found, each round on its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "rounds": [asdict(played) for played in rounds]}
    path.write_text(json.dumps(report, indent=2) + "\n")


def _figures(rounds: Sequence[Round]) -> tuple[str, ...]:
    ends = [played.end_seconds for played in rounds]
    latest = None if None in ends else max(end for end in ends if end is not None)
    return (
        str(len(rounds)),
        str(_clean(rounds)),
        str(max(played.resent for played in rounds)),
        _seconds(latest),
        str(max(played.follow_ups for played in rounds)),
    )


def _clean(rounds: Iterable[Round]) -> int:
    return sum(not played.violations for played in rounds)


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"
