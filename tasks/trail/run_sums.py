"""RunSums: what several runs have come to together, as MongoDB sums it up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pymongo.collection import Collection

from tasks.mongo import Document
from tasks.trail.stages import OUTCOMES, REQUEST_BUCKETS, RequestTimes, RunStatus

_NO_DRY_RUN: Final = {"dry_run": {"$ne": True}}
_HAS_SUCCEEDED: Final = {"$eq": ["$stages.status", RunStatus.SUCCESS.value]}


def _once_ended(count: str) -> Document:
    """Return a count of a stage, 0 while it is live: it may fall then."""
    return {"$cond": [{"$eq": ["$stages.status", RunStatus.RUNNING.value]}, 0, f"$stages.{count}"]}


_IN_SKIPPED: Final = {
    "$cond": [{"$gt": ["$stages.most_skipped", None]}, 0, _once_ended("unchanged")]
}
"""Unchanged items that a stage of an older version counts among the skipped, too."""
_BY_TYPE: Final[Document] = {
    "_id": "$stages.entity_type",
    **{
        outcome: {"$sum": {"$ifNull": [f"$stages.most_{outcome}", _once_ended(outcome)]}}
        for outcome in OUTCOMES
    },
    "in_skipped": {"$sum": _IN_SKIPPED},
    **{name: {"$sum": f"$stages.requests.{name}"} for name in ("count", "seconds")},
    **{name: {"$sum": f"$stages.requests.buckets.{name}"} for name in REQUEST_BUCKETS},
    "last_success": {"$max": {"$cond": [_HAS_SUCCEEDED, "$stages.finished_at", None]}},
}
_RUNS_BY_STATUS: Final[Sequence[Document]] = [
    {"$group": {"_id": "$status", "runs": {"$sum": 1}, "counted_at": {"$max": "$counted_at"}}}
]
_SUMS_BY_STATUS: Final[Sequence[Document]] = [
    {"$unwind": "$runs"},
    {
        "$group": {
            "_id": "$runs.status",
            "runs": {"$sum": "$runs.count"},
            "counted_at": {"$max": "$counted_at"},
        }
    },
]


@dataclass(frozen=True)
class EntityFigures:
    """Sum of runs that were no dry runs, for one entity type.

    `items` counts by outcome; a run that was retried counts the most that each has come to.
    `last_success` is when a stage last ended with every item in; None if none ever did.
    """

    items: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    requests: RequestTimes = field(default_factory=RequestTimes)
    last_success: datetime | None = None

    def __add__(self, other: "EntityFigures") -> "EntityFigures":
        return EntityFigures(
            {outcome: self.items[outcome] + other.items[outcome] for outcome in OUTCOMES},
            self.requests + other.requests,
            _latest(self.last_success, other.last_success),
        )


@dataclass(frozen=True)
class RunSums:
    """Sum of runs: of their stages by entity type, without dry runs, and how many by status.

    `counted_at` is when one of them was last counted, by MongoDB's clock; None for never.
    """

    by_entity_type: Mapping[str, EntityFigures]
    by_status: Mapping[str, int]
    counted_at: datetime | None = None

    def __add__(self, other: "RunSums") -> "RunSums":
        types = {*self.by_entity_type, *other.by_entity_type}
        nothing = EntityFigures()
        return RunSums(
            {
                each: self.by_entity_type.get(each, nothing)
                + other.by_entity_type.get(each, nothing)
                for each in types
            },
            Counter(self.by_status) + Counter(other.by_status),
            _latest(self.counted_at, other.counted_at),
        )

    def as_document(self) -> Document:
        """Return the sum in the shape of a run, so that MongoDB can sum it up with others."""
        return {
            "stages": [_as_stage(name, each) for name, each in self.by_entity_type.items()],
            "runs": [
                {"status": status, "count": count} for status, count in self.by_status.items()
            ],
            "counted_at": self.counted_at,
        }


def sum_of_runs(runs: Collection[Document], match: Document) -> RunSums:
    """Sum up documents of `sync_runs`."""
    return _summed(runs, match, _RUNS_BY_STATUS)


def sum_of_sums(sums: Collection[Document], match: Document) -> RunSums:
    """Sum up documents that `RunSums.as_document` has made."""
    return _summed(sums, match, _SUMS_BY_STATUS)


def _summed(
    collection: Collection[Document], match: Document, by_status: Sequence[Document]
) -> RunSums:
    # A run that is counted between the two is newer than `counted_at` says, never older.
    statuses = list(collection.aggregate([{"$match": match}, *by_status]))
    types = collection.aggregate(
        [{"$match": {**match, **_NO_DRY_RUN}}, {"$unwind": "$stages"}, {"$group": _BY_TYPE}]
    )
    return RunSums(
        {group["_id"]: _figures(group) for group in types if isinstance(group["_id"], str)},
        {group["_id"]: group["runs"] for group in statuses if isinstance(group["_id"], str)},
        _latest(*(group["counted_at"] for group in statuses)),
    )


def _latest(*times: Any) -> datetime | None:
    return max((time for time in times if isinstance(time, datetime)), default=None)


def _figures(group: Document) -> EntityFigures:
    items = {outcome: group[outcome] for outcome in OUTCOMES}
    items["skipped"] -= group["in_skipped"]
    buckets = {name: group[name] for name in REQUEST_BUCKETS if group[name]}
    requests = RequestTimes(group["count"], group["seconds"], buckets)
    return EntityFigures(items, requests, _latest(group["last_success"]))


def _as_stage(entity_type: str, figures: EntityFigures) -> Document:
    success = {"status": RunStatus.SUCCESS.value, "finished_at": figures.last_success}
    return {
        "entity_type": entity_type,
        **{f"most_{outcome}": count for outcome, count in figures.items.items()},
        "requests": {
            "count": figures.requests.count,
            "seconds": figures.requests.seconds,
            "buckets": dict(figures.requests.buckets),
        },
        **(success if figures.last_success else {}),
    }
