"""What reads of a long trail cost on a real mongod, by the plans that it chooses."""

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.database import Database

from tasks.entities import ENTITY_NAMES
from tasks.mongo import CODEC, MongoRetry
from tasks.trail.figures import Figures
from tasks.trail.history import Page, RunHistory
from tasks.trail.ownership import Ownership
from tasks.trail.runs import RUN_INDEXES
from tasks.trail.step_cursor import StepCursor
from tasks.trail.steps import STEP_INDEXES, Steps
from tests.item_documents import run_document
from tests.trail_documents import PERMANENT, SKIPPED, TRANSIENT, WOULD_SEND, at, step_document

Document = dict[str, Any]
RUN, DRY_RUN = ObjectId(), ObjectId()
A_TYPE = 400
OUTCOMES = (PERMANENT, SKIPPED, TRANSIENT, *[None] * 7)
RUNS = 2_000
UNSUCCESSFUL = 20


@pytest.fixture(scope="module")
def database(client: MongoClient[Document]) -> Iterator[Database[Document]]:
    """A run with steps of every type and outcome, a dry run, and many other runs."""
    database = client.get_database(f"reads_{uuid.uuid4().hex[:12]}", codec_options=CODEC)
    database.sync_runs.create_indexes(RUN_INDEXES)
    database.sync_steps.create_indexes(STEP_INDEXES)
    database.sync_steps.insert_many([*steps_of_run(), *steps_of_dry_run()])
    database.sync_runs.insert_many(
        [
            run_document(
                "tenant",
                started_at=at(number),
                status="success" if number % (RUNS // UNSUCCESSFUL) else "crashed",
            )
            for number in range(RUNS)
        ]
    )
    yield database
    client.drop_database(database.name)


@pytest.fixture
def history(database: Database[Document], retry: MongoRetry) -> RunHistory:
    return RunHistory(database, retry)


def steps_of_run() -> Iterator[Document]:
    for number in range(len(ENTITY_NAMES) * A_TYPE):
        yield step_document(
            RUN,
            number,
            OUTCOMES[number % len(OUTCOMES)],
            entity_type=ENTITY_NAMES[number // A_TYPE],
            created_at=at(number // 3),
            duration_ms=float(number * 7 % 1_000),
        )


def steps_of_dry_run() -> Iterator[Document]:
    change = {"field": "name", "old": None, "new": '"Acme"'}
    for number in range(A_TYPE):
        yield step_document(
            DRY_RUN,
            number,
            WOULD_SEND,
            created_at=at(number),
            changes=[change] if number >= A_TYPE - 10 else [],
        )


def operations(
    database: Database[Document], collection: str, read: Callable[[], Any]
) -> list[Document]:
    """Return what MongoDB's profiler tells of a read, which scans no collection."""
    database.system.profile.drop()
    database.command("profile", 2)
    read()
    database.command("profile", 0)
    told = {"ns": f"{database.name}.{collection}", "planSummary": {"$exists": True}}
    found = list(database.system.profile.find(told))
    assert found
    assert not [each["command"] for each in found if "COLLSCAN" in each["planSummary"]]
    return found


def examined(database: Database[Document], collection: str, read: Callable[[], Any]) -> int:
    """Return how many documents MongoDB examined; it has them in order, and sorts none."""
    found = operations(database, collection, read)
    assert not [each["command"] for each in found if each.get("hasSortStage")]
    return sum(each["docsExamined"] for each in found)


def numbers(page: Page[Any]) -> list[int]:
    return [step.source_id for step in page.items]


FILTERS = [
    {"ok": ok, "entity_type": entity_type}
    for ok in (None, True, False)
    for entity_type in (None, "tenant", "branding")
]


def expected(ok: bool | None, entity_type: str | None) -> list[int]:
    return [
        step["source_id"]
        for step in steps_of_run()
        if ok in (None, step["ok"]) and entity_type in (None, step["entity_type"])
    ]


@pytest.mark.parametrize("filters", FILTERS)
def test_pages_of_steps_by_a_cursor_read_what_they_show(
    database: Database[Document],
    history: RunHistory,
    monkeypatch: pytest.MonkeyPatch,
    filters: Document,
) -> None:
    monkeypatch.setattr("tasks.trail.history._COUNTED_AT_MOST", 30)
    wanted, after, seen, costs = expected(**filters), None, list[int](), list[int]()

    def read() -> None:
        nonlocal after, seen
        page = history.steps(RUN, 1, 50, **filters, after=after)
        after = StepCursor.parsed(page.next) if page.next else None
        seen = numbers(page)

    for start in range(0, len(wanted), 50):
        costs.append(examined(database, "sync_steps", read))
        assert seen == wanted[start : start + 50]
    assert after is None
    assert max(costs) <= 4 * 50


@pytest.mark.parametrize("filters", FILTERS)
def test_pages_of_steps_by_their_number_are_the_same(
    history: RunHistory, filters: Document
) -> None:
    wanted = expected(**filters)
    for page in (1, 2, 5):
        found = history.steps(RUN, page, 70, **filters)
        assert numbers(found) == wanted[(page - 1) * 70 : page * 70]
        assert found.total == len(wanted)


def test_the_last_page_of_steps_reads_what_it_shows(
    database: Database[Document], history: RunHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.trail.history._COUNTED_AT_MOST", 30)
    steps = len(ENTITY_NAMES) * A_TYPE
    read = partial(history.steps, RUN, steps // 50, 50)
    assert examined(database, "sync_steps", read) <= 50 + 1


@pytest.mark.parametrize("page", [1, RUNS // 50 // 2, RUNS // 50])
def test_any_page_of_runs_reads_what_it_shows(
    database: Database[Document], history: RunHistory, page: int
) -> None:
    found = history.runs(page, 50)
    first = RUNS - (page - 1) * 50
    assert [run.started_at for run in found.items] == [at(first - 1 - n) for n in range(50)]
    assert examined(database, "sync_runs", partial(history.runs, page, 50)) == 50


@pytest.mark.parametrize(
    ("collection", "read", "documents"),
    [
        ("sync_steps", lambda history: history.failures(RUN, 50), 50),
        ("sync_steps", lambda history: history.failures(RUN, 50, "branding"), 50),
        ("sync_steps", lambda history: history.failures(RUN), 400),
        ("sync_steps", lambda history: history.changes(DRY_RUN, 50), 10),
        ("sync_steps", lambda history: history.slowest(RUN, 10), 10),
        ("sync_runs", lambda history: history.unsuccessful_runs(10), 10),
        ("sync_runs", lambda history: history.latest_runs(10), 10),
    ],
)
def test_lists_read_what_they_show(
    database: Database[Document],
    history: RunHistory,
    collection: str,
    read: Callable[[RunHistory], Any],
    documents: int,
) -> None:
    assert len(list(read(history))) == documents
    assert examined(database, collection, lambda: list(read(history))) <= 1.1 * documents


def test_the_start_of_a_sync_reads_the_unfinished_runs_only(
    database: Database[Document], retry: MongoRetry
) -> None:
    ownership = Ownership(database.sync_runs, retry)
    unfinished = [run_document("tenant", status=each) for each in ("pending", "running")]
    database.sync_runs.insert_many(unfinished)
    told = [operations(database, "sync_runs", ownership.unfinished)]
    told.append(operations(database, "sync_runs", ownership.under_way))
    database.sync_runs.delete_many({"_id": {"$in": [run["_id"] for run in unfinished]}})
    assert [each["docsExamined"] for (each,) in told] == [2, 2]


def test_what_a_stage_asks_of_its_run_is_found_by_indexes(
    database: Database[Document], retry: MongoRetry
) -> None:
    steps = Steps(database.sync_steps, retry)
    for read, most in [
        (partial(steps.failed_keys, RUN, "domain"), 2 * A_TYPE // 10),
        (partial(steps.first_errors, RUN), 101),
        (partial(steps.fail_awaiting, RUN, "another task run"), 0),
    ]:
        assert examined(database, "sync_steps", read) <= most


def test_sums_of_runs_read_the_newest_runs_only(
    database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.trail.rollups.RUNS_A_ROLLUP", 100)
    monkeypatch.setattr("tasks.trail.rollups.RUNS_WITHOUT", 150)
    figures = Figures(database)
    told = figures.sum()
    assert told.by_status == {"success": RUNS - UNSUCCESSFUL, "crashed": UNSUCCESSFUL}
    assert figures.sum() == told
    assert examined(database, "sync_runs", figures.sum) <= 2 * 150
    assert examined(database, "sync_runs", figures.paces) == 0
    assert examined(database, "sync_runs", figures.running_stages) == 0
    assert examined(database, "sync_runs", figures.last_durations) <= 200
