"""Tables of runs, stages and items: no value is cut, and none is taken for markup."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tasks.trail.fields import ForeignDocument
from tasks.trail.history import RunEntry
from tasks.trail.runs import RunRecord
from tasks.trail.stages import RunStatus, StageRecord, Totals
from tasks.trail.steps import StepRecord, StepState

_FOLDED_WIDTH: Final = 12
"""How narrow a column of text gets at most."""
_UNFOLDED_WIDTH: Final = 10_000
_STYLE_BY_STATUS: Final = {
    RunStatus.SUCCESS: "green",
    RunStatus.PARTIAL: "yellow",
    RunStatus.PENDING: "dim",
    RunStatus.RUNNING: "cyan",
}
UNKNOWN: Final = "-"


def literal_console() -> Console:
    """Return a console on stdout that takes text as it is; in a pipe or file it folds none."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not sys.stdout.isatty():
        console.width = _UNFOLDED_WIDTH
    return console


def print_table(table: Table) -> None:
    """Print a table; where the terminal is too narrow for it, the terminal breaks its lines."""
    console = literal_console()
    console.width = max(console.width, _least_width(table))
    console.print(table)


def _least_width(table: Table) -> int:
    _, right, _, left = table.padding
    line = 1
    frame = left + right + line
    return line + sum(_least_column_width(column) + frame for column in table.columns)


def _least_column_width(column: Column) -> int:
    if not column.no_wrap:
        return _FOLDED_WIDTH
    return max(cell_len(str(cell)) for cell in (column.header, *column.cells))


def whole(heading: str) -> Column:
    """Return a column of values that are never folded."""
    return Column(heading, no_wrap=True)


def number(heading: str) -> Column:
    """Return a column of numbers."""
    return Column(heading, no_wrap=True, justify="right")


def folding(heading: str) -> Column:
    """Return a column of text that is folded where there is no room for it."""
    return Column(heading, overflow="fold")


def titled_table(*columns: Column, title: str, caption: str | None = None) -> Table:
    """Return a table without rows, with its title and its caption at the left."""
    return Table(
        *columns, title=title, title_justify="left", caption=caption, caption_justify="left"
    )


def count_columns() -> list[Column]:
    """Return the columns of what `counts_of` returns."""
    return [number(heading) for heading in ("total", "success", "failed", "skipped")]


def status_text(status: RunStatus) -> Text:
    """Return a status in its colour."""
    return Text(status, _STYLE_BY_STATUS.get(status, "red"))


def literal(text: str | None) -> str:
    """Return text from outside on one line, with characters that don't print written out."""
    if text is None:
        return UNKNOWN
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def counts_of(record: RunRecord | StageRecord) -> list[str]:
    """Return the counts of a run or stage that has ended; of another one they are not known."""
    counts: Totals = record.totals if isinstance(record, RunRecord) else record
    numbers = (counts.total, counts.success, counts.failed, counts.skipped)
    return [str(count) if record.finished_at else UNKNOWN for count in numbers]


def seconds_of(record: RunRecord | StageRecord) -> str:
    """Return how long a run or stage took."""
    return UNKNOWN if record.seconds is None else f"{record.seconds:.1f}"


def time_of(moment: datetime | None) -> str:
    """Return a time to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else literal(None)


def run_table(runs: Sequence[RunEntry], caption: str | None) -> Table:
    """Return a table of runs, one a line; the caption stands below it, None for nothing."""
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
        caption=caption,
        caption_justify="left",
    )
    for run in runs:
        if isinstance(run, ForeignDocument):
            unknown = [UNKNOWN] * (len(table.columns) - 2)
            table.add_row(literal(str(run.id)), *unknown, literal(run.document))
            continue
        table.add_row(
            str(run.id),
            status_text(run.status),
            time_of(run.started_at),
            seconds_of(run),
            *counts_of(run),
            literal(run.trigger),
            literal(run.flow_run_name),
        )
    return table


def run_head(run: RunRecord) -> Table:
    """Return the facts of a run."""
    head = Table.grid(whole("fact"), folding("value"), padding=(0, 1))
    head.add_row("run_id", str(run.id))
    head.add_row("run name", literal(run.flow_run_name))
    head.add_row("status", status_text(run.status))
    head.add_row("message", literal(run.message))
    head.add_row("trigger", literal(run.trigger))
    head.add_row("started (UTC)", time_of(run.started_at))
    head.add_row("finished (UTC)", time_of(run.finished_at))
    head.add_row("Prefect flow run", run.flow_run_id)
    return head


def stage_table(run: RunRecord) -> Table:
    """Return a table of a run's stages and of their sum."""
    table = Table(
        whole("stage"),
        whole("status"),
        *count_columns(),
        number("seconds"),
        title="Totals",
    )
    for stage in run.stages:
        table.add_row(
            stage.entity_type, status_text(stage.status), *counts_of(stage), seconds_of(stage)
        )
    table.add_section()
    table.add_row("all", "", *counts_of(run), seconds_of(run))
    return table


def failure_table(
    steps: Sequence[StepRecord], *, title: str, caption: str | None, with_requests: bool
) -> Table:
    """Return a table of items that are not in.

    Args:
        steps: the items.
        title: stands above the table.
        caption: stands below the table; None for nothing.
        with_requests: whether to tell of the requests too: how many, and their id.
    """
    table = titled_table(
        whole("entity"),
        folding("natural key"),
        folding("code"),
        folding("message"),
        *([number("attempts"), whole("request_id")] if with_requests else []),
        title=title,
        caption=caption,
    )
    for step in steps:
        table.add_row(
            step.entity_type,
            literal(step.key),
            literal(step.error.code if step.error else None),
            literal(step.error.message if step.error else None),
            *([_attempts_of(step), literal(step.request_id)] if with_requests else []),
        )
    return table


def slowest_table(steps: Sequence[StepRecord]) -> Table:
    """Return a table of items and of how long their last requests took."""
    table = titled_table(
        whole("entity"),
        folding("natural key"),
        number("ms"),
        number("attempts"),
        title="Slowest items",
    )
    for step in steps:
        table.add_row(
            step.entity_type,
            literal(step.key),
            f"{step.duration_ms:.0f}",
            str(step.attempts),
        )
    return table


def _attempts_of(step: StepRecord) -> str:
    if step.state is StepState.AWAITING_RETRY:
        return f"{step.attempts}, to be retried"
    return str(step.attempts)
