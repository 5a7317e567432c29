"""Tables of items: what Stage 1 holds of them, what came of them, and what would change."""

import json
from collections.abc import Sequence
from typing import Final

from rich.table import Table

from scripts.run_tables import UNKNOWN, folding, literal, number, time_of, titled_table, whole
from tasks.trail.fields import ForeignDocument
from tasks.trail.history import Page
from tasks.trail.item_history import ItemEntry
from tasks.trail.items import Confirmed, ItemRecord
from tasks.trail.steps import StepRecord

_OK: Final = "ok"


def not_in_table(items: Page[ItemEntry]) -> Table:
    """Return a table of items that are not in now."""
    table = titled_table(
        whole("entity"),
        folding("natural key"),
        whole("since (UTC)"),
        number("attempts"),
        folding("code"),
        folding("message"),
        title="Not in now",
        caption=_left_out(items) if items.items else "No item is on record as not in",
    )
    for item in items.items:
        if isinstance(item, ForeignDocument):
            table.add_row(*[UNKNOWN] * (len(table.columns) - 1), literal(item.document))
            continue
        error = item.last.error if item.last else None
        table.add_row(
            item.entity_type,
            literal(item.natural_key),
            time_of(item.not_in_since),
            str(item.attempts),
            literal(error.code if error else None),
            literal(error.message if error else None),
        )
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
        whole("at (UTC)"),
        whole("run_id"),
        folding("version"),
        folding("outcome"),
        folding("message"),
        number("attempts"),
        whole("request_id"),
        title="Versions and outcomes, newest first",
        caption=_left_out(steps) if steps.items else "No run has it on record any more",
    )
    for step in steps.items:
        table.add_row(
            time_of(step.created_at),
            str(step.run_id),
            literal(None if step.version is None else str(step.version)),
            literal(step.error.code if step.error else _OK),
            literal(step.error.message if step.error else None),
            str(step.attempts),
            literal(step.request_id),
        )
    return table


def change_table(steps: Sequence[StepRecord], caption: str | None) -> Table:
    """Return a table of what a dry run would change, one field a line; of a new item, all is new.

    Args:
        steps: the items that would be sent.
        caption: stands below the table; None for nothing.
    """
    table = titled_table(
        whole("entity"),
        folding("natural key"),
        folding("field"),
        folding("old"),
        folding("new"),
        title="Would change",
        caption=caption,
    )
    for step in steps:
        for change in step.changes or ():
            table.add_row(
                step.entity_type,
                literal(step.key),
                literal(change.field),
                literal(change.old),
                literal(change.new),
            )
    return table


def _left_out(shown: Page[ItemEntry] | Page[StepRecord]) -> str | None:
    left_out = shown.total - len(shown.items)
    return f"{left_out} more are not shown: --limit shows more" if left_out > 0 else None
