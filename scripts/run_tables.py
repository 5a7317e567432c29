"""Tables of runs, stages and items: no value is cut, and none is taken for markup."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tasks.errors import ItemError
from tasks.trail.fields import ForeignDocument
from tasks.trail.history import RunEntry
from tasks.trail.runs import RunRecord
from tasks.trail.stages import RunStatus, StageRecord, Totals
from tasks.trail.steps import StepRecord, StepState

_FOLDED_WIDTH: Final = 12
"""How narrow a column of text gets at most."""
_UNFOLDED_WIDTH: Final = 10_000
_RUN_ID_WIDTH: Final = 24
REQUEST_ID_WIDTH: Final = 32
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
    unfolded = console.measure(table, options=console.options.update_width(_UNFOLDED_WIDTH))
    if unfolded.maximum > console.width:
        _narrow_ids(table)
    console.width = max(console.width, _least_width(table))
    console.print(table)


def _narrow_ids(table: Table) -> None:
    for column in table.columns:
        column.width = column.min_width


def _least_width(table: Table) -> int:
    _, right, _, left = table.padding
    edges = 2 if table.show_edge else 0
    frame = len(table.columns) * (left + right) + len(table.columns) - 1 + edges
    return frame + sum(_least_column_width(column) for column in table.columns)


def _least_column_width(column: Column) -> int:
    if column.min_width is not None:
        return column.min_width
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


def holding_ids(heading: str, width: int) -> Column:
    """Return a column of ids and what goes with them.

    Where the table is too wide, each id has a line of its own, and is never folded.
    """
    return Column(heading, min_width=width, overflow="fold")


def titled_table(*columns: Column, title: str, caption: str | None = None) -> Table:
    """Return a table without rows, with its title and its caption at the left."""
    return Table(
        *columns, title=title, title_justify="left", caption=caption, caption_justify="left"
    )


def count_columns() -> list[Column]:
    """Return the columns of what `counts_of` returns."""
    return [number(heading) for heading in ("total", "ok", "failed", "skipped")]


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
    """Return the counts of a run or stage; until it is known of how many items, they are not."""
    counts: Totals = record.totals if isinstance(record, RunRecord) else record
    is_known = counts.total or record.finished_at
    numbers = (counts.total, counts.success, counts.failed, counts.skipped)
    return [str(count) if is_known else UNKNOWN for count in numbers]


def seconds_of(record: RunRecord | StageRecord) -> str:
    """Return how long a run or stage took."""
    return UNKNOWN if record.seconds is None else f"{record.seconds:.1f}"


def time_of(moment: datetime | None) -> str:
    """Return a time to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else UNKNOWN


def short_time_of(moment: datetime | None) -> str:
    """Return a time of this year to the minute, and of another year the day, as `ls -l` does."""
    if moment is None:
        return UNKNOWN
    is_of_this_year = moment.year == datetime.now(UTC).year
    return f"{moment:%m-%d %H:%M}" if is_of_this_year else f"{moment:%Y-%m-%d}"


def error_of(error: ItemError | None) -> str:
    """Return an error on one line."""
    return literal(f"{error.code}: {error.message}" if error else None)


def run_table(runs: Sequence[RunEntry], caption: str | None) -> Table:
    """Return a table of runs, one a line; the caption stands below it, None for nothing."""
    table = Table(
        holding_ids("run_id, run name", _RUN_ID_WIDTH),
        whole("status"),
        whole("started UTC"),
        number("secs"),
        *count_columns(),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption=caption,
        caption_justify="left",
    )
    for run in runs:
        if isinstance(run, ForeignDocument):
            unknown = [UNKNOWN] * (len(table.columns) - 1)
            table.add_row(literal(f"{run.id} {run.document}"), *unknown)
            continue
        table.add_row(
            literal(f"{run.id} {run.flow_run_name}"),
            status_text(run.status),
            short_time_of(run.started_at),
            seconds_of(run),
            *counts_of(run),
        )
    return table


def run_head(run: RunRecord) -> Table:
    """Return the facts of a run."""
    head = Table.grid(whole("fact"), folding("value"), padding=(0, 1))
    head.add_row("run_id", str(run.id))
    head.add_row("run name", literal(run.flow_run_name))
    head.add_row("status", status_text(run.status))
    head.add_row("state in Prefect", literal(run.state))
    head.add_row("message", literal(run.message))
    head.add_row("trigger", literal(run.trigger))
    head.add_row("started (UTC)", time_of(run.started_at))
    head.add_row("finished (UTC)", time_of(run.finished_at))
    head.add_row("Prefect flow run", run.flow_run_id)
    return head


def stage_table(run: RunRecord) -> Table:
    """Return a table of a run's stages and of their sum."""
    table = titled_table(
        whole("stage"),
        whole("status"),
        *count_columns(),
        number("seconds"),
        title="Totals",
        caption=_besides_totals(run),
    )
    for stage in run.stages:
        table.add_row(
            stage.entity_type, status_text(stage.status), *counts_of(stage), seconds_of(stage)
        )
    table.add_section()
    table.add_row("all", "", *counts_of(run), seconds_of(run))
    return table


def _besides_totals(run: RunRecord) -> str | None:
    retrying = sum(stage.retrying for stage in run.stages)
    unchanged = sum(stage.unchanged for stage in run.stages)
    told = [
        *([f"{retrying} await a retry"] if retrying else []),
        *([f"{unchanged} skipped as unchanged"] if unchanged else []),
    ]
    return "; ".join(told) or None


def failure_table(steps: Sequence[StepRecord], *, title: str, caption: str | None) -> Table:
    """Return a table of items that are not in.

    Args:
        steps: the items.
        title: stands above the table.
        caption: stands below the table; None for nothing.
    """
    table = titled_table(
        holding_ids("item, request_id", REQUEST_ID_WIDTH),
        folding("error"),
        number("attempts"),
        title=title,
        caption=caption,
    )
    for step in steps:
        item = f"{item_of(step.entity_type, step.key)} {literal(step.request_id)}"
        table.add_row(item, error_of(step.error), _attempts_of(step))
    return table


def slowest_table(steps: Sequence[StepRecord]) -> Table:
    """Return a table of items and of how long their last requests took."""
    table = titled_table(folding("item"), number("ms"), number("attempts"), title="Slowest items")
    for step in steps:
        item = item_of(step.entity_type, step.key)
        table.add_row(item, f"{step.duration_ms:.0f}", str(step.attempts))
    return table


def item_of(entity_type: str, key: str) -> str:
    """Return the name of an item, as `scripts.history` takes it."""
    return literal(f"{entity_type}/{key}")


def _attempts_of(step: StepRecord) -> str:
    if step.state is StepState.AWAITING_RETRY:
        return f"{step.attempts}, to be retried"
    return str(step.attempts)
