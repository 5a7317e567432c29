"""Stops: whether a run still sends, as all processes that work on it know it."""

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
_FIELDS: Final = ("stopped_because", "attempt", "status")


class Stops:
    """Stops runs, in `sync_runs.stopped_because`."""

    def __init__(self, runs: Collection[Document], retry: MongoRetry) -> None:
        self._runs = runs
        self._retry = retry

    @mongo_operation
    def stop(self, run_id: RunId, reason: StopReason) -> None:
        """Let no process send anything more for a run; the first reason stays."""
        going_on = {"_id": run_id, "stopped_because": None}
        self._runs.update_one(going_on, {"$set": {"stopped_because": asdict(reason)}})

    @mongo_operation
    def reason(self, attempt: RunAttempt) -> StopReason | None:
        """Return why nothing more is sent in an attempt of a run, None as long as it goes on."""
        run = self._runs.find_one({"_id": attempt.run_id}, _FIELDS)
        if run is None or run["attempt"] != attempt.number:
            return _SUPERSEDED
        if reason := run.get("stopped_because"):
            return StopReason(**reason)
        status = RunStatus(run["status"])
        if status is RunStatus.CANCELLED:
            return RUN_CANCELLED
        return _ENDED if status.is_terminal else None
