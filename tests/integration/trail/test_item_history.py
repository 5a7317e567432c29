"""ItemHistory on a real mongod: what its reads cost, by MongoDB's own profiler."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bson import ObjectId
from pymongo import InsertOne
from pymongo.database import Database

from tasks.mongo import MongoRetry
from tasks.trail.item_history import ItemCounts, ItemHistory
from tasks.trail.runs import RunRecord
from tests.item_documents import item_document, run_document
from tests.trail_documents import PERMANENT, at, step_document

Document = dict[str, Any]
NOT_IN, GONE, IN = 20, 10, 500
RUNS = 300


@pytest.fixture
def history(database: Database[Document], retry: MongoRetry) -> ItemHistory:
    """Items most of which are in."""
    for entity_type in ("tenant", "client"):
        database.sync_items.bulk_write([InsertOne(item) for item in items_of(entity_type)])
    database.sync_runs.insert_many(
        [run_document("tenant", "client", started_at=at(number)) for number in range(RUNS)]
    )
    return ItemHistory(database, retry)


def items_of(entity_type: str) -> Iterator[Document]:
    for number in range(IN):
        yield item_document(f"in {number:03}", entity_type)
    for number in range(NOT_IN):
        failed_at = at(number // 3)
        yield item_document(f"not {number}", entity_type, error=PERMANENT, not_in_since=failed_at)
        yield item_document(f"old {number}", entity_type, host="old.example", not_in_since=at(0))
    for number in range(GONE):
        yield item_document(f"gone {number}", entity_type, gone_since=at(number))


def cost_of(database: Database[Document], collection: str, read: Callable[[], Any]) -> int:
    """Return the most documents that MongoDB examined for one operation, all by an index."""
    database.system.profile.drop()
    database.command("profile", 2)
    read()
    database.command("profile", 0)
    operations = list(database.system.profile.find({"ns": f"{database.name}.{collection}"}))
    assert operations
    for operation in operations:
        assert "SCAN {" in operation["planSummary"]
    return max(operation["docsExamined"] for operation in operations)


@pytest.mark.parametrize(
    ("filters", "matching"),
    [
        ({"is_in": False}, 2 * NOT_IN),
        ({"is_in": False, "entity_type": "client"}, NOT_IN),
        ({"gone": True}, 2 * GONE),
        ({"gone": True, "entity_type": "tenant"}, GONE),
    ],
)
def test_what_is_not_in_or_gone_is_found_by_its_index_alone(
    database: Database[Document], history: ItemHistory, filters: dict[str, Any], matching: int
) -> None:
    assert history.items(1, 500, **filters).total == matching
    assert cost_of(database, "sync_items", lambda: history.items(1, 5, **filters)) == matching
    pages = [history.items(page, 7, **filters).items for page in range(1, 8)]
    listed = [(item.entity_type, item.natural_key) for page in pages for item in page]
    assert len(set(listed)) == len(listed) == matching


def test_a_page_of_what_is_in_reads_no_more_than_it_shows(
    database: Database[Document], history: ItemHistory
) -> None:
    page = history.items(1, 5)
    assert [item.natural_key for item in page.items] == [f"gone {n}" for n in range(5)]
    assert page.total == 2 * (IN + NOT_IN + GONE)
    assert cost_of(database, "sync_items", lambda: history.items(1, 5)) <= 2 * (5 + 1)


def test_counts_read_only_what_they_count(
    database: Database[Document], history: ItemHistory
) -> None:
    counts = ItemCounts(not_in=NOT_IN, gone=GONE)
    assert history.counts() == {
        **dict.fromkeys(("tenant", "client"), counts),
        **dict.fromkeys(("subtenant", "domain", "branding"), ItemCounts()),
    }
    assert cost_of(database, "sync_items", history.counts) <= NOT_IN


def test_which_stage_1_counts_now_is_told_by_the_latest_runs(
    database: Database[Document], history: ItemHistory
) -> None:
    assert cost_of(database, "sync_runs", history.counts) == 1


def test_which_stage_1_counts_is_found_of_a_type_that_was_not_sent_for_long(
    database: Database[Document], history: ItemHistory
) -> None:
    database.sync_runs.insert_one(run_document("domain", started_at=at(-1)))
    database.sync_items.insert_one(item_document("old.example", "domain", not_in_since=at(0)))
    assert history.counts()["domain"] == ItemCounts(not_in=1)
    assert cost_of(database, "sync_runs", history.counts) == 1


def test_what_came_of_a_run_is_found_by_indexes(
    database: Database[Document], history: ItemHistory
) -> None:
    document = run_document("tenant", "client", started_at=at(3))
    run = RunRecord.model_validate(document)
    recovered = {"run_id": run.id, "since": at(1)}
    database.sync_items.insert_one(item_document("back", recovered=recovered))
    database.sync_items.update_many({"not_in_since": at(5)}, {"$set": {"last.run_id": run.id}})
    for tell, total, cost in [
        (history.newly_failing, 6, 2 * NOT_IN),
        (history.still_failing, 18, 2 * NOT_IN),
        (history.recovered, 1, 1),
        (history.gone, 2 * GONE, 2 * GONE),
    ]:
        assert tell(run, 100).total == total
        assert cost_of(database, "sync_items", lambda tell=tell: tell(run, 100)) <= cost


def test_a_story_costs_the_same_however_many_runs_there_are(
    database: Database[Document], history: ItemHistory
) -> None:
    runs = [ObjectId() for _ in range(RUNS)]
    for number, run_id in enumerate(runs):
        others = [step_document(run_id, key) for key in ("b", "c", "d")]
        database.sync_steps.insert_many(
            [step_document(run_id, "a", created_at=at(number)), *others]
        )
    story = history.story("tenant", "a", 1, 10)
    assert [step.run_id for step in story.items] == runs[:-11:-1]
    assert story.total == RUNS
    assert cost_of(database, "sync_steps", lambda: history.story("tenant", "a", 1, 10)) == 10


def test_a_record_is_read_by_its_key(database: Database[Document], history: ItemHistory) -> None:
    assert cost_of(database, "sync_items", lambda: history.records("tenant", "in 007")) == 1
