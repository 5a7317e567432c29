"""Outcome: what the outcome of an item in a run changes in the record of the item."""

from dataclasses import dataclass
from datetime import datetime

from tasks.errors import ItemError
from tasks.hub.answer import UpsertOutcome
from tasks.request import Request
from tasks.source.item import InvalidItem, Item
from tasks.source.twins import Twin
from tasks.trail.fields import RunId
from tasks.trail.item_writes import confirmation_of, failure_of, return_of
from tasks.trail.items import Confirmed, ItemKey, ItemRecord, ItemWrite, LastOutcome


@dataclass(frozen=True)
class Outcome:
    """The outcome of an item in a run.

    Args:
        found: the item, or the document that lost to another one of its natural key.
        error: why it is not in; None for one that is.
        request: how it was sent, or would have been; None where it can't be.
        known: what was on record of it before.
        answer: what came of the request; None where none was sent.
    """

    found: Item | InvalidItem | Twin
    error: ItemError | None
    request: Request | None = None
    known: ItemRecord | None = None
    answer: UpsertOutcome | None = None


def item_write(hub: str, outcome: Outcome, run_id: RunId, at: datetime) -> ItemWrite | None:
    """Return what an outcome changes in the record of the item; None for nothing.

    Nothing is known of a document without a natural key. Nothing changes by a document that lost to
    another one, nor by an item that was not sent and that Stage 1 holds as it is.
    """
    found, request = outcome.found, outcome.request
    if found.natural_key is None or isinstance(found, Twin):
        return None
    key = ItemKey(hub, found.entity_type.name, found.natural_key)
    if outcome.error is None:
        return _confirmation(key, outcome, run_id, at)
    was_sent = outcome.answer is not None
    if request is not None and request.is_in and not was_sent:
        known = outcome.known
        return return_of(key) if known is not None and known.gone_since is not None else None
    return failure_of(
        key,
        found.source_id,
        LastOutcome(ok=False, error=outcome.error, run_id=run_id, at=at),
        requests=int(was_sent),
        not_taken=_not_taken(outcome),
        is_gone=isinstance(found, Item) and found.is_gone,
    )


def _confirmation(key: ItemKey, outcome: Outcome, run_id: RunId, at: datetime) -> ItemWrite | None:
    request, answer = outcome.request, outcome.answer
    if request is None or answer is None:
        return None
    item = request.item
    confirmed = Confirmed(
        request_id=request.request_id,
        version=request.version,
        digest=item.digest,
        run_id=run_id,
        at=at,
        body=item.body,
        sync_id=answer.sync_id,
    )
    return confirmation_of(
        key,
        item.source_id,
        confirmed,
        outcome.known,
        was_announced=request.is_new,
        is_gone=item.is_gone,
    )


def _not_taken(outcome: Outcome) -> str | None:
    """Return the request id that was announced, and that Stage 1 surely has not taken."""
    request, answer = outcome.request, outcome.answer
    if request is None or not request.is_new:
        return None
    return request.request_id if answer is None or answer.is_refusal else None
