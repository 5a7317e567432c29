"""The audit trail of a year: many runs, a tenth of them with errors, and one very large run."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

from bson import ObjectId
from pymongo.database import Database

from tasks.entities import ENTITY_NAMES
from tasks.errors import ErrorClass, ItemError
from tasks.trail.fields import RunId, stored_error
from tasks.trail.stages import REQUEST_BUCKETS
from tasks.trail.steps import state_after

Document = dict[str, Any]

_FIRST: Final = datetime(2024, 1, 1, tzinfo=UTC)
_YEAR: Final = timedelta(days=365)
_END: Final = _FIRST + _YEAR + timedelta(hours=1)
_AT_ONCE: Final = 5_000
_ERRORS: Final = 100
_ONE_IN: Final = 10
"""One run in ten has errors; of the items of the large run, one in ten fails."""
_HUB: Final = "https://hub.example/admin/{}s/upsert"
_FAILED: Final = ItemError("NOT_FOUND", "client semperaltius does not exist", ErrorClass.PERMANENT)
_STOPPED: Final = ItemError("RUN_STOPPED", "not sent: the run was stopped", ErrorClass.SKIPPED)
_LATE: Final = ItemError("TIMEOUT", "no answer within 8000 ms", ErrorClass.TRANSIENT)
_OUTCOMES: Final = (_FAILED, _STOPPED, *[None] * 8)
"""What becomes of the items of the large run, by turns."""


@dataclass(frozen=True)
class TrailSize:
    """How many runs a trail has, and how many steps its large run."""

    runs: int
    steps: int


def fill(database: Database[Document], size: TrailSize) -> RunId:
    """Write a trail, and return the `run_id` of its large run, which is the newest."""
    of_a_type = size.steps // len(ENTITY_NAMES)
    large = _run(size.runs, size, errors=_ERRORS, of_a_type=of_a_type)
    _insert(database, "sync_runs", (_run(n, size, errors=_errors_of(n)) for n in range(size.runs)))
    database.sync_runs.insert_one(large)
    _insert(database, "sync_steps", _steps_of_large_run(large["_id"], size))
    failing = database.sync_runs.find({"errors.0": {"$exists": True}, "_id": {"$ne": large["_id"]}})
    _insert(database, "sync_steps", (step for run in failing for step in _steps_of_failing(run)))
    return RunId(large["_id"])


def _insert(database: Database[Document], collection: str, documents: Iterator[Document]) -> None:
    while chunk := list(islice(documents, _AT_ONCE)):
        database[collection].insert_many(chunk, ordered=False)


def _errors_of(number: int) -> int:
    return 0 if number % _ONE_IN else _ERRORS


def _run(number: int, size: TrailSize, errors: int, of_a_type: int = 200) -> Document:
    started_at = _FIRST + _YEAR * (number / size.runs)
    ended_at = started_at + timedelta(minutes=5)
    status = "partial" if errors else "success"
    stages = [_stage(name, of_a_type, status, ended_at) for name in ENTITY_NAMES]
    return {
        "_id": ObjectId(f"{int(started_at.timestamp()):08x}{number:016x}"),
        "flow_run_id": f"00000000-0000-4000-8000-{number:012}",
        "flow_run_name": "changed: all entities - schedule",
        "status": status,
        "mode": "changed",
        "dry_run": False,
        "trigger": "schedule",
        "message": "items failed: NOT_FOUND" if errors else "",
        "started_at": started_at,
        "finished_at": ended_at,
        "mirrored_at": ended_at,
        "attempt": 1,
        "parameters": {"trigger": "schedule", "entities": list(ENTITY_NAMES)},
        "totals": {
            name: sum(stage[name] for stage in stages)
            for name in ("total", "success", "failed", "skipped")
        },
        "errors": [_error(index) for index in range(errors)],
        "stages": stages,
    }


def _error(number: int) -> Document:
    return {
        "entity_type": "domain",
        "natural_key": f"host-{number}.example",
        "code": _FAILED.code,
        "message": _FAILED.message,
    }


def _stage(entity_type: str, items: int, status: str, ended_at: datetime) -> Document:
    failed = skipped = 0 if status == "success" else items // _ONE_IN
    return {
        "entity_type": entity_type,
        "status": status,
        "total": items,
        "success": items - failed - skipped,
        "failed": failed,
        "skipped": skipped,
        "unchanged": 0,
        "superseded": 0,
        "would_send": 0,
        "first": None,
        "gone": 0,
        "hub": _HUB.format(entity_type),
        "started_at": ended_at - timedelta(minutes=1),
        "finished_at": ended_at,
        "requests": {"count": items, "seconds": items / 50, "buckets": _buckets(items)},
        "pace": None,
        "stopped_because": None,
    }


def _buckets(requests: int) -> dict[str, int]:
    return dict.fromkeys(REQUEST_BUCKETS[2:8], requests // 6)


def _steps_of_large_run(run_id: RunId, size: TrailSize) -> Iterator[Document]:
    a_type = size.steps // len(ENTITY_NAMES)
    for number in range(a_type * len(ENTITY_NAMES)):
        at = _FIRST + _YEAR + timedelta(milliseconds=3 * number)
        error = _OUTCOMES[number % len(_OUTCOMES)]
        yield _step(run_id, ENTITY_NAMES[number // a_type], number, at, error)


def _steps_of_failing(run: Document) -> Iterator[Document]:
    for number in range(_ERRORS):
        at = run["started_at"] + timedelta(milliseconds=number)
        yield _step(run["_id"], "domain", number, at, _FAILED)


def _step(
    run_id: RunId, entity_type: str, number: int, at: datetime, error: ItemError | None
) -> Document:
    is_sent = error is not _STOPPED
    return {
        "run_id": run_id,
        "entity_type": entity_type,
        "source_id": f"source-{number:08}",
        "natural_key": f"{entity_type}-{number:08}.example",
        "version": 1,
        "request_id": f"{number:032x}" if is_sent else None,
        "http_status": 200 if is_sent else None,
        "sync_id": None if error else f"sync-{number:08}",
        "duration_ms": float(number * 7_919 % 10_007) / 10 if is_sent else None,
        "flow_run_id": "00000000-0000-4000-8000-000000000000",
        "task_run_id": "00000000-0000-4000-8000-000000000001",
        "run_attempt": 1,
        "attempts": int(is_sent),
        "changes": None,
        "ok": error is None,
        "error": stored_error(error),
        "state": state_after(error),
        "created_at": at,
        "updated_at": at,
    }
