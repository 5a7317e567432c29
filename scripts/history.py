"""Shows the latest runs, or what became of one, as the audit trail tells it."""

import argparse
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict
from rich import box
from rich.table import Table

from scripts.run_tables import (
    count_columns,
    counts_of,
    failure_table,
    folding,
    literal,
    literal_console,
    number,
    print_table,
    seconds_of,
    stage_table,
    status_text,
    whole,
)
from tasks.mongo_errors import MongoError
from tasks.settings import SettingsError, read_mongo_settings
from tasks.trail.fields import RunId
from tasks.trail.history import RunHistory, run_history
from tasks.trail.runs import RunRecord
from tasks.trail.steps import StepRecord

_COMMAND: Final = "python -m scripts.history"
_RUNS_SHOWN: Final = 20
_MOST_RUNS: Final = 10_000
_FAILURES_SHOWN: Final = 50
_SLOWEST_SHOWN: Final = 10


class NoSuchRun(LookupError):
    """The audit trail has no run of the `run_id` that was asked for."""


class View(BaseModel, ABC):
    """Facts of the audit trail: JSON as they are, or tables."""

    model_config = ConfigDict(frozen=True)

    @abstractmethod
    def tables(self) -> Iterator[Table]:
        """Return the facts as tables."""


class LatestRuns(View):
    """Runs, newest first."""

    runs: list[RunRecord]

    def tables(self) -> Iterator[Table]:
        yield _run_table(self.runs)


class RunDetails(View):
    """A run, its first failures and its slowest items."""

    run: RunRecord
    failures: list[StepRecord]
    slowest: list[StepRecord]

    def tables(self) -> Iterator[Table]:
        yield _head(self.run)
        yield stage_table(self.run)
        if self.failures:
            yield _failure_table(self.failures, caption=self._where_all_are())
        if self.slowest:
            yield _slowest_table(self.slowest)

    def _where_all_are(self) -> str | None:
        if len(self.failures) < _FAILURES_SHOWN:
            return None
        return f"No more than {_FAILURES_SHOWN} are shown; all: {_COMMAND} {self.run.id} --failed"


class RunFailures(View):
    """All failures of a run."""

    failures: list[StepRecord]

    def tables(self) -> Iterator[Table]:
        caption = None if self.failures else "No item has failed"
        yield _failure_table(self.failures, caption=caption)


def main() -> int:
    """Print what the arguments ask for; 2 when there is no such run or no way to read it."""
    arguments = _parser().parse_args()
    try:
        history = run_history(read_mongo_settings())
        view = _view(history, arguments)
    except (SettingsError, MongoError, NoSuchRun) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        _print_json(view)
    else:
        for table in view.tables():
            print_table(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument(
        "run_id", nargs="?", metavar="RUN_ID", help="show this run; else list the latest runs"
    )
    parser.add_argument(
        "--failed",
        action="store_true",
        help="list only runs that ended without every item in; with RUN_ID, all of its failures",
    )
    parser.add_argument(
        "--limit",
        type=_number_of_runs,
        default=_RUNS_SHOWN,
        metavar="N",
        help=f"how many runs to list (default {_RUNS_SHOWN})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _number_of_runs(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= _MOST_RUNS:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a number from 1 to {_MOST_RUNS}")


def _view(history: RunHistory, arguments: argparse.Namespace) -> View:
    if arguments.run_id is None:
        return _latest_runs(history, arguments.limit, only_failed=arguments.failed)
    run = _existing_run(history, arguments.run_id)
    if arguments.failed:
        return RunFailures(failures=history.failures(run.id))
    return RunDetails(
        run=run,
        failures=history.failures(run.id, _FAILURES_SHOWN),
        slowest=history.slowest(run.id, _SLOWEST_SHOWN),
    )


def _latest_runs(history: RunHistory, limit: int, *, only_failed: bool) -> LatestRuns:
    runs = history.unsuccessful_runs(limit) if only_failed else history.runs(1, limit).items
    return LatestRuns(runs=runs)


def _existing_run(history: RunHistory, run_id: str) -> RunRecord:
    if not RunId.is_valid(run_id):
        raise NoSuchRun(f"{run_id!r} is not a run_id (24 hex digits); {_COMMAND} lists the latest")
    run = history.run(RunId(run_id))
    if run is None:
        raise NoSuchRun(f"There is no run {run_id} in the audit trail; {_COMMAND} lists the latest")
    return run


def _print_json(view: View) -> None:
    try:
        print(view.model_dump_json(by_alias=True, indent=2, ensure_ascii=True), flush=True)
    except BrokenPipeError:
        literal_console().on_broken_pipe()


def _run_table(runs: list[RunRecord]) -> Table:
    table = Table(
        whole("run_id"),
        whole("status"),
        whole("started (UTC)"),
        number("seconds"),
        *count_columns(),
        folding("trigger"),
        folding("run name"),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption=None if runs else "No run to show",
        caption_justify="left",
    )
    for run in runs:
        table.add_row(
            str(run.id),
            status_text(run.status),
            _time(run.started_at),
            seconds_of(run),
            *counts_of(run),
            literal(run.trigger),
            literal(run.flow_run_name),
        )
    return table


def _head(run: RunRecord) -> Table:
    head = Table.grid(whole("fact"), folding("value"), padding=(0, 1))
    head.add_row("run_id", str(run.id))
    head.add_row("run name", literal(run.flow_run_name))
    head.add_row("status", status_text(run.status))
    head.add_row("message", literal(run.message))
    head.add_row("trigger", literal(run.trigger))
    head.add_row("started (UTC)", _time(run.started_at))
    head.add_row("finished (UTC)", _time(run.finished_at))
    head.add_row("Prefect flow run", run.flow_run_id)
    return head


def _failure_table(steps: list[StepRecord], caption: str | None) -> Table:
    return failure_table(steps, title="Failures", caption=caption, with_requests=True)


def _slowest_table(steps: list[StepRecord]) -> Table:
    table = Table(
        whole("entity"),
        folding("natural key"),
        number("ms"),
        number("attempts"),
        title="Slowest items",
        title_justify="left",
    )
    for step in steps:
        table.add_row(
            step.entity_type,
            literal(step.key),
            f"{step.duration_ms:.0f}",
            str(step.attempts),
        )
    return table


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else literal(None)


if __name__ == "__main__":
    sys.exit(main())
