"""Ownership: which process works on which run, by MongoDB's clock, and which run has the turn.

One run of a database at a time has the turn: `active` is true in its document, and a unique index
keeps a second one out. Each execution of a run is an attempt with a number of its own; what an
earlier attempt still writes no longer fits the document.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from pymongo import ASCENDING, IndexModel, ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from tasks.entities import ENTITY_NAMES
from tasks.errors import StopReason
from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.trail.fields import RunAttempt, RunId, readable, stored
from tasks.trail.runs import (
    ACTIVE,
    INACTIVE,
    RunOptions,
    RunRecord,
    as_fields,
    not_newer_than,
    opening_stage,
    stored_inactive,
)
from tasks.trail.stages import UNFINISHED, RunStatus, StageRecord

WAITING: Final = "Waiting"
"""Name of the Prefect state of a run that waits for its turn."""
SILENT_SECONDS: Final = 45.0
"""A process that was not heard of for so long is gone; it is heard of each second."""
_IS_A_RUN: Final = {"flow_run_id": {"$gte": ""}}
"""Match documents that name a flow run; others in `sync_runs` are none of ours."""
TURN_INDEX: Final = IndexModel(
    [("active", ASCENDING)],
    name="one_run_has_the_turn",
    unique=True,
    partialFilterExpression={"active": True, **_IS_A_RUN},
)
_ALIVE_NOW: Final = {"$currentDate": {"alive_at": True}}
_SILENT_MS: Final = {
    "$cond": [
        {"$eq": [{"$type": "$alive_at"}, "date"]},
        {"$subtract": ["$$NOW", "$alive_at"]},
        None,
    ]
}
_SOON: Final = WriteConcern(w=1, j=False)


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without a terminal status.

    Its process was last heard of `silent_seconds` ago; None where it has not begun to speak, or is
    suspended. `mirrored_at` is since when Prefect had the state that is on record.
    """

    run_id: RunId
    flow_run_id: str
    silent_seconds: float | None
    mirrored_at: datetime | None = None

    @property
    def is_silent(self) -> bool:
        """Whether its process has spoken, and is gone."""
        return self.silent_seconds is not None and self.silent_seconds >= SILENT_SECONDS

    @property
    def is_heard(self) -> bool:
        """Whether its process lives."""
        return self.silent_seconds is not None and not self.is_silent


class Ownership:
    """Hands out the turn, and keeps it for the process that has it."""

    def __init__(self, runs: Collection[Document], retry: MongoRetry) -> None:
        self._runs = runs
        self._retry = retry

    @mongo_operation
    def take(self, run_id: RunId, options: RunOptions, at: datetime) -> RunAttempt | None:
        """Take the turn for the next attempt of a run that runs in Prefect since `at`.

        An earlier attempt of the same run loses it. Returns None while another run has the turn,
        and where the run has ended since.
        """
        run = self._runs.find_one({"_id": run_id})
        if run is None:
            return None
        begun: Document = {
            "status": RunStatus.RUNNING,
            "state": RunStatus.RUNNING.state_name,
            "message": "",
            "mirrored_at": at,
            "finished_at": None,
            "stopped_because": None,
            **as_fields(options),
        }
        if added := _missing(run["stages"], options.entities):
            begun["stages"] = _in_sync_order([*run["stages"], *added])
        if not run.get("attempt"):
            begun["started_at"] = at
        try:
            taken = self._runs.find_one_and_update(
                {"_id": run_id, "attempt": run.get("attempt"), **not_newer_than(at, "$lte")},
                {"$inc": {"attempt": 1}, "$set": {**begun, **ACTIVE}, **_ALIVE_NOW},
                projection={"attempt": True},
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            return None
        return RunAttempt(run_id, taken["attempt"]) if taken else None

    @mongo_operation
    def wait(self, run_id: RunId, message: str, at: datetime) -> bool:
        """Note that the process of a run lives that runs in Prefect since `at`, and why it waits.

        Returns False where the run has ended since, or has no document any more.
        """
        waiting = {"status": RunStatus.PENDING, "state": WAITING, "message": message}
        waits = self._runs.update_one(
            {"_id": run_id, **not_newer_than(at, "$lte")},
            {"$set": {**waiting, "finished_at": None}, **_ALIVE_NOW},
        )
        return bool(waits.matched_count)

    @mongo_operation
    def run_since(self, attempt: RunAttempt, at: datetime) -> None:
        """Note since when an attempt that had to wait runs, by Prefect's clock."""
        running = {"started_at": at} if attempt.number == 1 else {}
        self._runs.update_one(
            {**attempt.as_match(), **not_newer_than(at, "$lt")},
            {"$set": {**running, "mirrored_at": at}},
        )

    @mongo_operation
    def keep(self, attempt: RunAttempt) -> bool:
        """Note that the process of an attempt lives; False where the run is no longer its own."""
        own = {**attempt.as_match(), **ACTIVE}
        kept = self._runs.with_options(write_concern=_SOON).update_one(own, _ALIVE_NOW)
        return bool(kept.matched_count)

    @mongo_operation
    def restore(self, run: RunRecord, stages: Sequence[StageRecord], reason: StopReason) -> None:
        """Write the document of a run anew, which somebody has deleted.

        It has no turn any more: the run is stopped, and only its end is recorded.
        """
        document = stored_inactive(run)
        document["stages"] = [_stored_stage(stage) for stage in stages]
        document["stopped_because"] = asdict(reason)
        with suppress(DuplicateKeyError):
            self._runs.insert_one(document)

    @mongo_operation
    def suspend(
        self, run_id: RunId, message: str, at: datetime, state_name: str = "Suspended"
    ) -> None:
        """Note that a run is suspended since `at`, by Prefect's clock, unless that is older news.

        It gives its turn up.
        """
        suspended = {"status": RunStatus.PENDING, "state": state_name, "message": message}
        self._runs.update_one(
            {"_id": run_id, **not_newer_than(at, "$lt")},
            {"$set": {**suspended, "mirrored_at": at}, "$unset": INACTIVE},
        )

    @mongo_operation
    def holder(self) -> RunId | None:
        """Return the run that has the turn, None where none has."""
        run = self._runs.find_one({**ACTIVE, **_IS_A_RUN}, {"_id": True})
        return run["_id"] if run else None

    @mongo_operation
    def under_way(self) -> RunId | None:
        """Return an unfinished run, that with the turn first; None where none has a process."""
        runs = [run for run in self._unfinished() if not run.is_silent]
        return runs[0].run_id if runs else None

    @mongo_operation
    def unfinished(self) -> list[UnfinishedRun]:
        """Return the runs without a terminal status: that with the turn first, then the oldest."""
        return self._unfinished()

    def _unfinished(self) -> list[UnfinishedRun]:
        documents = self._runs.aggregate(
            [
                {"$match": {"status": {"$in": list(UNFINISHED)}}},
                {"$sort": {"active": -1, "started_at": ASCENDING}},
                {"$addFields": {"silent_ms": _SILENT_MS}},
            ]
        )
        runs = ((readable(RunRecord, each), each["silent_ms"]) for each in documents)
        return [_unfinished_run(run, silent_ms) for run, silent_ms in runs if run]


def _unfinished_run(run: RunRecord, silent_ms: int | None) -> UnfinishedRun:
    silent_seconds = None if silent_ms is None else silent_ms / 1000
    return UnfinishedRun(run.id, run.flow_run_id, silent_seconds, run.mirrored_at)


def _stored_stage(stage: StageRecord) -> Document:
    document = stored(stage)
    document["requests"] = asdict(stage.requests) if stage.requests else None
    document["stopped_because"] = asdict(stage.stopped_because) if stage.stopped_because else None
    return document


def _missing(stages: Sequence[Document], entities: Sequence[str]) -> list[Document]:
    """Return the stages that a run lacks, where its entity types were edited since it began.

    One that is no longer asked for stays, since its steps do.
    """
    present = {stage["entity_type"] for stage in stages}
    return [opening_stage(name) for name in entities if name not in present]


def _in_sync_order(stages: Sequence[Document]) -> list[Document]:
    return sorted(stages, key=lambda stage: ENTITY_NAMES.index(stage["entity_type"]))
