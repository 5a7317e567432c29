"""Reports the sections' results: tables for the terminal, JSON for machines."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.benchmarks.contenders import Run
from tests.benchmarks.figures import Figure, Section, legible, pace, peak_rss_mib

_PACKAGES: Final = ("prefect", "httpx", "pymongo")
_ELSEWHERE: Final = ("Prefect server", "mongod", "hub", "other programs")
_VERDICTS: Final = {
    True: Text("met", "green"),
    False: Text("missed", "bold red"),
    None: Text("-", "dim"),
}


def print_report(sections: Sequence[Section], console: Console) -> None:
    """Print the runs, and the figures with their goals."""
    console.print(_run_table(sections))
    console.print(_figure_table(sections))


def write_json(sections: Sequence[Section], path: Path) -> None:
    """Write every run and figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "sections": [_section_as_json(s) for s in sections]}
    path.write_text(json.dumps(report, indent=2) + "\n")


def _run_table(sections: Iterable[Section]) -> Table:
    table = Table(title="Runs: medians", title_justify="left", caption_justify="left")
    table.caption = (
        "CPU seconds are of the contender's process and of what else ran until the servers had "
        "nothing left to do;\nother programs make a run's figures worse. API retries are requests "
        "to the Prefect server that its client repeated,\nin all runs together."
    )
    for heading in ("workload", "contender"):
        table.add_column(heading)
    for heading in ("runs", "s", "items/s", "MiB", "CPU s", *_ELSEWHERE, "API retries"):
        table.add_column(heading, justify="right")
    for section in sections:
        for (workload, contender), runs in _by_contender(section.runs):
            table.add_row(workload, contender, *_medians(runs))
        table.add_section()
    return table


def _medians(runs: Sequence[Run]) -> list[str]:
    elsewhere = (median(run.cpu_seconds_elsewhere[name] for run in runs) for name in _ELSEWHERE)
    return [
        str(len(runs)),
        f"{median(run.usage.seconds for run in runs):.2f}",
        f"{pace(runs):,.0f}",
        f"{peak_rss_mib(runs):.0f}",
        f"{median(run.usage.cpu_seconds for run in runs):.2f}",
        *(f"{seconds:.2f}" for seconds in elsewhere),
        _retries(runs),
    ]


def _retries(runs: Sequence[Run]) -> str:
    """Return the number of requests to the Prefect API that were repeated in all the runs."""
    records = [run.prefect for run in runs if run.prefect]
    return str(sum(record.client_retries for record in records)) if records else ""


def _figure_table(sections: Iterable[Section]) -> Table:
    table = Table(title="Goals", title_justify="left")
    for heading in ("section", "figure"):
        table.add_column(heading)
    for heading in ("value", "goal"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("note")
    for section in sections:
        for figure in section.figures:
            table.add_row(section.name, figure.name, *_verdict(figure), figure.note)
        table.add_section()
    return table


def _verdict(figure: Figure) -> tuple[str, str, Text]:
    value = "skipped" if figure.value is None else f"{legible(figure.value)} {figure.unit}".strip()
    goal = f"{figure.goal.comparison} {figure.goal.bound:,g}" if figure.goal else ""
    return value, goal, _VERDICTS[figure.is_met]


def _by_contender(runs: Iterable[Run]) -> Iterable[tuple[tuple[str, str], list[Run]]]:
    for key, group in groupby(runs, lambda run: (run.workload, run.contender)):
        yield key, list(group)


def _section_as_json(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "runs": [{**asdict(run), "items_per_second": run.items_per_second} for run in section.runs],
        "figures": [{**asdict(figure), "is_met": figure.is_met} for figure in section.figures],
    }


def machine() -> dict[str, Any]:
    """Return what a figure depends on apart from the code."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }
