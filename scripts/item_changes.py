"""Items that somebody has to look at: those that are not in, what a run changed, what is gone."""

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict

from tasks.errors import urgency
from tasks.trail.fields import ForeignDocument
from tasks.trail.history import EntryType, Page
from tasks.trail.item_history import ItemEntry, ItemHistory
from tasks.trail.items import ItemRecord
from tasks.trail.runs import RunErrorRecord, RunRecord
from tasks.trail.steps import StepRecord

SORTED: Final = 1_000
"""How many items of a list are read at least, to find those that come first."""

FoundType = TypeVar("FoundType", ItemEntry, ItemRecord)


class ItemChanges(BaseModel):
    """Items of a run's types, as they are now.

    Of those that are not in, the most urgent come first.
    """

    model_config = ConfigDict(frozen=True)

    newly_failing: Page[ItemRecord]
    still_failing: Page[ItemRecord]
    recovered: Page[ItemRecord]
    gone: Page[ItemRecord]

    @property
    def is_there_any(self) -> bool:
        return any(page.total for _, page in self)

    def first(self, shown: int) -> "ItemChanges":
        """Return the first items of each kind."""
        pages = {name: cut(page, shown) for name, page in self}
        return self.model_copy(update=pages)


def item_changes(history: ItemHistory, run: RunRecord) -> ItemChanges:
    """Return what a run changed of items: the first `SORTED` of each kind."""
    return ItemChanges(
        newly_failing=_in_order(history.newly_failing(run, SORTED), _urgency_of),
        still_failing=_in_order(history.still_failing(run, SORTED), _urgency_of),
        recovered=history.recovered(run, SORTED),
        gone=history.gone(run, SORTED),
    )


def others_not_in(run: RunRecord, changes: ItemChanges) -> list[RunErrorRecord]:
    """Return the errors of a run that are of no item which is not in.

    Those are of documents without a natural key, of twins, and of what was not sent again.
    """
    told = {
        (item.entity_type, item.natural_key)
        for page in (changes.newly_failing, changes.still_failing)
        for item in page.items
    }
    return [error for error in run.errors if (error.entity_type, error.natural_key) not in told]


def not_in_now(history: ItemHistory, limit: int) -> Page[ItemEntry]:
    """Return the items that are not in now, the most urgent first."""
    found = history.items(1, max(limit, SORTED), is_in=False)
    return cut(_in_order(found, _urgency_of), limit)


def gone_now(history: ItemHistory, limit: int) -> Page[ItemEntry]:
    """Return the items that are gone now; those that Stage 1 holds enabled come first."""
    found = history.items(1, max(limit, SORTED), gone=True)
    return cut(_in_order(found, lambda item: not is_enabled(item)), limit)


def most_urgent(steps: Iterable[StepRecord], limit: int) -> list[StepRecord]:
    """Return the first failures of a run, the most urgent first."""
    return sorted(steps, key=lambda step: urgency(step.error))[:limit]


def is_enabled(item: ItemEntry) -> bool:
    """Whether Stage 1 holds an item enabled, as far as is known."""
    if isinstance(item, ForeignDocument):
        return True
    return item.confirmed is not None and item.confirmed.body.get("enabled") is not False


def cut(page: Page[EntryType], limit: int) -> Page[EntryType]:
    """Return the first entries of a page that is the first one."""
    return page.model_copy(update={"limit": limit, "items": page.items[:limit]})


def _in_order(page: Page[FoundType], rank: Callable[[FoundType], int]) -> Page[FoundType]:
    """Return a page with its items by rank; those of the same rank stay in their order."""
    return page.model_copy(update={"items": sorted(page.items, key=rank)})


def _urgency_of(item: ItemEntry) -> int:
    if isinstance(item, ForeignDocument) or item.last is None:
        return urgency(None)
    return urgency(item.last.error)
