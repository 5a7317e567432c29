"""Prefect's states of a flow run in its `sync_runs` document, and the options it is opened with."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Paused, Running, Suspended
from pymongo.database import Database

from flows.conclusion import PARTIAL
from flows.state_mirror import (
    begun_here,
    current_flow_run,
    mirror_state,
    open_current_run,
    open_run_of,
    options_of,
    running_since,
    trigger_of,
)
from tasks.mongo import MongoRetry
from tasks.trail.audit_trail import AuditTrail
from tasks.trail.runs import RunOptions, SyncMode
from tests.trail_documents import at, begin
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


def run_of(database: Database[Document]) -> Document:
    (document,) = database.sync_runs.find()
    return document


@pytest.mark.parametrize(
    ("state", "status", "is_over"),
    [
        (Suspended(timestamp=at(0)), "pending", False),
        (Paused(timestamp=at(0)), "pending", False),
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
    document = run_of(database)
    assert document["flow_run_id"] == str(uuid.UUID(int=1))
    assert (document["status"], document["message"]) == (status, state.message or "")
    assert document["mirrored_at"] == at(0)
    assert document["finished_at"] == (at(0) if is_over else None)


def test_that_a_run_runs_its_own_process_notes(
    trail: AuditTrail, database: Database[Document]
) -> None:
    run_id = open_run_of(trail, flow_run())
    before = run_of(database)
    mirror_state(trail, flow_run(), Running(timestamp=at(1)))
    assert run_of(database) == before
    attempt = begin(trail.ownership, run_id)
    mirror_state(trail, flow_run(), Running(timestamp=at(2)))
    assert trail.ownership.keep(attempt)
    assert run_of(database)["mirrored_at"] == at(0)


@pytest.mark.parametrize("state", [Crashed(timestamp=at(1)), Suspended(timestamp=at(1))])
def test_a_run_that_ends_or_is_suspended_gives_its_turn_up(
    trail: AuditTrail, state: State[Any]
) -> None:
    attempt = begin(trail.ownership, open_run_of(trail, flow_run()))
    mirror_state(trail, flow_run(), state)
    assert trail.ownership.holder() is None
    assert not trail.ownership.keep(attempt)


def test_older_news_changes_nothing(trail: AuditTrail, database: Database[Document]) -> None:
    mirror_state(trail, flow_run(), Completed(timestamp=at(5), message="done"))
    ended = run_of(database)
    for late in (
        Running(timestamp=at(4)),
        Suspended(timestamp=at(5), message="late"),
        Crashed(timestamp=at(4), message="late"),
    ):
        mirror_state(trail, flow_run(), late)
        assert run_of(database) == ended


@pytest.mark.parametrize("is_begun_here", [True, False])
def test_a_process_tells_the_end_of_the_attempt_that_it_has_begun_alone(
    trail: AuditTrail, database: Database[Document], is_begun_here: bool
) -> None:
    run_id = open_run_of(trail, flow_run())
    earlier = begin(trail.ownership, run_id)
    if is_begun_here:
        begun_here(earlier)
    begin(trail.ownership, run_id, since=2)
    mirror_state(trail, flow_run(), Crashed(timestamp=at(3)))
    assert run_of(database)["status"] == ("running" if is_begun_here else "crashed")


def test_a_process_that_begins_another_attempt_tells_the_end_of_that_one(
    trail: AuditTrail, database: Database[Document]
) -> None:
    run_id = open_run_of(trail, flow_run())
    for since in (1, 2):
        begun_here(begin(trail.ownership, run_id, since=since))
    mirror_state(trail, flow_run(), Crashed(timestamp=at(3)))
    assert run_of(database)["status"] == "crashed"


def test_a_flow_run_has_one_run(trail: AuditTrail) -> None:
    run_id = open_run_of(trail, flow_run())
    assert open_run_of(trail, flow_run()) == run_id


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Callable[[FlowRun], None]:
    """Let a flow run be the one that runs here."""

    def execute(flow_run: FlowRun) -> None:
        context = Mock(flow_run=flow_run, parameters={"entities": ["tenant"], "trigger": "manual"})
        monkeypatch.setattr("flows.state_mirror.FlowRunContext", Mock(get=lambda: context))

    return execute


def test_the_flow_run_that_runs_here_is_opened_with_who_has_asked(
    trail: AuditTrail, database: Database[Document], executed: Callable[[FlowRun], None]
) -> None:
    executed(flow_run(auto_scheduled=True))
    asked = RunOptions("manual", ("tenant",), SyncMode.CHANGED)
    run_id, options = open_current_run(trail, asked)
    assert options == replace(asked, trigger="schedule")
    document = run_of(database)
    assert (document["_id"], document["trigger"]) == (run_id, "schedule")
    assert open_current_run(trail, asked) == (run_id, options)


def test_a_flow_run_runs_since_its_state_says(executed: Callable[[FlowRun], None]) -> None:
    running: State[Any] = Running(timestamp=at(7))
    executed(flow_run().model_copy(update={"state": running}))
    assert running_since() == at(7)
    assert current_flow_run().parameters == {"entities": ["tenant"], "trigger": "manual"}
    executed(flow_run())
    with pytest.raises(LookupError, match="no state"):
        running_since()


def test_where_no_flow_run_runs_there_is_none() -> None:
    with pytest.raises(LookupError, match="no current flow run"):
        current_flow_run()


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
