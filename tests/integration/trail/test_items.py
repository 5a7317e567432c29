"""`sync_items` on a real mongod: what is confirmed, what failed, and what is about to be sent."""

from typing import Any

import pytest
from bson import ObjectId, Timestamp
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from tasks.trail.bulk import write_all
from tasks.trail.item_writes import confirmation_of, failure_of
from tasks.trail.items import IDS_KEPT, Items, ItemWrite
from tests.trail_documents import (
    HUB,
    PERMANENT,
    RUN,
    TRANSIENT,
    announcement,
    at,
    confirmed,
    failure,
    item_key,
    sent,
)

Document = dict[str, Any]
OTHER_RUN = ObjectId()
BODY = {"id": "acme", "name": "Acme", "enabled": True}


def write(database: Database[Document], *writes: ItemWrite) -> None:
    for each in writes:
        database.sync_items.bulk_write([each])


def stored(database: Database[Document], natural_key: str = "acme") -> Document:
    document = database.sync_items.find_one({"natural_key": natural_key}, {"_id": False})
    assert document is not None
    return document


def confirm(
    database: Database[Document], items: Items, request_id: str, source_id: Any = 1, **fields: Any
) -> None:
    """Write the confirmation of an item after what is on record of it."""
    known = items.known(HUB, "tenant", ["acme"]).get("acme")
    last = confirmed(request_id, **{"body": BODY, **fields})
    write(database, confirmation_of(item_key("acme"), source_id, last, known))


def fail(
    database: Database[Document],
    seconds: float,
    *,
    requests: int = 1,
    not_taken: str | None = None,
    run_id: ObjectId = RUN,
    source_id: Any = 1,
) -> None:
    last = failure(PERMANENT, run_id, seconds)
    write(
        database,
        failure_of(item_key("acme"), source_id, last, requests=requests, not_taken=not_taken),
    )


def test_the_fields_of_an_item_that_is_in(database: Database[Document], items: Items) -> None:
    confirm(database, items, "r-1", 7, sync_id="sync-1", run_id=RUN, at=at(3))
    assert stored(database) == {
        "hub": HUB,
        "entity_type": "tenant",
        "natural_key": "acme",
        "source_id": 7,
        "confirmed": {
            "request_id": "r-1",
            "version": 1,
            "digest": "digest of r-1",
            "run_id": RUN,
            "at": at(3),
            "body": BODY,
            "sync_id": "sync-1",
        },
        "confirmed_ids": ["r-1"],
        "revision": 1,
        "last": {"ok": True, "error": None, "run_id": RUN, "at": at(3)},
    }


def test_the_fields_of_an_item_that_is_not_in(database: Database[Document]) -> None:
    fail(database, 3, source_id=7)
    assert stored(database) == {
        "hub": HUB,
        "entity_type": "tenant",
        "natural_key": "acme",
        "source_id": 7,
        "last": {
            "ok": False,
            "error": {
                "code": "NOT_FOUND",
                "message": "there is no such tenant",
                "class": "permanent",
            },
            "run_id": RUN,
            "at": at(3),
        },
        "not_in_since": at(3),
        "attempts": 1,
    }


def test_a_row_of_failures_has_a_beginning_and_ends_with_a_success(
    database: Database[Document], items: Items
) -> None:
    confirm(database, items, "r-1", at=at(0))
    fail(database, 5, run_id=RUN)
    fail(database, 6, requests=0, run_id=OTHER_RUN)
    fail(database, 7, run_id=OTHER_RUN)
    failing = stored(database)
    assert (failing["not_in_since"], failing["attempts"]) == (at(5), 2)
    assert failing["confirmed"]["request_id"] == "r-1", "what Stage 1 holds is forgotten"
    assert failing["last"]["at"] == at(7)
    confirm(database, items, "r-2", run_id=OTHER_RUN, at=at(8))
    recovered = stored(database)
    assert recovered["recovered"] == {"run_id": OTHER_RUN, "since": at(5)}
    assert not {"not_in_since", "attempts"} & set(recovered)
    fail(database, 9)
    assert (stored(database)["not_in_since"], stored(database)["attempts"]) == (at(9), 1)


def test_an_item_that_never_failed_has_not_recovered(
    database: Database[Document], items: Items
) -> None:
    for request_id in ("r-1", "r-2"):
        confirm(database, items, request_id)
    assert "recovered" not in stored(database)


@pytest.mark.parametrize(
    ("request_ids", "kept"),
    [
        (["a"], ["a"]),
        (["a", "b", "c"], ["a", "b", "c"]),
        (["a", "b", "a", "a"], ["a", "b"]),
        ([str(number) for number in range(103)], [str(number) for number in range(3, 103)]),
    ],
    ids=["one", "three", "repeats", "more than are kept"],
)
def test_the_newest_ids_that_were_confirmed_are_remembered(
    database: Database[Document], items: Items, request_ids: list[str], kept: list[str]
) -> None:
    for request_id in request_ids:
        confirm(database, items, request_id)
    document = stored(database)
    assert document["confirmed_ids"] == kept
    assert len(kept) <= IDS_KEPT
    assert document["confirmed"]["request_id"] == request_ids[-1]


@pytest.mark.parametrize("requests", [0, 1])
@pytest.mark.parametrize("run_id", [RUN, OTHER_RUN])
def test_what_was_not_sent_says_nothing_of_an_item_that_its_run_has_brought_in(
    database: Database[Document], items: Items, requests: int, run_id: ObjectId
) -> None:
    confirm(database, items, "r-1", run_id=RUN)
    before = stored(database)
    if requests == 0 and run_id == RUN:
        last = failure(run_id=run_id)
        refused = failure_of(item_key("acme"), 2, last, requests=0, not_taken=None)
        assert write_all(database.sync_items, [refused]) == [0]
        assert stored(database) == before
    else:
        fail(database, 5, requests=requests, run_id=run_id, source_id=2)
        after = stored(database)
        assert (after["last"]["ok"], after["not_in_since"]) == (False, at(5))
        assert after["source_id"] == 1, "a document that was not sent is taken for the item's"


@pytest.mark.parametrize(
    ("not_taken", "left"), [(None, ["r-1", "r-2"]), ("r-2", ["r-1"]), ("r-3", ["r-1", "r-2"])]
)
def test_an_announcement_is_withdrawn_where_stage_1_surely_has_not_taken_it(
    database: Database[Document], items: Items, not_taken: str | None, left: list[str]
) -> None:
    for revision, request_id in enumerate(("r-1", "r-2")):
        assert items.announce([announcement("acme", 1, request_id, revision)]) == set()
    fail(database, 5, not_taken=not_taken)
    assert [each["request_id"] for each in stored(database)["in_doubt"]] == left


def test_a_success_ends_every_doubt(database: Database[Document], items: Items) -> None:
    for revision, request_id in enumerate(("r-1", "r-2")):
        assert items.announce([announcement("acme", 1, request_id, revision)]) == set()
    confirm(database, items, "r-2")
    assert "in_doubt" not in stored(database)


@pytest.mark.parametrize("is_confirmed", [False, True], ids=["announced", "confirmed"])
def test_a_success_that_is_written_late_hides_nothing_that_came_after_it(
    database: Database[Document], items: Items, is_confirmed: bool
) -> None:
    """A twin is sent by another process while a success waits in the buffer of this one."""
    items.announce([announcement("acme", 1, "r-1")])
    waiting = confirmation_of(
        item_key("acme"), 1, confirmed("r-1", body=BODY), None, was_announced=True
    )
    assert items.announce([announcement("acme", 2, "r-2", 1)]) == set()
    if is_confirmed:
        confirm(database, items, "r-2", 2)
    assert write_all(database.sync_items, [waiting]) == [0]
    after = items.known(HUB, "tenant", ["acme"])["acme"]
    assert after.latest is not None
    is_taken_for_in = after.latest.request_id == "r-1" and not after.in_doubt
    assert not is_taken_for_in, "Stage 1 has, or may have, r-2"


@pytest.mark.parametrize("is_in", [True, False])
def test_what_was_gone_and_is_sent_is_gone_no_more(
    database: Database[Document], items: Items, is_in: bool
) -> None:
    confirm(database, items, "r-1")
    database.sync_items.update_one({}, {"$set": {"gone_since": at(1)}})
    if is_in:
        confirm(database, items, "r-2")
    else:
        fail(database, 5)
    assert "gone_since" not in stored(database)


def test_an_announcement_says_what_is_about_to_be_sent(
    database: Database[Document], items: Items
) -> None:
    told = sent("r-1", version=3, digest="d", run_id=RUN, at=at(2))
    first = announcement("acme", 7, "r-1", version=3, digest="d", run_id=RUN, at=at(2))
    assert items.announce([]) == set()
    assert items.announce([first]) == set()
    assert stored(database) == {
        "hub": HUB,
        "entity_type": "tenant",
        "natural_key": "acme",
        "source_id": 7,
        "in_doubt": [told.model_dump()],
        "revision": 1,
    }
    record = items.known(HUB, "tenant", ["acme"])["acme"]
    assert (record.in_doubt, record.latest, record.used_ids) == ((told,), told, {"r-1"})


@pytest.mark.parametrize("revision", [0, 1, 2, 3])
def test_an_item_is_taken_where_anything_was_announced_or_confirmed_since_the_lookup(
    database: Database[Document], items: Items, revision: int
) -> None:
    items.announce([announcement("acme", 1, "r-1")])
    confirm(database, items, "r-1")
    fail(database, 5)
    is_taken = revision != 2
    taken = items.announce(
        [
            announcement("before", 1, "r"),
            announcement("acme", 2, "r-2", revision),
            announcement("after", 1, "r"),
        ]
    )
    assert taken == ({"acme"} if is_taken else set())
    assert stored(database).get("in_doubt", []) == ([] if is_taken else [sent("r-2").model_dump()])
    assert stored(database)["source_id"] == (1 if is_taken else 2)
    assert database.sync_items.count_documents({}) == 3, "one that is taken kept another out"


def test_an_item_that_has_only_failed_can_be_announced(
    database: Database[Document], items: Items
) -> None:
    fail(database, 5)
    assert items.announce([announcement("acme", 1, "r-1")]) == set()


@pytest.mark.parametrize(
    "source_id", [None, Timestamp(0, 0), {"$gt": 0}, {"a": 1}, "a", ObjectId(RUN)]
)
def test_documents_of_any_id_are_announced_confirmed_and_fail(
    database: Database[Document], items: Items, source_id: Any
) -> None:
    for revision, request_id in enumerate(("r-1", "r-2")):
        assert items.announce([announcement("acme", source_id, request_id, revision)]) == set()
    fail(database, 5, source_id=source_id)
    confirm(database, items, "r-2", source_id)
    assert items.known(HUB, "tenant", ["acme"])["acme"].source_id == source_id
    assert database.sync_items.count_documents({}) == 1


def test_known_is_what_this_stage_1_has_of_these_items_without_their_bodies(
    database: Database[Document], items: Items
) -> None:
    confirm(database, items, "r-1")
    for key in (
        item_key("other"),
        item_key("acme", hub="https://other.example"),
        item_key("acme", entity_type="client"),
    ):
        last = failure(TRANSIENT)
        write(database, failure_of(key, 1, last, requests=1, not_taken=None))
    known = items.known(HUB, "tenant", ["acme", "unknown"])
    assert set(known) == {"acme"}
    assert known["acme"].confirmed is not None
    assert known["acme"].confirmed.body == {}
    assert known["acme"].confirmed_ids == ("r-1",)
    assert items.bodies(HUB, "tenant", ["acme", "other", "unknown"]) == {"acme": BODY}
    assert (items.known(HUB, "tenant", []), items.bodies(HUB, "tenant", [])) == ({}, {})


def test_items_that_are_back_are_gone_no_more(database: Database[Document], items: Items) -> None:
    for natural_key in ("back", "gone"):
        last = confirmed("r", body=BODY)
        write(database, confirmation_of(item_key(natural_key), 1, last, None))
    database.sync_items.update_many({}, {"$set": {"gone_since": at(1)}})
    items.are_back(HUB, "tenant", ["back", "unknown"])
    items.are_back("https://other.example", "tenant", ["gone"])
    assert "gone_since" not in stored(database, "back")
    assert "gone_since" in stored(database, "gone")
    assert database.sync_items.count_documents({}) == 2


def test_an_item_stands_once_for_each_stage_1(database: Database[Document]) -> None:
    document = {"hub": HUB, "entity_type": "tenant", "natural_key": "acme"}
    database.sync_items.insert_many([dict(document), {**document, "hub": "https://other.example"}])
    with pytest.raises(DuplicateKeyError):
        database.sync_items.insert_one(dict(document))
