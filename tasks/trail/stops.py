"""Stops: whether a run or a stage still sends, as all processes that work on it know it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from pymongo.collection import Collection

from tasks.errors import RUN_CANCELLED, StopReason
from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.trail.fields import RunId
from tasks.trail.runs import RunAttempt
from tasks.trail.stages import RunStatus

_ENDED: Final = StopReason("the run has ended")
_SUPERSEDED: Final = StopReason("the run has begun anew elsewhere")
_FIELDS: Final = (
    "stopped_because",
    "attempt",
    "status",
    "stages.entity_type",
    "stages.stopped_because",
)


class Stops:
    """Stops runs and their stages, in `stopped_because` of theirs in `sync_runs`."""

    def __init__(self, runs: Collection[Document], retry: MongoRetry) -> None:
        self._runs = runs
        self._retry = retry

    @mongo_operation
    def stop(self, run_id: RunId, reason: StopReason) -> None:
        """Let no process send anything more for a run; the first reason stays."""
        going_on = {"_id": run_id, "stopped_because": None}
        self._runs.update_one(going_on, {"$set": {"stopped_because": asdict(reason)}})

    @mongo_operation
    def stop_stage(self, run_id: RunId, entity_type: str, reason: StopReason) -> None:
        """Let no process send anything more in a stage of a run; the first reason stays."""
        going_on = {"entity_type": entity_type, "stopped_because": None}
        self._runs.update_one(
            {"_id": run_id, "stages": {"$elemMatch": going_on}},
            {"$set": {"stages.$.stopped_because": asdict(reason)}},
        )

    @mongo_operation
    def reason(self, attempt: RunAttempt, entity_type: str | None = None) -> StopReason | None:
        """Return why nothing more is sent in an attempt of a run, None as long as it goes on.

        With an entity type, its stage is looked at too.
        """
        run = self._runs.find_one({"_id": attempt.run_id}, _FIELDS)
        if run is None or run["attempt"] != attempt.number:
            return _SUPERSEDED
        if reason := run.get("stopped_because"):
            return StopReason(**reason)
        status = RunStatus(run["status"])
        if status is RunStatus.CANCELLED:
            return RUN_CANCELLED
        if status.is_terminal:
            return _ENDED
        return _reason_of_stage(run["stages"], entity_type)


def _reason_of_stage(stages: Sequence[Document], entity_type: str | None) -> StopReason | None:
    reasons = (
        stage.get("stopped_because") for stage in stages if stage["entity_type"] == entity_type
    )
    return next((StopReason(**reason) for reason in reasons if reason), None)
