"""A run in a process: what it knows of itself, and what it holds open."""

from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from bson import ObjectId
from pymongo.database import Database

from tasks.decision import Conditions
from tasks.entities import entity_type_named
from tasks.limit import limit_name
from tasks.mongo import MongoRetry
from tasks.outcome import Outcome
from tasks.request import request_of
from tasks.run import flow_run_of, run_here, run_of
from tasks.settings import SettingsError, read_settings
from tasks.source.item import InvalidItem
from tasks.trail.fields import RunAttempt
from tasks.trail.gone import GoneItems
from tasks.trail.runs import RunOptions, SyncMode
from tests.trail_documents import HUB, OPTIONS, PERMANENT, begin, step_document
from tests.unit.tasks.run_in_memory import IN, RunInMemory, Source, document, found, item

Document = dict[str, Any]


@pytest.fixture
def world(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> RunInMemory:
    return RunInMemory(database, retry, monkeypatch)


def taken(key: str) -> Outcome:
    """Return the outcome of a tenant that Stage 1 has taken."""
    tenant = item(key)
    return Outcome(tenant, None, request_of(tenant, None), answer=IN)


@pytest.fixture
def attempt(world: RunInMemory, monkeypatch: pytest.MonkeyPatch) -> RunAttempt:
    """An attempt that a process elsewhere works on."""
    monkeypatch.setattr("tasks.run.slots_of_process", lambda _name, _size: world.slots)
    return world.open().attempt


def test_a_run_is_what_was_asked_for(world: RunInMemory) -> None:
    options = RunOptions("REST API", ("client",), SyncMode.CHANGED, dry_run=True)
    run = world.open(options, is_here=False)
    assert (run.options, run.flow_run_id, run.is_here) == (options, "a flow run", False)
    assert run.attempt == RunAttempt(run.id, 1)
    assert run.stop_switch.reason() is None
    assert run.gates["tenant"].is_open()


def test_an_outcome_is_recorded_with_what_is_known(world: RunInMemory) -> None:
    run = world.open()
    valid, invalid = item("valid", version=7), found("invalid", version=8, name=None)
    assert isinstance(invalid, InvalidItem)
    request = request_of(valid, None)
    run.record(Outcome(valid, None, request, answer=IN), attempts=1)
    run.record(Outcome(invalid, PERMANENT))
    run.trail.buffer.flush()
    steps = world.steps()
    assert (steps["valid"]["request_id"], steps["invalid"]["request_id"]) == (
        request.request_id,
        None,
    )
    for step, version, attempts in ((steps["valid"], 7, 1), (steps["invalid"], 8, 0)):
        assert (step["run_id"], step["run_attempt"], step["version"]) == (run.id, 1, version)
        assert (step["flow_run_id"], step["entity_type"]) == ("a flow run", "tenant")
        assert step["attempts"] == attempts
    answers = [
        (step["http_status"], step["sync_id"], step["duration_ms"])
        for step in (steps["valid"], steps["invalid"])
    ]
    assert answers == [(200, "sync-1", 12.5), (None, None, None)]


def test_an_outcome_changes_the_record_of_its_item_except_in_a_dry_run(
    world: RunInMemory,
) -> None:
    acme, broken = item("acme"), found("broken", name=None)
    assert isinstance(broken, InvalidItem)
    dry_run = world.open(replace(OPTIONS, dry_run=True))
    dry_run.record(Outcome(broken, PERMANENT))
    dry_run.trail.buffer.flush()
    assert (set(world.steps()), world.items()) == ({"broken"}, {})
    dry_run.options = OPTIONS
    dry_run.record(Outcome(broken, PERMANENT))
    dry_run.record(Outcome(acme, None, request_of(acme, None), answer=IN))
    dry_run.trail.buffer.flush()
    items = world.items()
    assert set(items) == {"acme", "broken"}
    assert {item["hub"] for item in items.values()} == {HUB}
    assert items["acme"]["confirmed"]["run_id"] == items["broken"]["last"]["run_id"] == dry_run.id
    assert items["broken"]["not_in_since"] == items["broken"]["last"]["at"]


def test_content_without_a_version_is_recorded_under_the_version_that_it_went_as(
    world: RunInMemory,
) -> None:
    run, acme = world.open(), item("acme", version=None)
    request = request_of(acme, None)
    run.record(Outcome(acme, None, request, answer=IN))
    run.trail.buffer.flush()
    assert world.steps()["acme"]["version"] == request.version == acme.digest


def test_only_what_stage_1_never_got_is_announced(world: RunInMemory) -> None:
    run = world.open()
    new, held, raised = item("new"), item("held"), item("raised")
    world.confirm(held, raised)
    known = world.trail.items.known(HUB, "tenant", ["held", "raised"])
    later = item("raised", version=2, name="Risen")
    requests = [
        (request_of(new, None), None),
        (request_of(held, known["held"]), known["held"]),
        (request_of(later, known["raised"]), known["raised"]),
    ]
    assert run.announce(new.entity_type, requests) == set()
    items = world.items()
    assert {key for key, item in items.items() if item.get("in_doubt")} == {"new", "raised"}
    (announced,) = items["raised"]["in_doubt"]
    assert (announced["request_id"], announced["version"], announced["run_id"]) == (
        requests[2][0].request_id,
        2,
        run.id,
    )
    assert announced["digest"] == later.digest
    assert items["raised"]["source_id"] == "raised"


def test_an_item_that_another_document_has_taken_is_not_to_be_sent(world: RunInMemory) -> None:
    run, acme, twin = world.open(), item("acme", _id=1), item("acme", _id=2)
    tenant = acme.entity_type
    assert run.announce(tenant, [(request_of(acme, None), None)]) == set()
    assert run.announce(tenant, [(request_of(twin, None), None)]) == {"acme"}
    assert world.items()["acme"]["source_id"] == 1


def test_what_is_gone_is_noted_by_real_runs_only_and_so_is_what_is_back(
    world: RunInMemory,
) -> None:
    tenant = entity_type_named("tenant")
    world.confirm(item("here"), item("gone"), item("off", enabled=False))
    world.source = Source(document("here"))
    dry_run = world.open(replace(OPTIONS, dry_run=True))
    assert dry_run.find_gone(tenant) == GoneItems(1, 2, ("gone",))
    assert all("gone_since" not in item for item in world.items().values())
    dry_run.options = OPTIONS
    assert dry_run.find_gone(tenant) == GoneItems(1, 2, ("gone",))
    assert [key for key, item in world.items().items() if "gone_since" in item] == ["gone"]
    dry_run.note_back(tenant, ["gone"])
    assert all("gone_since" not in item for item in world.items().values())


@pytest.mark.parametrize("mode", SyncMode)
@pytest.mark.parametrize("dry_run", [True, False])
def test_conditions_of_a_run(world: RunInMemory, mode: SyncMode, dry_run: bool) -> None:
    world.open()
    options = replace(OPTIONS, mode=mode, dry_run=dry_run)
    run = world.open()
    run.options = options
    assert run.conditions(entity_type_named("tenant")) == Conditions(
        run_attempt=2, is_dry_run=dry_run, leaves_unchanged=mode is SyncMode.CHANGED
    )


@pytest.mark.parametrize(
    ("skip_orphans", "failed"),
    [(False, {}), (True, {"tenant": {"acme"}, "subtenant": set(), "client": set()})],
)
def test_children_of_failed_parents_are_known_where_they_are_not_sent(
    world: RunInMemory, skip_orphans: bool, failed: dict[str, set[str]]
) -> None:
    run = world.open(RunOptions("a test", ("domain",), skip_orphans=skip_orphans))
    world.database.sync_steps.insert_one(step_document(run.id, "acme", PERMANENT))
    domain = entity_type_named("domain")
    assert run.failed_parents(domain) == failed
    world.database.sync_steps.delete_many({})
    assert run.failed_parents(domain) == failed, "they were looked up again"


def test_a_run_that_is_closed_leaves_nothing_behind(world: RunInMemory) -> None:
    run = world.open()
    run.record(taken("a"))
    run.close()
    assert world.hub.is_closed
    assert world.slots.are_released
    assert set(world.steps()) == {"a"}


def test_a_process_elsewhere_opens_an_attempt_once(world: RunInMemory, attempt: RunAttempt) -> None:
    run = run_of(attempt)
    assert run_of(RunAttempt(attempt.run_id, attempt.number)) is run
    assert (run.is_here, run.id) == (False, attempt.run_id)
    following = begin(world.trail.ownership, attempt.run_id)
    assert run_of(following).attempt == following


def test_an_attempt_that_can_not_be_opened(
    attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = RunAttempt(ObjectId(), 1)
    with pytest.raises(LookupError, match=f"sync_runs has no run {unknown.run_id}"):
        run_of(unknown)
    monkeypatch.delenv("ADMIN_SYNC_TOKEN")
    with pytest.raises(SettingsError, match="ADMIN_SYNC_TOKEN is missing"):
        run_of(attempt)


def test_a_flow_run_holds_its_run_open_until_it_ends_however_it_does(
    world: RunInMemory, attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, settings = Mock(), read_settings()
    monkeypatch.setattr("tasks.run.SyncClientContext", MagicMock())
    made = Mock(return_value=slots)
    monkeypatch.setattr("tasks.run.Slots", made)

    def flow() -> None:
        with flow_run_of(attempt, settings) as run:
            assert run_here(attempt.run_id) is run is run_of(attempt)
            assert run.is_here
            run.record(taken("a"))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        flow()
    assert made.call_args.args[1:] == (limit_name(settings), 3)
    slots.start_limit.assert_called_once_with()
    slots.release_idle.assert_called_once_with()
    assert world.hub.is_closed
    assert set(world.steps()) == {"a"}
    with pytest.raises(KeyError):
        run_here(attempt.run_id)
