"""ItemHistory: reads items and the story of each, as the doors show them; never writes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, TypeAlias

from pydantic import BaseModel, ConfigDict
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database

from tasks.entities import ENTITY_NAMES
from tasks.mongo import Document, MongoRetry, mongo_operation, mongo_retry, trail_database
from tasks.settings import MongoSettings
from tasks.trail.fields import ForeignDocument, readable, shown
from tasks.trail.history import Page
from tasks.trail.items import ItemRecord
from tasks.trail.runs import NEWEST_FIRST, RunRecord
from tasks.trail.steps import NEWEST_STEP_FIRST, StepRecord

ItemEntry: TypeAlias = ItemRecord | ForeignDocument
_THERE: Final = {"$exists": True}
_NOT_THERE: Final = {"$exists": False}
_STILL_ENABLED: Final = {"gone_since": _THERE, "confirmed.body.enabled": {"$ne": False}}
_BY_KEY: Final = {"entity_type": ASCENDING, "natural_key": ASCENDING, "hub": ASCENDING}
_LONGEST_NOT_IN_FIRST: Final = {"not_in_since": ASCENDING, "_id": ASCENDING}
_LONGEST_GONE_FIRST: Final = {"gone_since": ASCENDING, "_id": ASCENDING}
_LATEST_OUTCOME_FIRST: Final = {"last.at": DESCENDING, "_id": ASCENDING}


class ItemChange(StrEnum):
    """Change of an item since the run before, or that there is none."""

    NEWLY_FAILING = "newly-failing"
    """The run did not bring it in, and it has failed since then."""
    STILL_FAILING = "still-failing"
    """It has not been in since before the run."""
    RECOVERED = "recovered"
    """The run brought it in, and it was not in before."""
    GONE = "gone"
    """Its document is gone from the source, and Stage 1 holds it enabled."""


@dataclass(frozen=True)
class ItemCounts:
    """Items of a type: those that are not in, and those that are gone and still enabled."""

    not_in: int = 0
    gone: int = 0


class ItemDetails(BaseModel):
    """An item: its record for each Stage 1, the latest outcome first, and its steps, newest first.

    Items of versions that kept no records have steps alone.
    """

    model_config = ConfigDict(frozen=True)

    items: list[ItemRecord]
    history: Page[StepRecord]


class ItemHistory:
    """The items of one database, for reading.

    Lists and counts cover the Stage 1 that each entity type was last sent to: another one that was
    used before does not show for ever. Every method waits for a MongoDB that is away, and raises
    `MongoError`.
    """

    def __init__(self, database: Database[Document], retry: MongoRetry) -> None:
        self._retry = retry
        self._runs = database["sync_runs"]
        self._steps = database["sync_steps"]
        self._items = database["sync_items"]

    @mongo_operation
    def items(
        self,
        page: int,
        limit: int,
        *,
        is_in: bool | None = None,
        entity_type: str | None = None,
        gone: bool | None = None,
    ) -> Page[ItemEntry]:
        """Return a page of the items; pages count from 1.

        They come by type and natural key; those that are not in, or gone, longest first.

        Args:
            page: which page.
            limit: items a page.
            is_in: only those that are in, or only those that are not; None for both.
            entity_type: only those of that type; None for all.
            gone: only those that are gone from the source, or only those that are not.
        """
        hubs = self._hubs_now()
        wanted = {name: hubs[name] for name in hubs if entity_type in (None, name)}
        match = {**_is_in(is_in), **_is_gone(gone)}
        order: Mapping[str, int] = _BY_KEY
        if is_in is False:
            order = _LONGEST_NOT_IN_FIRST
        elif gone:
            order = _LONGEST_GONE_FIRST
        found = _each(wanted, match)
        return Page(
            page=page,
            limit=limit,
            total=self._items.count_documents(found),
            items=[shown(ItemRecord, each) for each in self._some(found, order, page, limit)],
        )

    @mongo_operation
    def counts(self) -> dict[str, ItemCounts]:
        """Count what is not in and what is gone, by entity type; every type is there."""
        hubs = self._hubs_now()
        return dict.fromkeys(ENTITY_NAMES, ItemCounts()) | {
            entity_type: ItemCounts(
                not_in=self._count(hub, entity_type, {"not_in_since": _THERE}),
                gone=self._count(hub, entity_type, _STILL_ENABLED),
            )
            for entity_type, hub in hubs.items()
        }

    @mongo_operation
    def changed(
        self, run: RunRecord, change: ItemChange, page: int, limit: int
    ) -> Page[ItemRecord]:
        """Return a page of the items of a run with that change; pages count from 1.

        They are told by the items as they are now: a later run of the same types changes the
        answer. Those that fail and are gone come longest first.
        """
        match, order = _with(change, run)
        found = self._some(match, order, page, limit)
        return Page(
            page=page,
            limit=limit,
            total=self._items.count_documents(match),
            items=[item for each in found if (item := readable(ItemRecord, each))],
        )

    def newly_failing(self, run: RunRecord, limit: int) -> Page[ItemRecord]:
        """Return the first items that a run did not bring in, and that have failed since then."""
        return self.changed(run, ItemChange.NEWLY_FAILING, 1, limit)

    def still_failing(self, run: RunRecord, limit: int) -> Page[ItemRecord]:
        """Return the first items of a run's types that have not been in since before it."""
        return self.changed(run, ItemChange.STILL_FAILING, 1, limit)

    def recovered(self, run: RunRecord, limit: int) -> Page[ItemRecord]:
        """Return the first items that a run brought in, and that were not in before it."""
        return self.changed(run, ItemChange.RECOVERED, 1, limit)

    def gone(self, run: RunRecord, limit: int) -> Page[ItemRecord]:
        """Return the first items of a run's types that are gone and still enabled."""
        return self.changed(run, ItemChange.GONE, 1, limit)

    @mongo_operation
    def records(self, entity_type: str, natural_key: str) -> list[ItemRecord]:
        """Return an item's records, one for each Stage 1 ever, the latest outcome first."""
        match = {"entity_type": entity_type, "natural_key": natural_key}
        found = self._items.find(match).sort(_LATEST_OUTCOME_FIRST)
        return [item for each in found if (item := readable(ItemRecord, each))]

    @mongo_operation
    def story(self, entity_type: str, natural_key: str, page: int, limit: int) -> Page[StepRecord]:
        """Return a page of an item's steps over all runs, newest first; pages count from 1."""
        match = {"entity_type": entity_type, "natural_key": natural_key}
        found = self._steps.find(match).sort(NEWEST_STEP_FIRST).skip((page - 1) * limit)
        return Page(
            page=page,
            limit=limit,
            total=self._steps.count_documents(match),
            items=[step for each in found.limit(limit) if (step := readable(StepRecord, each))],
        )

    def item(self, entity_type: str, natural_key: str, page: int, limit: int) -> ItemDetails | None:
        """Return an item and a page of its steps; None where nothing is on record of it."""
        records = self.records(entity_type, natural_key)
        story = self.story(entity_type, natural_key, page, limit)
        return ItemDetails(items=records, history=story) if records or story.total else None

    def _hubs_now(self) -> dict[str, str]:
        """Return the Stage 1 that each type with items was last sent to."""
        hubs = {name: self._hub_now(name) for name in self._items.distinct("entity_type")}
        return {entity_type: hub for entity_type, hub in hubs.items() if hub}

    def _hub_now(self, entity_type: str) -> str | None:
        sent = {"$elemMatch": {"entity_type": entity_type, "hub": {"$gt": ""}}}
        stages = {"stages.entity_type": True, "stages.hub": True}
        run = self._runs.find_one(
            {"dry_run": {"$ne": True}, "stages": sent}, stages, sort=list(NEWEST_FIRST.items())
        )
        found = run["stages"] if run else ()
        hubs = (each.get("hub") for each in found if each.get("entity_type") == entity_type)
        return next((hub for hub in hubs if hub), None)

    def _count(self, hub: str, entity_type: str, match: Document) -> int:
        return self._items.count_documents({"hub": hub, "entity_type": entity_type, **match})

    def _some(
        self, match: Document, order: Mapping[str, int], page: int, limit: int
    ) -> Iterable[Document]:
        return self._items.find(match).sort(order).skip((page - 1) * limit).limit(limit)


@lru_cache(maxsize=8)
def item_history(settings: MongoSettings) -> ItemHistory:
    """Return this process's history of the items of the database that the settings name."""
    return ItemHistory(trail_database(settings), mongo_retry(settings))


def _is_in(is_in: bool | None) -> Document:
    if is_in is None:
        return {}
    return {"confirmed": _THERE, "not_in_since": _NOT_THERE} if is_in else {"not_in_since": _THERE}


def _is_gone(gone: bool | None) -> Document:
    return {} if gone is None else {"gone_since": _THERE if gone else _NOT_THERE}


def _with(change: ItemChange, run: RunRecord) -> tuple[Document, Mapping[str, int]]:
    """Return what matches the items of a run with that change, and their order."""
    hubs = _hubs_of(run)
    match change:
        case ItemChange.NEWLY_FAILING:
            since_then = {"not_in_since": {"$gte": run.started_at}, "last.run_id": run.id}
            return _each(hubs, since_then), _LONGEST_NOT_IN_FIRST
        case ItemChange.STILL_FAILING:
            before = {"not_in_since": {"$lt": run.started_at}}
            return _each(hubs, before), _LONGEST_NOT_IN_FIRST
        case ItemChange.RECOVERED:
            by_it = {"recovered.run_id": run.id, "recovered.since": {"$lt": run.started_at}}
            return {**by_it, "not_in_since": _NOT_THERE}, _BY_KEY
        case ItemChange.GONE:
            return _each(hubs, _STILL_ENABLED), _LONGEST_GONE_FIRST


def _hubs_of(run: RunRecord) -> dict[str, str]:
    return {stage.entity_type: stage.hub for stage in run.stages if stage.hub}


def _each(hubs: Mapping[str, str], match: Document) -> Document:
    """Match items of these types, each at its Stage 1, so that each has an index to go by."""
    if not hubs:
        return {"_id": {"$in": []}}
    return {
        "$or": [
            {"hub": hub, "entity_type": entity_type, **match} for entity_type, hub in hubs.items()
        ]
    }
