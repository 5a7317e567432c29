"""Stops: whether a run or a stage still sends, as all processes that work on it know it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from pymongo.collection import Collection

from tasks.errors import (
    RUN_ENDED,
    RUN_FORGOTTEN,
    RUN_SUSPENDED,
    RUN_TAKEN_OVER,
    StopReason,
)
from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.trail.fields import RunAttempt
from tasks.trail.stages import RunStatus

_FIELDS: Final = (
    "stopped_because",
    "attempt",
    "status",
    "active",
    "stages.entity_type",
    "stages.stopped_because",
)


class Stops:
    """Stops runs and their stages, in `stopped_because` of theirs in `sync_runs`."""

    def __init__(self, runs: Collection[Document], retry: MongoRetry) -> None:
        self._runs = runs
        self._retry = retry

    @mongo_operation
    def stop(self, attempt: RunAttempt, reason: StopReason) -> None:
        """Let no process send anything more in an attempt of a run; the first reason stays."""
        going_on = {**attempt.as_match(), "stopped_because": None}
        self._runs.update_one(going_on, {"$set": {"stopped_because": asdict(reason)}})

    @mongo_operation
    def stop_stage(self, attempt: RunAttempt, entity_type: str, reason: StopReason) -> None:
        """Let no process send anything more in a stage of an attempt; the first reason stays."""
        going_on = {"entity_type": entity_type, "stopped_because": None}
        self._runs.update_one(
            {**attempt.as_match(), "stages": {"$elemMatch": going_on}},
            {"$set": {"stages.$.stopped_because": asdict(reason)}},
        )

    @mongo_operation
    def reason(self, attempt: RunAttempt, entity_type: str | None = None) -> StopReason | None:
        """Return why nothing more is sent in an attempt of a run, None as long as it goes on.

        With an entity type, its stage is looked at too.
        """
        run = self._runs.find_one({"_id": attempt.run_id}, _FIELDS)
        if run is None:
            return RUN_FORGOTTEN
        if run["attempt"] != attempt.number:
            return RUN_TAKEN_OVER
        if RunStatus(run["status"]).is_terminal:
            return RUN_ENDED
        if reason := run.get("stopped_because"):
            return StopReason(**reason)
        if not run.get("active"):
            return RUN_SUSPENDED
        return _reason_of_stage(run["stages"], entity_type)


def _reason_of_stage(stages: Sequence[Document], entity_type: str | None) -> StopReason | None:
    reasons = (
        stage.get("stopped_because") for stage in stages if stage["entity_type"] == entity_type
    )
    return next((StopReason(**reason) for reason in reasons if reason), None)
