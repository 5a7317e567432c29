"""Documents of `sync_runs` and `sync_steps` for the tests of the audit trail."""

from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId

from tasks.errors import ErrorClass, ItemError
from tasks.trail.fields import RunId
from tasks.trail.runs import RunOptions
from tasks.trail.stages import StageTotals
from tasks.trail.steps import Step, state_after

Document = dict[str, Any]

OPTIONS = RunOptions("a test", ("tenant", "client"))
TRANSIENT = ItemError("TIMEOUT", "no answer within 8000 ms", ErrorClass.TRANSIENT)
PERMANENT = ItemError("NOT_FOUND", "there is no such tenant", ErrorClass.PERMANENT)
STOPPING = ItemError("INVALID_TOKEN", "who are you?", ErrorClass.RUN_STOPPING)
SKIPPED = ItemError("RUN_STOPPED", "not sent: the run was cancelled", ErrorClass.SKIPPED)


def at(seconds: float) -> datetime:
    """Return the moment that many seconds after the tests' beginning of time."""
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def new_step(run_id: RunId, source_id: Any = 1, **fields: Any) -> Step:
    """Return a step of a tenant whose natural key is its `_id` as text."""
    defaults = {
        "flow_run_id": "a flow run",
        "run_attempt": 1,
        "entity_type": "tenant",
        "natural_key": str(source_id),
        "version": 1,
    }
    return Step(run_id=run_id, source_id=source_id, **{**defaults, **fields})


def step_document(
    run_id: RunId, source_id: Any = 1, error: ItemError | None = None, **fields: Any
) -> Document:
    """Return a document of `sync_steps` for a tenant whose natural key is its `_id` as text."""
    told = error and {"code": error.code, "message": error.message, "class": error.error_class}
    return {
        "_id": ObjectId(),
        "run_id": run_id,
        "entity_type": "tenant",
        "source_id": source_id,
        "natural_key": str(source_id),
        "version": 1,
        "flow_run_id": "a flow run",
        "run_attempt": 1,
        "ok": error is None,
        "error": told,
        "state": state_after(error),
        "created_at": at(0),
        "updated_at": at(0),
        **fields,
    }


def left_alone(unchanged: int, would_send: int, first: str | None) -> StageTotals:
    """Return the totals of items that have no step."""
    skipped = unchanged + would_send
    return StageTotals(
        total=skipped, skipped=skipped, unchanged=unchanged, would_send=would_send, first=first
    )
