"""Lookup: the items of a batch, and what is on record of each."""

from typing import Any

import pytest
from bson import Int64, ObjectId
from pymongo.database import Database

from tasks.decision import Candidate
from tasks.entities import entity_type_named
from tasks.lookup import gone_item
from tasks.mongo import MongoRetry
from tasks.run import Run
from tasks.source.batch import GoneBatch
from tasks.source.item import InvalidItem, Item
from tests.trail_documents import (
    TRANSIENT,
    announcement,
    at,
    confirmed,
    item_record,
    step_document,
)
from tests.unit.tasks.run_in_memory import BATCH, RunInMemory, Source, document, item

Document = dict[str, Any]
TENANT = entity_type_named("tenant")


@pytest.fixture
def world(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> RunInMemory:
    return RunInMemory(database, retry, monkeypatch)


def candidates(run: Run, batch: Any = BATCH) -> list[Candidate]:
    return [candidate for page in run.lookup.pages(batch) for candidate in page]


def lost(run: Run) -> dict[Any, Any]:
    """Return the version of the twins that lost, by `_id`."""
    return {
        each.lost_as.source_id: each.lost_as.version for each in candidates(run) if each.lost_as
    }


def test_items_come_with_their_step_in_this_run(world: RunInMemory) -> None:
    world.source = Source(document("new"), document("tried"))
    run = world.open()
    assert [each.prior for each in candidates(run)] == [None, None]
    world.database.sync_steps.insert_many(
        [
            step_document(run.id, "tried", TRANSIENT, attempts=2),
            step_document(ObjectId(), "new", TRANSIENT),
            step_document(run.id, "new", TRANSIENT, entity_type="client"),
        ]
    )
    new, tried = candidates(run)
    assert (new.found, tried.found) == (item("new"), item("tried"))
    assert new.prior is None
    assert tried.prior is not None
    assert (tried.prior.error, tried.prior.attempts, tried.prior.run_attempt) == (TRANSIENT, 2, 1)


def test_items_come_with_their_record_at_this_stage_1(world: RunInMemory) -> None:
    world.confirm(item("held"), item("held", "client", redirect_uris=[]), item("not asked for"))
    world.source = Source(document("new"), document("held"), document("x", id=7))
    new, held, nameless = candidates(world.open())
    assert (new.known, nameless.known) == (None, None)
    assert isinstance(nameless.found, InvalidItem)
    assert held.known is not None
    assert (held.known.natural_key, held.known.source_id) == ("held", "held")
    elsewhere = world.open(ADMIN_TENANTS_UPSERT_URL="https://other.example/upsert")
    assert [each.known for each in candidates(elsewhere)] == [None, None, None]


def test_none_is_left_out_and_all_are_in_order(world: RunInMemory) -> None:
    world.source = Source(
        document("b"), document("a", name=None), document("x", id=7), document("c", deleted=True)
    )
    assert [each.found.source_id for each in candidates(world.open())] == ["b", "a", "x", "c"]
    world.source.documents = []
    assert candidates(world.open()) == []


@pytest.mark.parametrize(
    ("documents", "losers"),
    [
        pytest.param([{"_id": 1}, {"_id": 2, "version": 2}], {1: 1}, id="the higher version wins"),
        pytest.param([{"_id": 1}, {"_id": 2}], {2: 1}, id="of equals the lower _id"),
        pytest.param(
            [{"_id": 1, "version": 9, "deleted": True}, {"_id": 2}],
            {1: 9},
            id="live before deleted",
        ),
        pytest.param(
            [{"_id": 1}, {"_id": 2, "version": 3}, {"_id": 3, "version": 2}],
            {1: 1, 3: 2},
            id="three",
        ),
        pytest.param(
            [{"_id": 1}, {"_id": 2, "version": 2, "name": None}],
            {1: 1},
            id="an invalid one wins too",
        ),
        pytest.param([{"_id": 1}], {}, id="alone"),
    ],
)
def test_documents_of_one_key_in_a_page_are_compared(
    world: RunInMemory, documents: list[Document], losers: dict[int, int]
) -> None:
    world.source = Source(document("other"), *(document("a", **each) for each in documents))
    assert lost(world.open()) == losers


@pytest.mark.parametrize(
    ("known_id", "documents", "losers"),
    [
        pytest.param(0, [{"_id": 0, "version": 2}], {1: 1}, id="it wins"),
        pytest.param(0, [{"_id": 0, "version": 0}], {}, id="it loses"),
        pytest.param(0, [], {}, id="it is gone"),
        pytest.param(True, [{"_id": True, "version": 2}], {1: 1}, id="it is equal in Python only"),
        pytest.param(1.0, [], {}, id="it is the same, of another type"),
    ],
)
def test_a_document_is_compared_with_the_one_that_was_sent_last(
    world: RunInMemory, known_id: Any, documents: list[Document], losers: dict[int, int]
) -> None:
    """Of the page, the document 1; the others are in other batches."""
    world.confirm(item("a", _id=known_id))
    world.source = Source(document("a", _id=1))
    run = world.open()
    page = next(iter(run.source.pages(BATCH)))
    world.source.documents = [document("a", **each) for each in documents] + world.source.documents
    found_twins = [each.lost_as for each in run.lookup.candidates(TENANT, page) if each.lost_as]
    assert {twin.source_id: twin.version for twin in found_twins} == losers


@pytest.mark.parametrize("key", ["new", "held", "announced"])
def test_the_source_is_asked_for_twins_only_where_there_may_be_some(
    world: RunInMemory, key: str
) -> None:
    world.confirm(item("held"))
    world.trail.items.announce([announcement("announced", "announced", "r")])
    world.source = Source(document(key), document("x", id=7), document("y", id=7))
    asked: list[Any] = []
    run = world.open()
    world.source.twins = lambda *args: asked.append(args) or []  # type: ignore[method-assign,func-returns-value]
    candidates(run)
    assert asked == []
    world.database.sync_items.update_many({}, {"$set": {"source_id": "another"}})
    candidates(run)
    assert asked == ([] if key == "new" else [(TENANT, {key})])


@pytest.mark.parametrize(("one", "other"), [(1, 2), (1, "1"), (Int64(1), 1.0), (None, "None")])
def test_ids_of_any_type_are_told_apart(world: RunInMemory, one: Any, other: Any) -> None:
    world.source = Source(document("a", _id=one), document("a", _id=other, version=2))
    run = world.open()
    world.database.sync_steps.insert_one(step_document(run.id, other, TRANSIENT))
    first, second = candidates(run)
    assert first.lost_as is not None
    assert second.lost_as is None
    assert second.prior is not None


def test_a_document_that_was_read_and_removed_since_is_not_sent_beside_another(
    world: RunInMemory,
) -> None:
    world.source = Source(document("a", _id=1, version=3), document("a", _id=2))
    run = world.open()
    (page,) = run.source.pages(BATCH)
    del world.source.documents[0]
    first, second = run.lookup.candidates(TENANT, page)
    assert first.lost_as is not None
    assert second.lost_as is None


def test_a_deleted_document_without_its_fields_is_made_up_from_what_was_confirmed(
    world: RunInMemory,
) -> None:
    world.confirm(item("known", logo="l.png", slug="old"))
    blanked = {"name": None, "deleted": True, "version": 2}
    world.source = Source(
        document("known", slug="new", **blanked), document("unknown", **blanked), document("c")
    )
    known, unknown, other = candidates(world.open())
    assert isinstance(known.found, Item)
    assert isinstance(unknown.found, Item)
    assert known.found.body == {
        "id": "known",
        "name": "Known",
        "logo": "l.png",
        "slug": "new",
        "enabled": False,
    }
    assert unknown.found.body == {"id": "unknown", "enabled": False}
    assert (known.found.version, known.found.source_id) == (2, "known")
    assert other.found == item("c")


def test_gone_items_are_as_confirmed_but_disabled_and_none_that_is_back(
    world: RunInMemory,
) -> None:
    gone = item("gone", version=7, logo="l.png")
    world.confirm(gone, item("back"))
    world.fail(item("never in"))
    world.source = Source(document("back"))
    run = world.open()
    batch = GoneBatch("tenant", "gone", ("gone", "back", "never in", "unknown"))
    (candidate,) = candidates(run, batch)
    assert isinstance(candidate.found, Item)
    assert candidate.found.natural_key == "gone"
    assert candidate.found.version == "7-gone"
    assert candidate.found.body == {**gone.body, "enabled": False}
    assert candidate.known is not None
    assert candidate.known.source_id == "gone"
    assert (candidate.prior, candidate.lost_as) == (None, None)
    step = step_document(run.id, candidate.found.source_id, TRANSIENT, attempts=2)
    world.database.sync_steps.insert_one(step)
    (again,) = candidates(run, batch)
    assert again.prior is not None
    assert again.prior.attempts == 2


def test_a_gone_item_is_told_by_its_natural_key() -> None:
    known = item_record("acme", 1, confirmed=confirmed("r", version="abc"), gone_since=at(0))
    gone = gone_item(TENANT, known, {"id": "acme", "name": "Acme", "enabled": True})
    assert (gone.source_id, gone.version) == ("gone:acme", "abc-gone")
    assert gone.body == {"id": "acme", "name": "Acme", "enabled": False}


def test_bodies_are_those_that_were_confirmed(world: RunInMemory) -> None:
    world.confirm(item("a"), item("b"))
    world.fail(item("c"))
    run = world.open()
    assert run.lookup.bodies(TENANT, ["a", "c", "d"]) == {"a": item("a").body}
