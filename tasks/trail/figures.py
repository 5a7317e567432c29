"""Figures: what all runs together have come to, for the metrics."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Final

from pymongo.collection import Collection

from tasks.mongo import Document, trail_database
from tasks.mongo_errors import mongo_errors
from tasks.settings import MongoSettings
from tasks.trail.stages import REQUEST_BUCKETS, RequestTimes, RunStatus, StageTotals

_COUNTS: Final = tuple(name for name in StageTotals.model_fields if name != "first")
_HAS_SUCCEEDED: Final = {"$eq": ["$stages.status", RunStatus.SUCCESS.value]}
_BY_ENTITY_TYPE: Final[Document] = {
    "_id": "$stages.entity_type",
    **{name: {"$sum": f"$stages.{name}"} for name in _COUNTS},
    **{name: {"$sum": f"$stages.requests.{name}"} for name in ("count", "seconds")},
    **{name: {"$sum": f"$stages.requests.buckets.{name}"} for name in REQUEST_BUCKETS},
    "last_success": {"$max": {"$cond": [_HAS_SUCCEEDED, "$stages.finished_at", None]}},
}


@dataclass(frozen=True)
class EntityFigures:
    """Sum of all runs that were no dry runs, for one entity type.

    `last_success` is when a stage last ended with every item in; None if none ever did.
    """

    items: StageTotals = field(default_factory=StageTotals)
    requests: RequestTimes = field(default_factory=RequestTimes)
    last_success: datetime | None = None


class Figures:
    """Sums up `sync_runs`, which never expire; no method waits for a MongoDB that is away."""

    def __init__(self, runs: Collection[Document]) -> None:
        self._runs = runs

    def by_entity_type(self) -> dict[str, EntityFigures]:
        """Sum up the stages of all runs.

        Raises:
            MongoError: MongoDB is away, or does not let us.
        """
        pipeline: list[Document] = [
            {"$match": {"dry_run": {"$ne": True}}},
            {"$unwind": "$stages"},
            {"$group": _BY_ENTITY_TYPE},
        ]
        with mongo_errors():
            return {group["_id"]: _figures(group) for group in self._runs.aggregate(pipeline)}

    def paces(self) -> dict[str, float]:
        """Return to how many requests a second running stages are held, by entity type.

        0 is for one that waits; of several of a type, the slowest counts.

        Raises:
            MongoError: MongoDB is away, or does not let us.
        """
        running = RunStatus.RUNNING.value
        held: list[Document] = [
            {"$match": {"status": running}},
            {"$unwind": "$stages"},
            {"$match": {"stages.status": running, "stages.pace": {"$ne": None}}},
            {"$group": {"_id": "$stages.entity_type", "pace": {"$min": "$stages.pace"}}},
        ]
        with mongo_errors():
            return {group["_id"]: group["pace"] for group in self._runs.aggregate(held)}

    def runs_by_status(self) -> dict[RunStatus, int]:
        """Count all runs, dry ones too; every status is there.

        Raises:
            MongoError: MongoDB is away, or does not let us.
        """
        by_status: list[Document] = [{"$group": {"_id": "$status", "runs": {"$sum": 1}}}]
        with mongo_errors():
            found = {group["_id"]: group["runs"] for group in self._runs.aggregate(by_status)}
        return {status: found.get(status.value, 0) for status in RunStatus}


@lru_cache(maxsize=8)
def figures(settings: MongoSettings) -> Figures:
    """Return the figures of the database that the settings name."""
    return Figures(trail_database(settings)["sync_runs"])


def _figures(group: Document) -> EntityFigures:
    buckets = {name: group[name] for name in REQUEST_BUCKETS if group[name]}
    requests = RequestTimes(group["count"], group["seconds"], buckets)
    return EntityFigures(StageTotals.model_validate(group), requests, group["last_success"])
