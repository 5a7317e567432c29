"""What is told of a run that has ended."""

from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from pymongo.database import Database

from scripts.run_outcome import tell_outcome
from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoUnavailable
from tasks.settings import MongoSettings, read_mongo_settings
from tasks.trail.history import RunHistory
from tasks.trail.item_history import ItemHistory
from tests.item_documents import item_document, run_document
from tests.trail_documents import PERMANENT, TRANSIENT, at, step_document

Document = dict[str, Any]
FLOW_RUN = FlowRun(id=uuid4(), flow_id=uuid4(), name="a run")
FAILED: State[Any] = Failed(message="not all are in")


@pytest.fixture
def settings(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> MongoSettings:
    runs, items = RunHistory(database, retry), ItemHistory(database, retry)
    monkeypatch.setattr("scripts.run_outcome.run_history", lambda _settings: runs)
    monkeypatch.setattr("scripts.run_outcome.item_history", lambda _settings: items)
    monkeypatch.setattr("scripts.run_outcome.audit_trail", Mock())
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:9")
    return read_mongo_settings()


@pytest.fixture
def mirror(database: Database[Document], monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Ends the run on record, as its own hooks would."""

    def end(_trail: object, flow_run: FlowRun, state: State[Any]) -> None:
        ended = {"status": state.type.value.lower(), "finished_at": at(9)}
        database.sync_runs.update_one({"flow_run_id": str(flow_run.id)}, {"$set": ended})

    mirror = Mock(side_effect=end)
    monkeypatch.setattr("scripts.run_outcome.mirror_state", mirror)
    return mirror


def add_run(database: Database[Document], **fields: Any) -> Document:
    run = run_document("tenant", flow_run_id=str(FLOW_RUN.id), started_at=at(5), **fields)
    database.sync_runs.insert_one(run)
    return run


def told(settings: MongoSettings, state: State[Any], capsys: pytest.CaptureFixture[str]) -> str:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}):
        status = tell_outcome(settings, FLOW_RUN, state)
    assert status == (0 if state.is_completed() else 1)
    return capsys.readouterr().out


def test_what_is_not_in_comes_newly_failing_first(
    database: Database[Document], settings: MongoSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"entity_type": "tenant", "natural_key": None, "source_id": "4711"}
    invalid = {**error, "code": "VALIDATION_ERROR", "message": "no id"}
    run = add_run(database, finished_at=at(9), errors=[invalid])
    failed = {"error": PERMANENT, "run_id": run["_id"]}
    database.sync_items.insert_many(
        [
            item_document("still", **failed, not_in_since=at(1)),
            item_document("new", **failed, not_in_since=at(6)),
            item_document("back", recovered={"run_id": run["_id"], "since": at(1)}),
        ]
    )
    text = told(settings, FAILED, capsys)
    order = ["Totals", "tenant/new", "tenant/_id 4711", "tenant/still", "tenant/back", "partial: "]
    assert sorted(order, key=text.index) == order
    assert f"partial: not all are in\nrun_id    {run['_id']}\n" in text
    assert f"dashboard http://127.0.0.1:4200/runs/flow-run/{FLOW_RUN.id}" in text


def test_a_run_of_which_all_is_in_and_nothing_changed_has_no_more_to_tell(
    database: Database[Document], settings: MongoSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(database, finished_at=at(9))
    assert "What changed" not in told(settings, Completed(), capsys)


def test_a_dry_run_tells_what_would_fail_and_nothing_of_what_is(
    database: Database[Document], settings: MongoSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    run = add_run(database, finished_at=at(9), dry_run=True)
    database.sync_steps.insert_many(
        [step_document(run["_id"], 1, TRANSIENT), step_document(run["_id"], 2, PERMANENT)]
    )
    database.sync_items.insert_one(item_document("not in", error=PERMANENT, not_in_since=at(1)))
    text = told(settings, FAILED, capsys)
    order = ["Would fail", "tenant/2", "tenant/1"]
    assert sorted(order, key=text.index) == order
    assert "tenant/not in" not in text


def test_an_end_that_nobody_has_put_on_record_is_put_there(
    database: Database[Document],
    settings: MongoSettings,
    mirror: Mock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_run(database, status="pending")
    assert "cancelled: " in told(settings, Cancelled(), capsys)
    assert mirror.call_count == 1
    told(settings, Cancelled(), capsys)
    assert mirror.call_count == 1


def test_a_run_that_is_not_on_record_is_told(
    settings: MongoSettings,
    mirror: Mock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nowhere = "run_id    none: the run is not in the audit trail"
    assert nowhere in told(settings, FAILED, capsys)
    assert mirror.call_count == 1
    away = Mock(run_of=Mock(side_effect=MongoUnavailable("away")))
    monkeypatch.setattr("scripts.run_outcome.run_history", lambda _settings: away)
    assert nowhere in told(settings, FAILED, capsys)
