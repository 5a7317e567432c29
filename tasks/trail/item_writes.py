"""Writes to `sync_items` that outcomes make."""

from typing import Any

from pymongo import UpdateOne

from tasks.mongo import Document
from tasks.trail.fields import stored_error
from tasks.trail.items import (
    IDS_KEPT,
    Confirmed,
    ItemKey,
    ItemRecord,
    ItemWrite,
    LastOutcome,
    Recovery,
)


def confirmation_of(
    key: ItemKey,
    source_id: Any,
    confirmed: Confirmed,
    known: ItemRecord | None,
    *,
    was_announced: bool = False,
    is_gone: bool = False,
) -> ItemWrite:
    """Return the write of an item that Stage 1 has confirmed.

    Where another process has announced or confirmed something since, it changes nothing: what it
    has announced itself stays in doubt.

    Args:
        key: the item.
        source_id: `_id` of its document.
        confirmed: what Stage 1 has confirmed.
        known: the record on which the request was decided; None for none.
        was_announced: whether the request was announced since.
        is_gone: whether its document is gone from the source.
    """
    last = LastOutcome(ok=True, run_id=confirmed.run_id, at=confirmed.at)
    changes: Document = {
        "source_id": source_id,
        "confirmed": dict(vars(confirmed)),
        "last": _stored_outcome(last),
    }
    if known is not None and known.not_in_since is not None:
        recovery = Recovery(run_id=confirmed.run_id, since=known.not_in_since)
        changes["recovered"] = dict(vars(recovery))
    revision = (known.revision if known else 0) + was_announced
    return UpdateOne(
        key.as_match_at(revision),
        {
            "$set": changes,
            "$unset": _cleared("in_doubt", "not_in_since", "attempts", is_gone=is_gone),
            "$inc": {"revision": 1},
            **_new_ids(confirmed.request_id, known),
        },
        upsert=True,
    )


def failure_of(
    key: ItemKey,
    source_id: Any,
    last: LastOutcome,
    *,
    requests: int = 0,
    not_taken: str | None = None,
    is_gone: bool = False,
) -> ItemWrite:
    """Return the write of an item that is not in.

    One that was not sent says nothing of an item that its run has brought in.

    Args:
        key: the item.
        source_id: `_id` of its document.
        last: what came of it.
        requests: how many requests were sent for it.
        not_taken: the request id that Stage 1 surely has not taken; None for none.
        is_gone: whether its document is gone from the source.
    """
    match = key.as_match()
    if not requests:
        match["$nor"] = [{"last.ok": True, "last.run_id": last.run_id}]
    pull = {"$pull": {"in_doubt": {"request_id": not_taken}}} if not_taken else {}
    cleared = _cleared(is_gone=is_gone)
    return UpdateOne(
        match,
        {
            "$set": {"last": _stored_outcome(last)},
            "$setOnInsert": {"source_id": source_id},
            "$min": {"not_in_since": last.at},
            "$inc": {"attempts": requests},
            **({"$unset": cleared} if cleared else {}),
            **pull,
        },
        upsert=True,
    )


def return_of(key: ItemKey) -> ItemWrite:
    """Return the write of an item that was gone, and whose document is there again."""
    return UpdateOne(key.as_match(), {"$unset": _cleared(is_gone=False)})


def _new_ids(confirmed_id: str, known: ItemRecord | None) -> Document:
    """Return the change that remembers a confirmed request id, and those that were in doubt."""
    if known is None:
        return {"$push": {"confirmed_ids": _newest([confirmed_id])}}
    doubted = {sent.request_id for sent in known.in_doubt} - {confirmed_id, *known.doubted_ids}
    pushes: Document = {}
    if confirmed_id not in known.confirmed_ids:
        pushes["confirmed_ids"] = _newest([confirmed_id])
    if doubted:
        pushes["doubted_ids"] = _newest(sorted(doubted))
    return {"$push": pushes} if pushes else {}


def _newest(request_ids: list[str]) -> Document:
    return {"$each": request_ids, "$slice": -IDS_KEPT}


def _stored_outcome(last: LastOutcome) -> Document:
    return {**vars(last), "error": stored_error(last.error)}


def _cleared(*names: str, is_gone: bool) -> dict[str, bool]:
    return dict.fromkeys(names if is_gone else (*names, "gone_since"), True)
