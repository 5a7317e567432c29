"""Documents of the audit trail for its tests, and what they are read as."""

from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId
from pymongo.database import Database

from tasks.errors import ErrorClass, ItemError
from tasks.mongo import MongoRetry
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.items import Announcement, Confirmed, ItemKey, ItemRecord, LastOutcome, Sent
from tasks.trail.live_counts import LiveCounts
from tasks.trail.ownership import Ownership
from tasks.trail.runs import RunOptions
from tasks.trail.stages import Stages, StageTotals
from tasks.trail.steps import Step, state_after

Document = dict[str, Any]

HUB = "https://hub.example/upsert"
RUN = ObjectId("507f1f77bcf86cd799439011")
"""A run of which only its key matters."""
OPTIONS = RunOptions("a test", ("tenant", "client"))
TRANSIENT = ItemError("TIMEOUT", "no answer within 8000 ms", ErrorClass.TRANSIENT)
PERMANENT = ItemError("NOT_FOUND", "there is no such tenant", ErrorClass.PERMANENT)
STOPPING = ItemError("INVALID_TOKEN", "who are you?", ErrorClass.RUN_STOPPING)
SKIPPED = ItemError("RUN_STOPPED", "not sent: the run was cancelled", ErrorClass.SKIPPED)
SUPERSEDED = ItemError("SUPERSEDED", "not sent: it is deleted", ErrorClass.SKIPPED)
WOULD_SEND = ItemError("WOULD_SEND", "not sent: this is a dry run", ErrorClass.SKIPPED)


def at(seconds: float) -> datetime:
    """Return the moment that many seconds after the tests' beginning of time."""
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def begin(
    ownership: Ownership, run_id: RunId, options: RunOptions = OPTIONS, since: float = 0
) -> RunAttempt:
    """Begin the next attempt of a run, which runs in Prefect since then."""
    attempt = ownership.take(run_id, options, at(since))
    assert attempt is not None
    return attempt


def live_counts(database: Database[Document], retry: MongoRetry) -> LiveCounts:
    """Return what brings counts into `sync_runs`."""
    return LiveCounts(Stages(database.sync_runs, retry))


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


def left_alone(unchanged: int, gone: int = 0, first: str | None = None) -> StageTotals:
    """Return the totals of items that have no step."""
    return StageTotals(
        total=unchanged, skipped=unchanged, unchanged=unchanged, first=first, gone=gone
    )


def item_key(natural_key: str, hub: str = HUB, entity_type: str = "tenant") -> ItemKey:
    """Return the key of a tenant in `sync_items`."""
    return ItemKey(hub, entity_type, natural_key)


def sent(request_id: str, **fields: Any) -> Sent:
    """Return content that went to Stage 1."""
    defaults = {"version": 1, "digest": f"digest of {request_id}", "run_id": RUN, "at": at(0)}
    return Sent(request_id=request_id, **{**defaults, **fields})


def confirmed(request_id: str, **fields: Any) -> Confirmed:
    """Return content that Stage 1 has confirmed."""
    return Confirmed(**{**sent(request_id).model_dump(), **fields})


def announcement(
    natural_key: str, source_id: Any, request_id: str, revision: int = 0, **fields: Any
) -> Announcement:
    """Return the announcement of a tenant's request; `fields` are those of what is sent."""
    told = sent(request_id, **fields)
    return Announcement(item_key(natural_key), source_id, told, revision)


def failure(error: ItemError = PERMANENT, run_id: RunId = RUN, seconds: float = 0) -> LastOutcome:
    """Return the outcome of an item that is not in."""
    return LastOutcome(ok=False, error=error, run_id=run_id, at=at(seconds))


def item_record(natural_key: str = "acme", source_id: Any = 1, **fields: Any) -> ItemRecord:
    """Return what is on record of a tenant."""
    return ItemRecord(
        hub=HUB,
        entity_type="tenant",
        natural_key=natural_key,
        source_id=source_id,
        **fields,
    )
