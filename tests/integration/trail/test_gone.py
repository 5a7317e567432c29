"""Gone: what Stage 1 holds enabled and the source no longer has, on a real mongod."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
from bson import ObjectId
from pymongo.collation import Collation, CollationStrength
from pymongo.database import Database

from tasks.entities import entity_type_named
from tasks.mongo import MongoRetry
from tasks.source.collection import SourceCollection
from tasks.source.reader import SourceReader
from tasks.trail.gone import Gone, GoneItems
from tasks.trail.item_writes import confirmation_of, failure_of
from tasks.trail.items import Items
from tests.trail_documents import HUB, announcement, at, confirmed, failure, item_key

Document = dict[str, Any]
ELSEWHERE = "https://other.example/upsert"
TENANT = entity_type_named("tenant")


Find = Callable[..., GoneItems]


@pytest.fixture(params=["as a pipeline", "as a list"])
def find(request: pytest.FixtureRequest, database: Database[Document], retry: MongoRetry) -> Find:
    """Find what is gone of the tenants, by both forms of the keys that are there."""
    source, gone = SourceReader(database, retry), Gone(database.sync_items, retry)

    def find(seconds: float | None = None) -> GoneItems:
        present = source.present(TENANT)
        assert isinstance(present, dict)
        if request.param == "as a list":
            collection = SourceCollection(database.source_tenants, retry)
            present = frozenset(chain.from_iterable(collection.keys(TENANT)))
        found = gone.find(HUB, "tenant", present, None if seconds is None else at(seconds))
        return GoneItems(found.count, found.held, tuple(sorted(found.natural_keys)))

    return find


def hold(
    database: Database[Document],
    *natural_keys: str,
    enabled: Any = True,
    hub: str = HUB,
    entity_type: str = "tenant",
) -> None:
    """Let Stage 1 hold items; `enabled` of None is a field that is absent."""
    database.sync_items.bulk_write(
        [
            confirmation_of(
                item_key(key, hub, entity_type),
                1,
                confirmed("r", body={"id": key} if enabled is None else {"enabled": enabled}),
                None,
            )
            for key in natural_keys
        ]
    )


def marked(database: Database[Document]) -> dict[str, Any]:
    found = database.sync_items.find({"gone_since": {"$exists": True}})
    return {item["natural_key"]: item["gone_since"] for item in found}


def keys(count: int, prefix: str = "k") -> list[str]:
    return [f"{prefix}{number:04}" for number in range(count)]


def insert(database: Database[Document], *natural_keys: str) -> None:
    if natural_keys:
        database.source_tenants.insert_many([{"id": key} for key in natural_keys])


def test_what_stage_1_holds_enabled_and_the_source_has_not_is_gone(
    database: Database[Document], find: Find
) -> None:
    hold(database, "here", "gone", "twice")
    hold(database, "says nothing", enabled=None)
    hold(database, "off", enabled=False)
    hold(database, "elsewhere", hub=ELSEWHERE)
    hold(database, "a client", entity_type="client")
    last = failure()
    database.sync_items.bulk_write(
        [failure_of(item_key("never in"), 1, last, requests=1, not_taken=None)]
    )
    insert(database, "here", "twice", "twice", "new")
    assert find() == GoneItems(2, 4, ("gone", "says nothing"))


def test_natural_keys_are_compared_as_the_source_reader_knows_them(
    database: Database[Document], find: Find
) -> None:
    as_id, as_key = ObjectId(), ObjectId()
    hold(database, str(as_id), str(as_key), "Case", "ñ", "1")
    database.source_tenants.insert_many(
        [{"_id": as_id}, {"id": as_key}, {"id": "case"}, {"id": "ñ"}, {"id": 1}, {"id": None}]
    )
    assert find() == GoneItems(2, 5, ("1", "Case"))


def test_documents_without_a_natural_key_are_nobodys(
    database: Database[Document], find: Find
) -> None:
    hold(database, "gone")
    database.source_tenants.insert_many([{"id": ""}, {"id": 1}, {"id": None}, {"name": "x"}])
    assert find() == GoneItems(1, 1, ("gone",))


def test_an_item_is_gone_since_it_was_first_missed(
    database: Database[Document], find: Find
) -> None:
    hold(database, "first", "second")
    insert(database, "second")
    assert (find().count, marked(database)) == (1, {})
    find(1)
    assert marked(database) == {"first": at(1)}
    database.source_tenants.delete_many({})
    find(2)
    assert marked(database) == {"first": at(1), "second": at(2)}


def test_an_item_that_was_disabled_is_neither_held_nor_missed(
    database: Database[Document], find: Find, retry: MongoRetry
) -> None:
    hold(database, "gone")
    assert find(1).count == 1
    last = confirmed("r-2", body={"enabled": False})
    known = Items(database.sync_items, retry).known(HUB, "tenant", ["gone"])["gone"]
    write = confirmation_of(item_key("gone"), 1, last, known, is_gone=True)
    database.sync_items.bulk_write([write])
    assert find(2) == GoneItems(0, 0, ())
    assert marked(database) == {"gone": at(1)}, "since when it is gone is forgotten"


def test_an_item_that_was_announced_only_is_not_held(
    database: Database[Document], find: Find, items: Items
) -> None:
    items.announce([announcement("a", 1, "r")])
    assert find(1) == GoneItems(0, 0, ())
    assert marked(database) == {}


def test_a_collection_that_takes_texts_for_equal_misses_what_is_written_otherwise(
    database: Database[Document], find: Find
) -> None:
    collation = Collation("en", strength=CollationStrength.SECONDARY)
    database.create_collection("source_tenants", collation=collation)
    hold(database, "Case", "same")
    insert(database, "case", "same")
    assert find(1) == GoneItems(1, 2, ("Case",))


@pytest.mark.parametrize(
    ("held", "missing", "are_too_many"),
    [
        (0, 0, False),
        (1, 1, False),
        (10, 10, False),
        (11, 11, True),
        (54, 11, True),
        (55, 11, False),
        (60, 12, False),
        (60, 13, True),
        (1_500, 300, False),
        (1_500, 301, True),
        (1_500, 1_500, True),
        (6_000, 1_200, False),
    ],
)
def test_more_than_a_fifth_and_more_than_ten_are_too_many(
    database: Database[Document], find: Find, held: int, missing: int, are_too_many: bool
) -> None:
    all_keys = keys(held)
    if held:
        hold(database, *all_keys)
    insert(database, *all_keys[missing:])
    found = find(1)
    assert (found.count, found.held) == (missing, held if missing else 0)
    assert found.are_too_many is are_too_many
    assert found.natural_keys == (() if are_too_many else tuple(all_keys[:missing]))
    assert set(marked(database)) == set(all_keys[:missing]), "they are shown all the same"


def test_an_item_with_twins_in_the_source_is_there(
    database: Database[Document], find: Find
) -> None:
    hold(database, "a")
    insert(database, "a", "a")
    assert find(1) == GoneItems(0, 0, ())


def test_a_source_that_does_not_exist_has_nothing(database: Database[Document], find: Find) -> None:
    hold(database, *keys(11))
    assert "source_tenants" not in database.list_collection_names()
    assert find().are_too_many


def test_of_a_view_with_a_collation_of_its_own_keys_are_compared_exactly_too(
    database: Database[Document], retry: MongoRetry
) -> None:
    collation = Collation("en", strength=CollationStrength.SECONDARY)
    database.create_collection("tenants", collation=collation)
    database.create_collection("source_tenants", viewOn="tenants", collation=collation)
    database.tenants.insert_many([{"id": "case"}, {"id": "same"}])
    hold(database, "Case", "same")
    present = SourceReader(database, retry).present(TENANT)
    found = Gone(database.sync_items, retry).find(HUB, "tenant", present, at(1))
    assert found == GoneItems(1, 2, ("Case",))
    assert set(marked(database)) == {"Case"}


def test_what_is_not_in_and_has_no_document_any_more_is_forgotten(
    database: Database[Document], retry: MongoRetry
) -> None:
    told, untold = ObjectId(), ObjectId()
    for key, run_id in (("here", told), ("removed", untold)):
        last = failure(run_id=run_id)
        database.sync_items.bulk_write([failure_of(item_key(key), 1, last, requests=1)])
    Gone(database.sync_items, retry).forget_failures(HUB, "tenant", told)
    not_in = database.sync_items.distinct("natural_key", {"not_in_since": {"$exists": True}})
    assert not_in == ["here"]
