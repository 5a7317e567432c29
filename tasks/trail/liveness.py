"""Liveness: which runs have a process that lives, by MongoDB's clock."""

from dataclasses import dataclass
from typing import Final

from pymongo import ASCENDING
from pymongo.collection import Collection
from pymongo.write_concern import WriteConcern

from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.trail.fields import RunId
from tasks.trail.runs import ALIVE_NOW, RunAttempt
from tasks.trail.stages import UNFINISHED

_HEARD_OF: Final = {"$max": ["$alive_at", "$started_at"]}


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without a terminal status; its process was last heard of `silent_seconds` ago."""

    run_id: RunId
    flow_run_id: str
    silent_seconds: float


class Liveness:
    """Notes and tells which runs live, in `sync_runs.alive_at`."""

    def __init__(self, runs: Collection[Document], retry: MongoRetry) -> None:
        self._runs = runs
        self._retry = retry

    @mongo_operation
    def show(self, attempt: RunAttempt) -> None:
        """Note that the process of an attempt lives."""
        undurable = self._runs.with_options(write_concern=WriteConcern(w=1))
        undurable.update_one({"_id": attempt.run_id, "attempt": attempt.number}, ALIVE_NOW)

    @mongo_operation
    def unfinished(self) -> list[UnfinishedRun]:
        """Return the runs without a terminal status, oldest first."""
        runs = self._runs.aggregate(
            [
                {"$match": {"status": {"$in": list(UNFINISHED)}}},
                {"$sort": {"started_at": ASCENDING}},
                {"$addFields": {"silent_ms": {"$subtract": ["$$NOW", _HEARD_OF]}}},
                {"$project": {"flow_run_id": True, "silent_ms": True}},
            ]
        )
        return [
            UnfinishedRun(run["_id"], run["flow_run_id"], run["silent_ms"] / 1000) for run in runs
        ]
