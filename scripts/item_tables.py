"""Tables of items: what Stage 1 holds of them, what came of them, and what would change."""

import json
from collections.abc import Sequence
from typing import Final

from rich.table import Table

from scripts.item_changes import ItemChanges, is_enabled
from scripts.run_tables import (
    REQUEST_ID_WIDTH,
    UNKNOWN,
    error_of,
    folding,
    holding_ids,
    item_of,
    literal,
    number,
    short_time_of,
    time_of,
    titled_table,
    whole,
)
from tasks.entities import label_of
from tasks.trail.fields import ForeignDocument
from tasks.trail.history import Page
from tasks.trail.item_history import ItemEntry
from tasks.trail.items import Confirmed, ItemRecord
from tasks.trail.runs import RunErrorRecord
from tasks.trail.steps import StepRecord

_OK: Final = "ok"


def not_in_table(items: Page[ItemEntry]) -> Table:
    """Return a table of items that are not in now."""
    table = titled_table(
        folding("item"),
        whole("since UTC"),
        folding("error"),
        number("attempts"),
        title="Not in now",
        caption=_left_out(items) if items.items else "No item is on record as not in",
    )
    for item in items.items:
        if isinstance(item, ForeignDocument):
            table.add_row(literal(item.document), *[UNKNOWN] * (len(table.columns) - 1))
            continue
        since = short_time_of(item.not_in_since)
        table.add_row(_name_of(item), since, _last_error_of(item), str(item.attempts))
    return table


def gone_table(items: Page[ItemEntry]) -> Table:
    """Return a table of items that are gone from the source now."""
    table = titled_table(
        folding("item"),
        whole("gone since UTC"),
        whole("in Stage 1"),
        title="Gone now",
        caption=_left_out(items) if items.items else "No item is on record as gone",
    )
    for item in items.items:
        if isinstance(item, ForeignDocument):
            table.add_row(literal(item.document), UNKNOWN, UNKNOWN)
            continue
        holds = "enabled" if is_enabled(item) else "not enabled"
        table.add_row(_name_of(item), short_time_of(item.gone_since), holds)
    return table


def changes_table(changes: ItemChanges, others: Sequence[RunErrorRecord] = ()) -> Table:
    """Return a table of what a run changed of items, and of what is not in.

    Args:
        changes: the items.
        others: what the run did not bring in and is no such item: twins, and what has no key.
    """
    table = titled_table(
        whole("change"),
        folding("item"),
        whole("since UTC"),
        folding("error"),
        title="What changed, and what is not in",
        caption=_counted(changes),
    )
    for item in changes.newly_failing.items:
        table.add_row("newly failing", _name_of(item), UNKNOWN, _last_error_of(item))
    for other in others:
        key = label_of(other.natural_key, other.source_id)
        error = literal(f"{other.code}: {other.message}")
        table.add_row("not confirmed", item_of(other.entity_type, key), UNKNOWN, error)
    for item in changes.still_failing.items:
        since = short_time_of(item.not_in_since)
        table.add_row("still failing", _name_of(item), since, _last_error_of(item))
    for item in changes.recovered.items:
        table.add_row("recovered", _name_of(item), UNKNOWN, UNKNOWN)
    for item in changes.gone.items:
        table.add_row("gone", _name_of(item), short_time_of(item.gone_since), UNKNOWN)
    return table


def item_head(item: ItemRecord) -> Table:
    """Return what a Stage 1 holds of an item, and what came of the item last."""
    head = Table.grid(whole("fact"), folding("value"), padding=(0, 1))
    head.add_row("item", f"{item.entity_type} {literal(item.natural_key)}")
    head.add_row("Stage 1", literal(item.hub))
    if item.confirmed is None:
        head.add_row("holds", "nothing that it has confirmed")
    else:
        _add_confirmed(head, item.confirmed)
    if item.last is not None:
        error = item.last.error
        head.add_row("last outcome", literal(f"{error.code}: {error.message}" if error else _OK))
        head.add_row("last outcome at (UTC)", time_of(item.last.at))
        head.add_row("last outcome in run", str(item.last.run_id))
    head.add_row("not in since (UTC)", time_of(item.not_in_since))
    head.add_row("attempts since then", str(item.attempts))
    head.add_row("gone since (UTC)", time_of(item.gone_since))
    return head


def _add_confirmed(head: Table, confirmed: Confirmed) -> None:
    head.add_row("version", literal(str(confirmed.version)))
    head.add_row("request_id", literal(confirmed.request_id))
    head.add_row("sync_id", literal(confirmed.sync_id))
    head.add_row("confirmed at (UTC)", time_of(confirmed.at))
    head.add_row("confirmed in run", str(confirmed.run_id))
    body = json.dumps(confirmed.body, ensure_ascii=False, default=str)
    head.add_row("body", literal(body))


def story_table(steps: Page[StepRecord]) -> Table:
    """Return a table of an item's versions and outcomes."""
    table = titled_table(
        whole("at UTC"),
        holding_ids("run_id, request_id", REQUEST_ID_WIDTH),
        folding("version"),
        folding("outcome"),
        title="Versions and outcomes, newest first",
        caption=_left_out(steps) if steps.items else "No run has it on record any more",
    )
    for step in steps.items:
        table.add_row(
            short_time_of(step.created_at),
            f"{step.run_id} {literal(step.request_id)}",
            literal(None if step.version is None else str(step.version)),
            _outcome_of(step),
        )
    return table


def change_table(steps: Sequence[StepRecord], caption: str | None) -> Table:
    """Return a table of what a dry run would change, one field a line; of a new item, all is new.

    Args:
        steps: the items that would be sent.
        caption: stands below the table; None for nothing.
    """
    table = titled_table(
        folding("item"),
        folding("field"),
        folding("old"),
        folding("new"),
        title="Would change",
        caption=caption,
    )
    for step in steps:
        item = item_of(step.entity_type, step.key)
        for change in step.changes or ():
            fields = (change.field, change.old, change.new)
            table.add_row(item, *(literal(each) for each in fields))
    return table


def _name_of(item: ItemRecord) -> str:
    return item_of(item.entity_type, label_of(item.natural_key, item.source_id))


def _last_error_of(item: ItemRecord) -> str:
    return error_of(item.last.error if item.last else None)


def _outcome_of(step: StepRecord) -> str:
    outcome = error_of(step.error) if step.error else _OK
    return f"{outcome} ({step.attempts} attempts)" if step.attempts > 1 else outcome


def _counted(changes: ItemChanges) -> str:
    counts = [f"{page.total} {name.replace('_', ' ')}" for name, page in changes]
    return ", ".join(counts)


def _left_out(shown: Page[ItemEntry] | Page[StepRecord]) -> str | None:
    left_out = shown.total - len(shown.items)
    return f"{left_out} more are not shown: --limit shows more" if left_out > 0 else None
