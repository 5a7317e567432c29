"""An audit trail in memory: mongomock, with the indexes that `audit_trail` makes."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import mongomock
import pytest
from pymongo import IndexModel
from pymongo.collection import Collection
from pymongo.database import Database

from tasks.mongo import MongoRetry
from tasks.trail.fields import RunId
from tasks.trail.items import ITEM_INDEXES
from tasks.trail.ownership import TURN_INDEX, Ownership
from tasks.trail.runs import RUN_INDEXES, Runs
from tasks.trail.stages import Stages
from tasks.trail.steps import STEP_INDEXES, Steps
from tests.trail_documents import OPTIONS

Document = dict[str, Any]


@pytest.fixture
def database() -> Database[Document]:
    database: Database[Document] = mongomock.MongoClient(tz_aware=True)["backoffice"]
    _make_indexes(database.sync_runs, [*RUN_INDEXES, TURN_INDEX])
    _make_indexes(database.sync_steps, STEP_INDEXES)
    _make_indexes(database.sync_items, ITEM_INDEXES)
    return database


def _make_indexes(collection: Collection[Document], indexes: Sequence[IndexModel]) -> None:
    """Make indexes one by one: mongomock forgets what is partial of several."""
    for index in indexes:
        options = dict(index.document)
        collection.create_index(list(options.pop("key").items()), **options)


@pytest.fixture
def retry() -> MongoRetry:
    client_that_finds_mongodb = Mock()
    return MongoRetry(client_that_finds_mongodb, seconds=0)


@pytest.fixture
def sync_runs(database: Database[Document]) -> Collection[Document]:
    return database.sync_runs


@pytest.fixture
def sync_steps(database: Database[Document]) -> Collection[Document]:
    return database.sync_steps


@pytest.fixture
def sync_items(database: Database[Document]) -> Collection[Document]:
    return database.sync_items


@pytest.fixture
def runs(sync_runs: Collection[Document], retry: MongoRetry) -> Runs:
    return Runs(sync_runs, retry)


@pytest.fixture
def ownership(sync_runs: Collection[Document], retry: MongoRetry) -> Ownership:
    return Ownership(sync_runs, retry)


@pytest.fixture
def stages(sync_runs: Collection[Document], retry: MongoRetry) -> Stages:
    return Stages(sync_runs, retry)


@pytest.fixture
def steps(sync_steps: Collection[Document], retry: MongoRetry) -> Steps:
    return Steps(sync_steps, retry)


@pytest.fixture
def run_id(runs: Runs) -> RunId:
    """A run of tenants and clients."""
    return runs.open("a flow run", "its name", OPTIONS)
