"""RunHistory: pages of runs and steps, and the order that they come in."""

from collections.abc import Iterable
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database

from tasks.errors import WOULD_SEND, ErrorClass, ItemError
from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoUnavailable
from tasks.trail.fields import RunId
from tasks.trail.history import Page, RunHistory
from tasks.trail.runs import Runs
from tasks.trail.stages import RunStatus
from tasks.trail.step_cursor import StepCursor
from tasks.trail.steps import FieldChange
from tests.trail_documents import OPTIONS, PERMANENT, SKIPPED, TRANSIENT, at, step_document

Document = dict[str, Any]
OTHER_RUN = ObjectId()


@pytest.fixture
def history(database: Database[Document], retry: MongoRetry) -> RunHistory:
    return RunHistory(database, retry)


@pytest.fixture
def seven_runs(runs: Runs, sync_runs: Collection[Document]) -> list[RunId]:
    """A run of each status, newest first; the two newest began at the same moment."""
    run_ids = []
    for number, status in enumerate(RunStatus):
        run_ids.append(runs.open(str(number), "a run", OPTIONS))
        change = {"status": status, "started_at": at(min(number, 5))}
        sync_runs.update_one({"_id": run_ids[-1]}, {"$set": change})
    return run_ids[::-1]


@pytest.fixture
def mixed(sync_steps: Collection[Document], run_id: RunId) -> RunId:
    """A run with steps of every outcome, written out of order."""
    steps = [
        (3, PERMANENT, 30.0, "tenant"),
        (1, None, 10.0, "tenant"),
        (4, SKIPPED, None, "client"),
        (2, TRANSIENT, 8_000.0, "tenant"),
        (5, PERMANENT, 30.0, "client"),
    ]
    sync_steps.insert_many(
        [
            step_document(
                run_id, number, error, duration_ms=ms, entity_type=of, created_at=at(number)
            )
            for number, error, ms, of in steps
        ]
    )
    sync_steps.insert_one(step_document(OTHER_RUN, 6, PERMANENT, duration_ms=9_000.0))
    return run_id


def numbers(page: Page[Any] | Iterable[Any]) -> list[int]:
    return [step.source_id for step in (page.items if isinstance(page, Page) else page)]


@pytest.mark.parametrize(
    ("page", "limit", "expected"),
    [(1, 3, [0, 1, 2]), (2, 3, [3, 4, 5]), (3, 3, [6]), (4, 3, []), (1, 50, list(range(7)))],
)
def test_runs_come_in_pages_newest_first(
    history: RunHistory, seven_runs: list[RunId], page: int, limit: int, expected: list[int]
) -> None:
    found = history.runs(page, limit)
    assert [run.id for run in found.items] == [seven_runs[index] for index in expected]
    assert (found.page, found.limit, found.total) == (page, limit, 7)


def test_unsuccessful_runs_have_ended_without_every_item_in(
    history: RunHistory, seven_runs: list[RunId]
) -> None:
    found = history.unsuccessful_runs(50)
    assert [run.status for run in found] == ["crashed", "cancelled", "failed", "partial"]
    assert [run.id for run in history.unsuccessful_runs(1)] == [seven_runs[0]]


def test_the_latest_runs_come_newest_first(history: RunHistory, seven_runs: list[RunId]) -> None:
    for limit in (1, 6, 7, 8):
        assert [run.id for run in history.latest_runs(limit)] == seven_runs[:limit]


def test_a_run_by_its_id_and_by_its_flow_run(history: RunHistory, run_id: RunId) -> None:
    run = history.run(run_id)
    assert run is not None
    assert run.id == run_id
    assert history.run_of("a flow run") == run
    assert history.run(ObjectId()) is None
    assert history.run_of("another") is None


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"ok": False}, [2, 3, 4, 5]),
        ({"entity_type": "client"}, [4, 5]),
        ({"ok": True, "entity_type": "client"}, []),
    ],
)
def test_steps_come_in_pages_oldest_first(
    history: RunHistory, mixed: RunId, filters: dict[str, Any], expected: list[int]
) -> None:
    """mongomock does not find `error.class` null where `error` is; MongoDB does."""
    pages = [history.steps(mixed, page, 2, **filters) for page in (1, 2, 3)]
    assert [number for page in pages for number in numbers(page)] == expected
    assert {page.total for page in pages} == {len(expected)}


def test_failures_leave_out_what_was_skipped(history: RunHistory, mixed: RunId) -> None:
    assert numbers(history.failures(mixed)) == [2, 3, 5]
    assert numbers(history.failures(mixed, 2)) == [2, 3]
    assert numbers(history.failures(mixed, entity_type="client")) == [5]


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
def test_each_page_says_where_the_next_one_begins(
    history: RunHistory, mixed: RunId, limit: int
) -> None:
    seen, after = list[int](), None
    while page := history.steps(mixed, 1, limit, after=after):
        assert (len(page.items), page.total) == (min(limit, 5 - len(seen)), 5)
        seen += numbers(page)
        if page.next is None:
            break
        after = StepCursor.parsed(page.next)
    assert seen == [1, 2, 3, 4, 5]


def test_pages_count_from_where_they_are_asked_to(history: RunHistory, mixed: RunId) -> None:
    first = history.steps(mixed, 1, 1)
    assert first.next is not None
    assert numbers(history.steps(mixed, 2, 2, after=StepCursor.parsed(first.next))) == [4, 5]


@pytest.mark.parametrize(
    ("filters", "total"),
    [({}, 9), ({"ok": False}, 8), ({"entity_type": "tenant"}, 7), ({"entity_type": "client"}, 2)],
)
def test_more_steps_than_are_counted_one_by_one_are_those_that_the_stages_have_counted(
    history: RunHistory,
    mixed: RunId,
    sync_runs: Collection[Document],
    monkeypatch: pytest.MonkeyPatch,
    filters: dict[str, Any],
    total: int,
) -> None:
    monkeypatch.setattr("tasks.trail.history._COUNTED_AT_MOST", 1)
    assert history.steps(mixed, 1, 10, **filters).total == 2, "no stage has counted any yet"
    counted = {"total": 9, "success": 1, "failed": 4, "skipped": 4, "unchanged": 2}
    change = {f"stages.0.{name}": count for name, count in counted.items()}
    sync_runs.update_one({}, {"$set": {**change, "stages.1.failed": 2}})
    assert history.steps(mixed, 1, 10, **filters).total == total
    assert history.steps(mixed, 1, 10, entity_type="domain").total == 0


@pytest.mark.parametrize("limit", [None, 1, 3, 4, 9])
def test_a_long_list_is_read_piece_by_piece(
    history: RunHistory, mixed: RunId, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr("tasks.trail.listing._AT_ONCE", 1)
    assert numbers(list(history.failures(mixed, limit))) == [2, 3, 5][:limit]


def test_changes_are_those_of_items_that_a_dry_run_would_send(
    history: RunHistory, sync_steps: Collection[Document], run_id: RunId
) -> None:
    change = {"field": "name", "old": None, "new": '"Acme"'}
    would_send = ItemError(WOULD_SEND, "not sent: this is a dry run", ErrorClass.SKIPPED)
    sync_steps.insert_many(
        [
            step_document(run_id, 1, would_send, changes=[change], created_at=at(2)),
            step_document(run_id, 2, would_send, changes=[change, change], created_at=at(1)),
            step_document(run_id, 3, would_send, changes=[]),
            step_document(run_id, 4, would_send, changes=None),
            step_document(run_id, 5, PERMANENT, changes=[change]),
            step_document(OTHER_RUN, 6, would_send, changes=[change]),
        ]
    )
    assert numbers(history.changes(run_id)) == [2, 1]
    (first,) = history.changes(run_id, 1)
    assert first.changes == [FieldChange(**change)] * 2


def test_the_slowest_steps_are_those_whose_last_request_took_longest(
    history: RunHistory, mixed: RunId
) -> None:
    assert numbers(history.slowest(mixed, 3)) == [2, 3, 5]
    assert numbers(history.slowest(mixed, 50)) == [2, 3, 5, 1]


def test_a_ping_does_not_wait_for_a_mongodb_that_is_away() -> None:
    with MongoClient[Document](
        "mongodb://127.0.0.1:9", connect=False, serverSelectionTimeoutMS=10
    ) as client:
        history = RunHistory(client["backoffice"], MongoRetry(client, seconds=3_600))
        with pytest.raises(MongoUnavailable):
            history.ping()
