"""Prefect's states of a flow run in its `sync_runs` document, and the options it is opened with."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Suspended
from pymongo.database import Database

from flows.conclusion import PARTIAL
from flows.state_mirror import mirror_state, options_of, trigger_of
from tasks.mongo import MongoRetry
from tasks.trail.audit_trail import AuditTrail
from tasks.trail.runs import RunOptions, SyncMode
from tests.trail_documents import at
from tests.unit.tasks.run_in_memory import trail_in_memory

Document = dict[str, Any]


@pytest.fixture
def trail(database: Database[Document], retry: MongoRetry) -> AuditTrail:
    return trail_in_memory(database, retry)


def flow_run(*, auto_scheduled: bool = False, **parameters: Any) -> FlowRun:
    return FlowRun(
        id=uuid.UUID(int=1),
        flow_id=uuid.uuid4(),
        name="its name",
        parameters=parameters,
        auto_scheduled=auto_scheduled,
    )


@pytest.mark.parametrize(
    ("state", "status", "is_over"),
    [
        (Running(timestamp=at(0)), "running", False),
        (Suspended(timestamp=at(0)), "pending", False),
        (Completed(timestamp=at(0), message="5 of 5 items are in"), "success", True),
        (Failed(timestamp=at(0), name=PARTIAL, message="1 failed"), "partial", True),
        (Failed(timestamp=at(0), message="it broke"), "failed", True),
        (Cancelled(timestamp=at(0)), "cancelled", True),
        (Crashed(timestamp=at(0)), "crashed", True),
    ],
)
def test_a_state_is_mirrored_with_its_time_and_message(
    trail: AuditTrail, database: Database[Document], state: State[Any], status: str, is_over: bool
) -> None:
    mirror_state(trail, flow_run(entities=["tenant"]), state)
    (document,) = database.sync_runs.find()
    assert document["flow_run_id"] == str(uuid.UUID(int=1))
    assert (document["status"], document["message"]) == (status, state.message or "")
    assert document["finished_at"] == (at(0) if is_over else None)


def test_older_news_changes_nothing(trail: AuditTrail, database: Database[Document]) -> None:
    mirror_state(trail, flow_run(), Completed(timestamp=at(5), message="done"))
    for late in (Running(timestamp=at(4)), Crashed(timestamp=at(4), message="late")):
        mirror_state(trail, flow_run(), late)
    (document,) = database.sync_runs.find()
    assert (document["status"], document["message"]) == ("success", "done")
    assert document["finished_at"] - at(5) == timedelta(0)


def test_prefects_records_may_lack_what_is_a_default() -> None:
    everything = ("tenant", "client", "subtenant", "domain", "branding")
    assert options_of(flow_run()) == RunOptions("manual", everything)


def test_entities_are_in_sync_order_whatever_was_asked() -> None:
    asked = flow_run(
        entities=["domain", "tenant"],
        mode="changed",
        dry_run=True,
        skip_orphans=True,
        disable_gone=True,
        trigger="after the import",
    )
    expected = RunOptions(
        "after the import",
        ("tenant", "domain"),
        SyncMode.CHANGED,
        dry_run=True,
        skip_orphans=True,
        disable_gone=True,
    )
    assert options_of(asked) == expected


@pytest.mark.parametrize(
    ("parameters", "is_scheduled", "trigger"),
    [
        ({}, False, "manual"),
        ({}, True, "schedule"),
        ({"trigger": "manual"}, True, "schedule"),
        ({"trigger": "after the import"}, False, "after the import"),
        ({"trigger": "after the import"}, True, "after the import"),
    ],
)
def test_who_asked(parameters: dict[str, str], is_scheduled: bool, trigger: str) -> None:
    assert trigger_of(flow_run(auto_scheduled=is_scheduled, **parameters)) == trigger
