"""A plan cuts a collection into ranges of `_id`: none left out, none twice, never too many."""

import math
from collections.abc import Iterator
from datetime import UTC
from typing import Any

import pytest
from bson import MaxKey, MinKey, ObjectId, Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.database import Database

from tasks.entities import entity_type_named
from tasks.mongo import MongoRetry, identity
from tasks.source.reader import SourceReader

TENANT = entity_type_named("tenant")

source_ids = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.builds(ObjectId)
    | st.datetimes(timezones=st.just(UTC))
    | st.dictionaries(st.text("ab", min_size=1), st.integers(0, 3), max_size=2)
    | st.sampled_from([MinKey(), float("nan"), Timestamp(0, 0)])
)


@pytest.fixture(scope="module")
def database(mongodb_uri: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient(mongodb_uri, tz_aware=True) as client:
        yield client["batches"]
        client.drop_database("batches")


def source_of(database: Database[dict[str, Any]]) -> SourceReader:
    return SourceReader(database, MongoRetry(database.client, seconds=30))


@settings(max_examples=60, deadline=None)
@given(st.lists(source_ids, max_size=40), st.integers(1, 12), st.integers(1, 20))
def test_every_document_is_in_exactly_one_batch(
    database: Database[dict[str, Any]], ids: list[Any], max_batches: int, concurrency: int
) -> None:
    collection = database[TENANT.collection]
    collection.drop()
    for source_id in ids:
        collection.replace_one({"_id": {"$eq": source_id}}, {"_id": source_id}, upsert=True)
    count = collection.count_documents({})
    source = source_of(database)

    batches = source.plan(TENANT, concurrency, max_batches)
    read = [
        [identity(item.source_id) for page in source.pages(batch) for item in page]
        for batch in batches
    ]

    assert len(batches) <= max_batches
    in_order = [identity(document["_id"]) for document in collection.find().sort("_id", 1)]
    assert [source_id for batch in read for source_id in batch] == in_order
    number = count if count <= max_batches else min(concurrency, max_batches)
    largest = math.ceil(count / number) if count else 0
    assert all(0 < len(batch) <= largest for batch in read)
    assert len({batch.name for batch in batches}) == len(batches) or count <= max_batches


unplaceable = st.sampled_from([MaxKey(), *(str(digit) * 3_000 for digit in range(10))])


@settings(max_examples=60, deadline=None)
@given(st.lists(source_ids | unplaceable, max_size=40), st.integers(1, 12), st.integers(1, 20))
def test_a_document_where_no_batch_can_start_goes_with_the_one_before(
    database: Database[dict[str, Any]], ids: list[Any], max_batches: int, concurrency: int
) -> None:
    collection = database[TENANT.collection]
    collection.drop()
    for number, source_id in enumerate(ids):
        document = {"_id": source_id, "id": str(number)}
        collection.replace_one({"_id": {"$eq": source_id}}, document, upsert=True)
    source = source_of(database)
    batches = source.plan(TENANT, concurrency, max_batches)
    read = [item.natural_key for batch in batches for page in source.pages(batch) for item in page]
    assert read == [document["id"] for document in collection.find().sort("_id", 1)]
    assert len(batches) <= max_batches


def test_batches_keep_all_of_the_concurrency_busy_and_are_not_small(
    database: Database[dict[str, Any]],
) -> None:
    collection = database[TENANT.collection]
    collection.drop()
    collection.insert_many([{"_id": number} for number in range(5_000)])
    assert len(source_of(database).plan(TENANT, 3, 100)) == 18


def test_a_document_that_comes_after_the_plan_is_read_too(
    database: Database[dict[str, Any]],
) -> None:
    collection = database[TENANT.collection]
    collection.drop()
    collection.insert_many([{"_id": number} for number in range(10)])
    source = source_of(database)
    batches = source.plan(TENANT, 3, 3)
    collection.insert_many([{"_id": -1}, {"_id": 4.5}, {"_id": 11}])
    read = [item.source_id for batch in batches for page in source.pages(batch) for item in page]
    assert read == [-1, 0, 1, 2, 3, 4, 4.5, 5, 6, 7, 8, 9, 11]


def test_up_to_the_limit_each_item_is_its_own_batch_named_after_it(
    database: Database[dict[str, Any]],
) -> None:
    collection = database[TENANT.collection]
    collection.drop()
    key = ObjectId()
    collection.insert_many([{"_id": 1, "id": "acme"}, {"_id": "keyless"}, {"_id": key}])
    names = [batch.name for batch in source_of(database).plan(TENANT, 1, 3)]
    assert names == ["tenant acme", "tenant _id keyless", f"tenant {key}"]
