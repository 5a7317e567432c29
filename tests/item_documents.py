"""Documents of `sync_items`, and runs that sent to a Stage 1, for the tests of the doors."""

from datetime import datetime
from typing import Any

from bson import ObjectId

from tasks.errors import ItemError
from tasks.trail.fields import RunId
from tests.trail_documents import at

Document = dict[str, Any]

RUN = ObjectId("507f1f77bcf86cd799439011")


def hub_of(entity_type: str, host: str = "hub.example") -> str:
    """Return the upsert URL of a type at a Stage 1."""
    return f"https://{host}/admin/{entity_type}s/upsert"


def item_document(
    natural_key: str = "acme",
    entity_type: str = "tenant",
    *,
    host: str = "hub.example",
    body: Document | None = None,
    error: ItemError | None = None,
    run_id: RunId = RUN,
    when: datetime | None = None,
    **fields: Any,
) -> Document:
    """Return a document of an item that Stage 1 has confirmed; `error` came of it last."""
    when = when or at(0)
    told = error and {"code": error.code, "message": error.message, "class": error.error_class}
    sent = {"request_id": "a" * 32, "version": 1, "digest": "d" * 64, "run_id": run_id, "at": at(0)}
    return {
        "_id": ObjectId(),
        "hub": hub_of(entity_type, host),
        "entity_type": entity_type,
        "natural_key": natural_key,
        "source_id": 1,
        "confirmed": {
            **sent,
            "sync_id": "sync-1",
            "body": body or {"id": natural_key, "enabled": True},
        },
        "confirmed_ids": [sent["request_id"]],
        "last": {"ok": error is None, "error": told, "run_id": run_id, "at": when},
        **fields,
    }


def never_in(document: Document) -> Document:
    """Return the document as it is where Stage 1 has never confirmed the item."""
    return {name: value for name, value in document.items() if not name.startswith("confirmed")}


def run_document(*entity_types: str, host: str = "hub.example", **fields: Any) -> Document:
    """Return a document of `sync_runs` whose stages sent to a Stage 1."""
    run_id = ObjectId()
    return {
        "_id": run_id,
        "flow_run_id": str(run_id),
        "flow_run_name": "a run",
        "status": "partial",
        "mode": "full",
        "dry_run": False,
        "trigger": "a test",
        "started_at": at(0),
        "stages": [
            {"entity_type": each, "status": "partial", "hub": hub_of(each, host)}
            for each in entity_types
        ],
        **fields,
    }
