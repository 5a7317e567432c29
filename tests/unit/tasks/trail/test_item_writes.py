"""What an outcome writes to `sync_items`: what is remembered, and what is cleared."""

from typing import Any

import pytest
from pymongo import UpdateOne
from pymongo.collection import Collection

from tasks.trail.item_writes import confirmation_of, failure_of, return_of
from tasks.trail.items import IDS_KEPT, ItemWrite
from tests.trail_documents import at, confirmed, failure, item_key, item_record, sent

Document = dict[str, Any]
ACME = item_key("acme")
IN_DOUBT = (sent("r-1"), sent("r-2"))
MANY = tuple(str(number) for number in range(IDS_KEPT))


def after(write: ItemWrite, before: Document, sync_items: Collection[Document]) -> Document:
    """Return what a write makes of the document of an item; mongomock fails at bulk writes."""
    assert isinstance(write, UpdateOne)
    sync_items.insert_one({**ACME.as_match(), **before})
    sync_items.update_one(write._filter, write._doc, upsert=bool(write._upsert))
    document = sync_items.find_one(ACME.as_match())
    assert document is not None
    assert sync_items.count_documents({}) == 1
    return document


@pytest.mark.parametrize(
    ("confirmed_id", "doubted_ids", "expected"),
    [
        ("r-3", (), ("r-1", "r-2")),
        ("r-2", (), ("r-1",)),
        ("r-3", ("r-0",), ("r-0", "r-1", "r-2")),
        ("r-3", ("r-1",), ("r-1", "r-2")),
        ("r-3", MANY, (*MANY[2:], "r-1", "r-2")),
    ],
    ids=["another", "one of them", "more than before", "one as before", "more than are kept"],
)
def test_ids_in_doubt_when_one_is_confirmed_are_remembered(
    sync_items: Collection[Document],
    confirmed_id: str,
    doubted_ids: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    known = item_record(in_doubt=IN_DOUBT, doubted_ids=doubted_ids)
    write = confirmation_of(ACME, 1, confirmed(confirmed_id), known)
    document = after(write, {"doubted_ids": list(doubted_ids)}, sync_items)
    assert document["doubted_ids"] == list(expected)
    assert document["confirmed_ids"] == [confirmed_id]


@pytest.mark.parametrize(
    ("write", "is_gone"),
    [
        (confirmation_of(ACME, 1, confirmed("r-1"), None), False),
        (confirmation_of(ACME, 1, confirmed("r-1"), None, is_gone=True), True),
        (failure_of(ACME, 1, failure()), False),
        (failure_of(ACME, 1, failure(), is_gone=True), True),
        (return_of(ACME), False),
    ],
    ids=["in", "in, gone", "not in", "not in, gone", "back"],
)
def test_only_an_item_whose_document_is_gone_stays_gone(
    sync_items: Collection[Document], write: ItemWrite, is_gone: bool
) -> None:
    document = after(write, {"gone_since": at(1)}, sync_items)
    assert ("gone_since" in document) == is_gone


def test_an_item_that_is_back_is_otherwise_as_it_was(sync_items: Collection[Document]) -> None:
    before = {"source_id": 1, "not_in_since": at(0), "attempts": 2}
    document = after(return_of(ACME), {**before, "gone_since": at(1)}, sync_items)
    del document["_id"]
    assert document == {**ACME.as_match(), **before}
