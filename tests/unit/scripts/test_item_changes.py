"""What comes first of the items that are not in, or gone: what needs a person."""

from typing import Any

import pytest
from pymongo.database import Database

from scripts.item_changes import gone_now, item_changes, not_in_now, others_not_in
from tasks.mongo import MongoRetry
from tasks.trail.fields import ForeignDocument
from tasks.trail.item_history import ItemEntry, ItemHistory
from tasks.trail.items import ItemRecord
from tasks.trail.runs import RunRecord
from tests.item_documents import item_document, run_document
from tests.trail_documents import PERMANENT, SKIPPED, STOPPING, TRANSIENT, at

Document = dict[str, Any]


@pytest.fixture
def items(database: Database[Document], retry: MongoRetry) -> ItemHistory:
    return ItemHistory(database, retry)


@pytest.fixture
def run(database: Database[Document]) -> RunRecord:
    document = run_document("tenant", started_at=at(100))
    database.sync_runs.insert_one(document)
    return RunRecord.model_validate(document)


def keys(entries: list[ItemEntry] | list[ItemRecord]) -> list[str]:
    return [item.natural_key for item in entries if isinstance(item, ItemRecord)]


@pytest.mark.usefixtures("run")
def test_what_needs_a_person_comes_before_what_the_next_run_may_mend(
    database: Database[Document], items: ItemHistory
) -> None:
    failures = {"a": TRANSIENT, "b": SKIPPED, "c": STOPPING, "d": PERMANENT}
    database.sync_items.insert_many(
        item_document(key, error=error, not_in_since=at(number))
        for number, (key, error) in enumerate(failures.items())
    )
    database.sync_items.insert_one({**item_document("e", not_in_since=at(9)), "last": "odd"})
    found = not_in_now(items, 4)
    assert keys(found.items) == ["c", "d", "a"]
    assert isinstance(found.items[1], ForeignDocument)
    assert (found.total, found.limit) == (5, 4)
    assert keys(not_in_now(items, 1).items) == ["c"]


@pytest.mark.usefixtures("run")
def test_what_stage_1_holds_enabled_comes_before_what_it_does_not(
    database: Database[Document], items: ItemHistory
) -> None:
    database.sync_items.insert_many(
        [
            item_document("off", body={"enabled": False}, gone_since=at(1)),
            item_document("on", gone_since=at(3)),
            item_document("longer on", gone_since=at(2)),
            item_document("here"),
        ]
    )
    assert keys(gone_now(items, 9).items) == ["longer on", "on", "off"]
    assert keys(gone_now(items, 1).items) == ["longer on"]


def test_what_a_run_changed(
    database: Database[Document], items: ItemHistory, run: RunRecord
) -> None:
    failed = {"run_id": run.id}
    database.sync_items.insert_many(
        [
            item_document("new", error=TRANSIENT, not_in_since=at(101), **failed),
            item_document("new for good", error=PERMANENT, not_in_since=at(102), **failed),
            item_document("still", error=TRANSIENT, not_in_since=at(1), **failed),
            item_document("still for good", error=PERMANENT, not_in_since=at(2), **failed),
            item_document("back", recovered={"run_id": run.id, "since": at(1)}),
            item_document("gone", gone_since=at(1)),
        ]
    )
    changes = item_changes(items, run)
    assert keys(changes.newly_failing.items) == ["new for good", "new"]
    assert keys(changes.still_failing.items) == ["still for good", "still"]
    assert keys(changes.recovered.items) == ["back"]
    assert keys(changes.gone.items) == ["gone"]
    assert changes.is_there_any
    first = changes.first(1)
    assert keys(first.newly_failing.items) == ["new for good"]
    assert first.newly_failing.total == 2

    def error(natural_key: str | None) -> Document:
        return {"entity_type": "tenant", "natural_key": natural_key, "code": "C", "message": "m"}

    told = {**run_document("tenant"), "errors": [error("new"), error("twin"), error(None)]}
    others = others_not_in(RunRecord.model_validate(told), changes)
    assert [other.natural_key for other in others] == ["twin", None]


def test_a_run_that_changed_nothing(items: ItemHistory, run: RunRecord) -> None:
    assert not item_changes(items, run).is_there_any
