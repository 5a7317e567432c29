"""A database of a real mongod, and no Prefect: for what mongomock is not faithful in.

That is bulk writes, `hint` with `min` and `max`, `$$NOW`, `$inc` of fields that are new,
`$unionWith`, a field of `null` that counts as `null`, plans, indexes that MongoDB itself acts on,
writes that come at once, and users with few rights.
"""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tasks.mongo import CODEC, MongoRetry
from tasks.trail.fields import RunId
from tasks.trail.items import ITEM_INDEXES, Items
from tasks.trail.ownership import TURN_INDEX, Ownership
from tasks.trail.runs import RUN_INDEXES, Runs
from tasks.trail.steps import STEP_INDEXES
from tests.trail_documents import OPTIONS

Document = dict[str, Any]


@pytest.fixture(scope="module")
def client(mongodb_uri: str) -> Iterator[MongoClient[Document]]:
    with MongoClient[Document](mongodb_uri, tz_aware=True) as client:
        yield client


@pytest.fixture
def database(client: MongoClient[Document]) -> Iterator[Database[Document]]:
    database = client.get_database(f"trail_{uuid.uuid4().hex[:12]}", codec_options=CODEC)
    database.sync_runs.create_indexes([*RUN_INDEXES, TURN_INDEX])
    database.sync_steps.create_indexes(STEP_INDEXES)
    database.sync_items.create_indexes(ITEM_INDEXES)
    yield database
    client.drop_database(database.name)


@pytest.fixture
def retry(client: MongoClient[Document]) -> MongoRetry:
    return MongoRetry(client, seconds=1)


@pytest.fixture
def runs(database: Database[Document], retry: MongoRetry) -> Runs:
    return Runs(database.sync_runs, retry)


@pytest.fixture
def ownership(database: Database[Document], retry: MongoRetry) -> Ownership:
    return Ownership(database.sync_runs, retry)


@pytest.fixture
def items(database: Database[Document], retry: MongoRetry) -> Items:
    return Items(database.sync_items, retry)


@pytest.fixture
def run_id(runs: Runs) -> RunId:
    """A run of tenants and clients."""
    return runs.open("a flow run", "its name", OPTIONS)
