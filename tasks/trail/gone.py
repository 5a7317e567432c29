"""Gone: items that Stage 1 holds enabled, and whose documents are gone from the source."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Final

from pymongo import collection

from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.trail.fields import RunId

MOST_AT_ONCE: Final = 10
"""So many items of a type may be gone at once, however few there are."""
_PART_AT_ONCE: Final = 5
"""One in so many items of a type may be gone at once."""
_MARKED_AT_ONCE: Final = 1_000


@dataclass(frozen=True)
class GoneItems:
    """Items of a type that are gone; `held` is how many Stage 1 holds enabled, these included.

    `natural_keys` are theirs, unless they are too many.
    """

    count: int = 0
    held: int = 0
    natural_keys: tuple[str, ...] = ()

    @property
    def are_too_many(self) -> bool:
        """Whether so many are gone at once that the database may be the wrong one."""
        return self.count > _most_of(self.held)


class Gone:
    """Finds items that are gone, in `sync_items`."""

    def __init__(self, items: collection.Collection[Document], retry: MongoRetry) -> None:
        self._items = items
        self._retry = retry

    @mongo_operation
    def find(
        self,
        hub: str,
        entity_type: str,
        present: Document | Collection[str],
        mark_at: datetime | None,
    ) -> GoneItems:
        """Return the items of a type that are gone, and note since when they are.

        Args:
            hub: the Stage 1.
            entity_type: the type.
            present: the natural keys in the source; or a `$unionWith` that yields each as `key`.
            mark_at: when those are missed that were not missed before; None to note nothing.
        """
        held = _held(hub, entity_type)
        count = held_count = 0
        keys: list[str] = []
        gone = self._missing(held, present)
        while part := list(islice(gone, _MARKED_AT_ONCE)):
            held_count = held_count or self._items.count_documents(held)
            if mark_at is not None:
                self._mark({**held, "natural_key": {"$in": part}}, mark_at)
            count += len(part)
            if count <= _most_of(held_count):
                keys += part
        found = GoneItems(count, held_count, tuple(keys))
        return replace(found, natural_keys=()) if found.are_too_many else found

    @mongo_operation
    def forget_failures(self, hub: str, entity_type: str, run_id: RunId) -> None:
        """Forget that items are not in, but for those that a run has told so of.

        The run has read all documents: of the others there is none.
        """
        untold = {"not_in_since": {"$exists": True}, "last.run_id": {"$ne": run_id}}
        self._items.update_many(
            {"hub": hub, "entity_type": entity_type, **untold},
            {"$unset": {"not_in_since": True, "attempts": True}},
        )

    def _missing(self, held: Document, present: Document | Collection[str]) -> Iterator[str]:
        if not isinstance(present, dict):
            items = self._items.find(held, {"natural_key": True})
            return (key for item in items if (key := item["natural_key"]) not in present)
        pipeline: list[Document] = [
            {"$match": held},
            {"$project": {"_id": False, "key": "$natural_key", "is_held": {"$literal": True}}},
            {"$unionWith": present},
            {"$group": {"_id": "$key", "is_held": {"$max": "$is_held"}, "found": {"$sum": 1}}},
            {"$match": {"is_held": True, "found": 1}},
        ]
        groups = self._items.aggregate(pipeline, allowDiskUse=True, batchSize=_MARKED_AT_ONCE)
        return (group["_id"] for group in groups)

    def _mark(self, gone: Document, at: datetime) -> None:
        unmarked = {**gone, "gone_since": {"$exists": False}}
        self._items.update_many(unmarked, {"$set": {"gone_since": at}})


def _held(hub: str, entity_type: str) -> Document:
    return {
        "hub": hub,
        "entity_type": entity_type,
        "confirmed": {"$exists": True},
        "confirmed.body.enabled": {"$ne": False},
    }


def _most_of(held: int) -> int:
    return max(MOST_AT_ONCE, held // _PART_AT_ONCE)
