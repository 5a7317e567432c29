"""ItemHistory: which items are in now, which are gone, and the story of one."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection
from pymongo.database import Database

from tasks.entities import ENTITY_NAMES
from tasks.mongo import MongoRetry
from tasks.trail.history import Page
from tasks.trail.item_history import ItemChange, ItemCounts, ItemHistory
from tasks.trail.items import ItemRecord
from tasks.trail.runs import RunRecord
from tests.item_documents import hub_of, item_document, never_in, run_document
from tests.trail_documents import PERMANENT, SKIPPED, at, step_document

Document = dict[str, Any]
EARLIER_RUN = ObjectId()


@pytest.fixture
def history(database: Database[Document], retry: MongoRetry) -> ItemHistory:
    return ItemHistory(database, retry)


@pytest.fixture
def mixed(sync_runs: Collection[Document], sync_items: Collection[Document]) -> RunRecord:
    """A run of tenants and clients that began at 100, and items of every kind."""
    run = run_document("tenant", "client", started_at=at(100))
    sync_runs.insert_one(run)
    failed = {"error": PERMANENT, "run_id": run["_id"], "attempts": 3}
    recovered = {"recovered": {"run_id": run["_id"], "since": at(7)}}
    sync_items.insert_many(
        [
            item_document("in-b"),
            item_document("in-a"),
            item_document("in", "client"),
            item_document("new", **failed, not_in_since=at(101)),
            never_in(item_document("never", "client", **failed, not_in_since=at(100))),
            item_document("still", **failed, not_in_since=at(99)),
            item_document("of an earlier run", error=PERMANENT, not_in_since=at(5)),
            item_document("back", run_id=run["_id"], **recovered),
            item_document("back and out", **failed, **recovered, not_in_since=at(102)),
            item_document("gone", gone_since=at(50)),
            item_document("long gone", "client", gone_since=at(10)),
            item_document("off", body={"enabled": False}, gone_since=at(20)),
            item_document("elsewhere", host="old.example", not_in_since=at(1), gone_since=at(1)),
        ]
    )
    return RunRecord.model_validate(run)


def keys(page: Page[ItemRecord]) -> list[str]:
    return [item.natural_key for item in page.items]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (
            {"is_in": False},
            ["of an earlier run", "still", "never", "new", "back and out"],
        ),
        ({"is_in": False, "entity_type": "client"}, ["never"]),
        (
            {"is_in": True},
            ["in", "long gone", "back", "gone", "in-a", "in-b", "off"],
        ),
        ({"is_in": True, "gone": False}, ["in", "back", "in-a", "in-b"]),
        ({"gone": True}, ["long gone", "off", "gone"]),
        ({"gone": True, "is_in": False}, []),
        ({"entity_type": "client"}, ["in", "long gone", "never"]),
        ({"entity_type": "domain"}, []),
    ],
)
def test_items_are_listed(
    history: ItemHistory, mixed: RunRecord, filters: dict[str, Any], expected: list[str]
) -> None:
    assert mixed
    assert keys(history.items(1, 50, **filters)) == expected
    pages = [history.items(page, 2, **filters) for page in (1, 2, 3, 4)]
    assert [key for page in pages for key in keys(page)] == expected
    assert {(page.limit, page.total) for page in pages} == {(2, len(expected))}


def test_items_that_failed_at_the_same_time_come_in_a_stable_order(
    history: ItemHistory, sync_runs: Collection[Document], sync_items: Collection[Document]
) -> None:
    sync_runs.insert_one(run_document("tenant"))
    items = [item_document(str(number), not_in_since=at(1)) for number in range(5)]
    sync_items.insert_many(items[::-1])
    pages = [history.items(page, 2, is_in=False) for page in (1, 2, 3)]
    assert [key for page in pages for key in keys(page)] == ["0", "1", "2", "3", "4"]


def test_where_there_are_no_runs_there_are_no_items(
    history: ItemHistory, sync_items: Collection[Document]
) -> None:
    assert history.items(1, 50).total == 0
    sync_items.insert_one(item_document())
    assert history.items(1, 50) == Page(page=1, limit=50, total=0, items=[])


def test_the_stage_1_that_counts_is_that_of_the_latest_run_that_sent(
    history: ItemHistory, sync_runs: Collection[Document], sync_items: Collection[Document]
) -> None:
    not_begun: Document = {"entity_type": "tenant", "status": "pending"}
    sync_runs.insert_many(
        [
            run_document("tenant", "client", host="old.example", started_at=at(1)),
            run_document("tenant", host="new.example", started_at=at(2)),
            run_document("client", started_at=at(3), stages=[not_begun]),
            run_document("tenant", host="tried.example", started_at=at(4), dry_run=True),
        ]
    )
    for entity_type in ("tenant", "client"):
        for host in ("old.example", "new.example", "tried.example"):
            sync_items.insert_one(item_document(host, entity_type, host=host))
    assert keys(history.items(1, 50)) == ["old.example", "new.example"]
    assert keys(history.items(1, 50, entity_type="tenant")) == ["new.example"]


def test_items_are_counted_by_type(history: ItemHistory, mixed: RunRecord) -> None:
    assert mixed
    assert history.counts() == {
        "tenant": ItemCounts(not_in=4, gone=1),
        "client": ItemCounts(not_in=1, gone=1),
        "subtenant": ItemCounts(),
        "domain": ItemCounts(),
        "branding": ItemCounts(),
    }


def test_an_empty_trail_counts_none(history: ItemHistory) -> None:
    assert history.counts() == dict.fromkeys(ENTITY_NAMES, ItemCounts())


def test_what_is_not_in_after_a_run_is_told_against_what_was_before(
    history: ItemHistory, mixed: RunRecord
) -> None:
    assert keys(history.newly_failing(mixed, 50)) == ["never", "new", "back and out"]
    assert keys(history.still_failing(mixed, 50)) == ["of an earlier run", "still"]
    assert keys(history.recovered(mixed, 50)) == ["back"]
    first = history.newly_failing(mixed, 1)
    assert (keys(first), first.total) == (["never"], 3)
    pages = [history.changed(mixed, ItemChange.NEWLY_FAILING, page, 2) for page in (1, 2, 3)]
    assert [keys(page) for page in pages] == [["never", "new"], ["back and out"], []]
    assert {(page.limit, page.total) for page in pages} == {(2, 3)}


def test_what_a_run_itself_had_failed_before_has_not_recovered(
    history: ItemHistory, mixed: RunRecord, sync_items: Collection[Document]
) -> None:
    recovered = {"run_id": mixed.id, "since": at(101)}
    sync_items.insert_one(item_document("retried", run_id=mixed.id, recovered=recovered))
    assert keys(history.recovered(mixed, 50)) == ["back"]


def test_a_run_tells_of_its_own_types_and_of_where_it_sent_to(
    history: ItemHistory, mixed: RunRecord, sync_items: Collection[Document]
) -> None:
    sync_items.insert_many(
        [
            item_document("other", "domain", not_in_since=at(1)),
            item_document("other", "branding", gone_since=at(1)),
        ]
    )
    assert keys(history.still_failing(mixed, 50)) == ["of an earlier run", "still"]
    assert keys(history.gone(mixed, 50)) == ["long gone", "gone"]
    elsewhere = RunRecord.model_validate(run_document("tenant", host="old.example"))
    assert keys(history.gone(elsewhere, 50)) == ["elsewhere"]
    stages_of_earlier_versions = RunRecord.model_validate(run_document(stages=[]))
    assert history.gone(stages_of_earlier_versions, 50).total == 0


def test_an_item_has_a_record_for_each_stage_1_the_latest_outcome_first(
    history: ItemHistory, sync_items: Collection[Document]
) -> None:
    announced = item_document(host="c.example")
    del announced["last"]
    sync_items.insert_many(
        [
            item_document(host="a.example", when=at(1)),
            announced,
            item_document(host="b.example", when=at(2)),
            item_document("another"),
            item_document(entity_type="client"),
        ]
    )
    hubs = [record.hub for record in history.records("tenant", "acme")]
    assert hubs == [hub_of("tenant", host) for host in ("b.example", "a.example", "c.example")]
    assert history.records("tenant", "nobody") == []


def test_a_story_is_told_over_all_runs_newest_first(
    history: ItemHistory, sync_steps: Collection[Document]
) -> None:
    outcomes = [PERMANENT, None, SKIPPED]
    sync_steps.insert_many(
        [
            step_document(ObjectId(), number, error, natural_key="acme", created_at=at(number // 2))
            for number, error in enumerate(outcomes)
        ]
    )
    sync_steps.insert_many(
        [
            step_document(EARLIER_RUN, 7, natural_key="another"),
            step_document(EARLIER_RUN, 8, natural_key="acme", entity_type="client"),
        ]
    )
    pages = [history.story("tenant", "acme", page, 2) for page in (1, 2)]
    assert [step.source_id for page in pages for step in page.items] == [2, 1, 0]
    assert [(page.page, page.total) for page in pages] == [(1, 3), (2, 3)]


def test_an_item_is_known_by_its_records_or_by_its_steps(
    history: ItemHistory, sync_items: Collection[Document], sync_steps: Collection[Document]
) -> None:
    sync_items.insert_one(item_document("recorded"))
    sync_steps.insert_one(step_document(EARLIER_RUN, natural_key="sent long ago"))
    recorded = history.item("tenant", "recorded", 1, 50)
    assert recorded is not None
    assert ([item.natural_key for item in recorded.items], recorded.history.total) == (
        ["recorded"],
        0,
    )
    sent_long_ago = history.item("tenant", "sent long ago", 2, 1)
    assert sent_long_ago is not None
    assert (sent_long_ago.items, sent_long_ago.history.total) == ([], 1)
    assert history.item("client", "recorded", 1, 50) is None
