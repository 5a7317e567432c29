"""Ownership: each attempt takes the run over, and only the last one keeps it.

What goes by MongoDB's clock is tested with a real mongod.
"""

from dataclasses import replace
from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from tasks.entities import ENTITY_NAMES
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.ownership import Ownership
from tasks.trail.runs import RunOptions, RunRecord, Runs, SyncMode
from tasks.trail.stages import RunStatus, Stages, StageTotals
from tests.trail_documents import HUB, OPTIONS, at, begin

Document = dict[str, Any]
PENDING, RUNNING, SUCCESS, CRASHED = (
    RunStatus.PENDING,
    RunStatus.RUNNING,
    RunStatus.SUCCESS,
    RunStatus.CRASHED,
)
DECADES = 10 * 365 * 86_400
"""Times in Prefect that are this far from those of this machine are as good as any."""


@pytest.fixture
def another_id(runs: Runs) -> RunId:
    return runs.open("another flow run", "its name", OPTIONS)


def found(runs: Runs, run_id: RunId) -> RunRecord:
    run = runs.find(run_id)
    assert run is not None
    return run


def end(runs: Runs, run_id: RunId, seconds: float | None, status: RunStatus = SUCCESS) -> bool:
    """End a run at that moment of Prefect, None where it has not noted the end."""
    run = found(runs, run_id)
    told = None if seconds is None else at(seconds)
    return runs.end(run, status, "it has ended", told, run.stages, [])


def document_of(sync_runs: Collection[Document], run_id: RunId) -> Document:
    document = sync_runs.find_one({"_id": run_id})
    assert document is not None
    return document


def give_up(how: str, runs: Runs, ownership: Ownership, run_id: RunId) -> None:
    match how:
        case "end":
            assert end(runs, run_id, 1)
        case "end that Prefect has not noted":
            assert end(runs, run_id, None)
        case "suspension":
            ownership.suspend(run_id, "", at(1))


def test_attempts_are_counted(ownership: Ownership, run_id: RunId) -> None:
    attempts = [begin(ownership, run_id) for _ in range(3)]
    assert attempts == [RunAttempt(run_id, number) for number in (1, 2, 3)]


def test_a_run_that_nobody_knows_has_no_turn(
    ownership: Ownership, sync_runs: Collection[Document]
) -> None:
    assert ownership.take(ObjectId(), OPTIONS, at(0)) is None
    assert sync_runs.count_documents({}) == 0


def test_a_run_that_begins_runs_and_lives(
    ownership: Ownership, runs: Runs, sync_runs: Collection[Document], run_id: RunId
) -> None:
    ownership.wait(run_id, "it waits", at(0))
    begin(ownership, run_id, since=10)
    run = found(runs, run_id)
    assert (run.status, run.message, run.finished_at) == (RUNNING, "", None)
    assert run.started_at == run.mirrored_at == at(10)
    document = document_of(sync_runs, run_id)
    assert document["active"] is True
    assert document["alive_at"] is not None


def test_a_run_starts_when_its_first_attempt_runs(
    ownership: Ownership, runs: Runs, run_id: RunId
) -> None:
    begin(ownership, run_id, since=10)
    begin(ownership, run_id, since=20)
    run = found(runs, run_id)
    assert (run.started_at, run.mirrored_at) == (at(10), at(20))


def test_an_attempt_that_had_to_wait_runs_since_then(
    ownership: Ownership, runs: Runs, run_id: RunId
) -> None:
    attempt = begin(ownership, run_id, since=10)
    ownership.run_since(attempt, at(15))
    assert (found(runs, run_id).started_at, found(runs, run_id).mirrored_at) == (at(15), at(15))
    following = begin(ownership, run_id, since=20)
    ownership.run_since(following, at(25))
    assert (found(runs, run_id).started_at, found(runs, run_id).mirrored_at) == (at(15), at(25))
    ownership.run_since(attempt, at(30))
    assert found(runs, run_id).mirrored_at == at(25), "an earlier attempt has changed it"


def test_a_run_that_begins_anew_has_not_ended_and_is_not_stopped(
    ownership: Ownership, sync_runs: Collection[Document], runs: Runs, run_id: RunId
) -> None:
    begin(ownership, run_id)
    assert end(runs, run_id, 10)
    stopped = {"stopped_because": {"message": "m", "code": "RUN_STOPPED"}}
    sync_runs.update_one({}, {"$set": stopped})
    begin(ownership, run_id, since=11)
    document = document_of(sync_runs, run_id)
    assert document["stopped_because"] is document["finished_at"] is None
    assert (document["status"], document["message"]) == ("running", "")


def test_one_run_at_a_time_has_the_turn(
    ownership: Ownership, sync_runs: Collection[Document], run_id: RunId, another_id: RunId
) -> None:
    assert ownership.holder() is None
    begin(ownership, run_id)
    before = document_of(sync_runs, another_id)
    assert ownership.take(another_id, OPTIONS, at(DECADES)) is None
    assert document_of(sync_runs, another_id) == before
    assert ownership.holder() == run_id
    begin(ownership, run_id)
    assert ownership.take(another_id, OPTIONS, at(DECADES)) is None


@pytest.mark.parametrize("how", ["end", "end that Prefect has not noted", "suspension"])
def test_the_next_run_has_the_turn_once_it_is_given_up(
    ownership: Ownership, runs: Runs, run_id: RunId, another_id: RunId, how: str
) -> None:
    attempt = begin(ownership, run_id)
    give_up(how, runs, ownership, run_id)
    assert ownership.holder() is None
    assert not ownership.keep(attempt)
    begin(ownership, another_id)
    assert ownership.holder() == another_id
    assert ownership.take(run_id, OPTIONS, at(2)) is None, "it has to wait in its turn"


@pytest.mark.parametrize("now", [-DECADES, 0, DECADES])
@pytest.mark.parametrize(
    ("since", "is_begun"), [(-1, False), (-0.001, False), (0, True), (0.001, True), (1, True)]
)
def test_no_attempt_begins_by_what_prefect_said_before_the_end(
    ownership: Ownership, runs: Runs, run_id: RunId, now: float, since: float, is_begun: bool
) -> None:
    begin(ownership, run_id, since=now - 10)
    assert end(runs, run_id, now, CRASHED)
    ended = found(runs, run_id)
    attempt = ownership.take(run_id, OPTIONS, at(now + since))
    assert (attempt is not None) is is_begun
    assert (found(runs, run_id) == ended) is not is_begun
    assert (ownership.holder() == run_id) is is_begun


def test_an_end_that_prefect_has_not_noted_keeps_no_attempt_from_beginning(
    ownership: Ownership, runs: Runs, run_id: RunId
) -> None:
    begin(ownership, run_id, since=10)
    assert end(runs, run_id, None)
    assert begin(ownership, run_id, since=11).number == 2


def test_an_attempt_that_begins_elsewhere_meanwhile_is_the_only_one(
    ownership: Ownership, sync_runs: Collection[Document], run_id: RunId, monkeypatch: Any
) -> None:
    """Both processes have read the run before either takes it."""
    find_one = type(sync_runs).find_one
    begun: list[RunAttempt] = []

    def read(self: Collection[Document], *args: Any, **kwargs: Any) -> Any:
        run = find_one(self, *args, **kwargs)
        if not begun:
            begun.append(RunAttempt(run_id, 1))
            begin(ownership, run_id)
        return run

    monkeypatch.setattr(type(sync_runs), "find_one", read)
    assert ownership.take(run_id, OPTIONS, at(0)) is None
    assert document_of(sync_runs, run_id)["attempt"] == 1


@pytest.mark.parametrize(
    ("entities", "expected"),
    [
        (("tenant", "client"), ["tenant", "client"]),
        (("tenant",), ["tenant", "client"]),
        (("domain",), ["tenant", "client", "domain"]),
        (("subtenant", "client"), ["tenant", "client", "subtenant"]),
        (ENTITY_NAMES, list(ENTITY_NAMES)),
    ],
)
def test_stages_follow_what_is_asked_for_and_none_is_lost(
    ownership: Ownership,
    runs: Runs,
    stages: Stages,
    run_id: RunId,
    entities: tuple[str, ...],
    expected: list[str],
) -> None:
    attempt = begin(ownership, run_id)
    totals = StageTotals(total=9, success=9)
    for entity_type in OPTIONS.entities:
        stages.begin(attempt, entity_type, HUB, at(1))
        stages.end(attempt, entity_type, SUCCESS, totals, at(2))
    before = {stage.entity_type: stage for stage in found(runs, run_id).stages}
    begin(ownership, run_id, replace(OPTIONS, entities=entities), since=3)
    after = found(runs, run_id).stages
    assert [stage.entity_type for stage in after] == expected
    for stage in after:
        if known := before.get(stage.entity_type):
            assert stage == known
        else:
            assert (stage.status, stage.total, stage.hub) == (PENDING, 0, None)


def test_a_stage_that_is_added_is_one_like_all_others(
    ownership: Ownership, runs: Runs, stages: Stages, sync_runs: Collection[Document], run_id: RunId
) -> None:
    begin(ownership, run_id)
    asked = RunOptions("a test", ("tenant", "client", "domain"))
    attempt = begin(ownership, run_id, asked)
    another = runs.open("another flow run", "its name", asked)
    added, opened = (document_of(sync_runs, each)["stages"] for each in (run_id, another))
    assert added == opened
    stages.begin(attempt, "domain", HUB, at(1))
    assert found(runs, run_id).stages[2].status is RUNNING


def test_options_are_those_of_the_last_attempt(
    ownership: Ownership, runs: Runs, sync_runs: Collection[Document], run_id: RunId
) -> None:
    begin(ownership, run_id)
    edited = RunOptions(
        "somebody else",
        ("tenant", "client"),
        SyncMode.CHANGED,
        dry_run=True,
        skip_orphans=True,
        disable_gone=True,
    )
    begin(ownership, run_id, edited)
    assert found(runs, run_id).options == edited
    document = document_of(sync_runs, run_id)
    assert document["parameters"] == edited.as_parameters()
    assert (document["mode"], document["dry_run"]) == ("changed", True)
    assert document["trigger"] == "somebody else"


def test_parameters_tell_what_was_asked_for_though_a_stage_of_before_stays(
    ownership: Ownership, runs: Runs, run_id: RunId
) -> None:
    begin(ownership, run_id)
    begin(ownership, run_id, replace(OPTIONS, entities=("tenant",)))
    assert found(runs, run_id).parameters["entities"] == ["tenant"]


def test_the_attempt_that_has_the_turn_keeps_it(
    ownership: Ownership, sync_runs: Collection[Document], run_id: RunId
) -> None:
    attempt = begin(ownership, run_id)
    sync_runs.update_one({}, {"$unset": {"alive_at": True}})
    assert ownership.keep(attempt)
    assert document_of(sync_runs, run_id)["alive_at"] is not None
    assert ownership.keep(attempt)


@pytest.mark.parametrize(
    "how", ["takeover", "end", "end that Prefect has not noted", "suspension", "removal"]
)
def test_an_attempt_that_has_lost_its_run_keeps_nothing(
    ownership: Ownership, runs: Runs, sync_runs: Collection[Document], run_id: RunId, how: str
) -> None:
    attempt = begin(ownership, run_id)
    match how:
        case "takeover":
            begin(ownership, run_id)
        case "removal":
            sync_runs.delete_many({})
        case _:
            give_up(how, runs, ownership, run_id)
    sync_runs.update_one({}, {"$unset": {"alive_at": True}})
    before = list(sync_runs.find())
    assert not ownership.keep(attempt)
    assert list(sync_runs.find()) == before


def test_a_run_that_waits_says_why_and_lives(
    ownership: Ownership, runs: Runs, sync_runs: Collection[Document], run_id: RunId
) -> None:
    for message in ("Waits for the sync 1 to end", "Waits for the sync 2 to end"):
        sync_runs.update_one({}, {"$unset": {"alive_at": True}})
        ownership.wait(run_id, message, at(0))
        run = found(runs, run_id)
        assert (run.status, run.message, run.attempt) == (PENDING, message, 0)
        assert run.alive_at is not None
    assert ownership.holder() is None


def test_a_retry_that_waits_has_not_ended(ownership: Ownership, runs: Runs, run_id: RunId) -> None:
    begin(ownership, run_id)
    assert end(runs, run_id, 1, CRASHED)
    ownership.wait(run_id, "it waits", at(2))
    run = found(runs, run_id)
    assert (run.status, run.finished_at) == (PENDING, None)
    assert begin(ownership, run_id, since=2).number == 2


@pytest.mark.parametrize("now", [-DECADES, 0, DECADES])
@pytest.mark.parametrize(("later", "is_news"), [(-1, False), (0, False), (0.001, True), (1, True)])
def test_a_suspension_is_noted_unless_it_is_older_news(
    ownership: Ownership, runs: Runs, run_id: RunId, now: float, later: float, is_news: bool
) -> None:
    begin(ownership, run_id, since=now)
    before = found(runs, run_id)
    ownership.suspend(run_id, "it is suspended", at(now + later))
    run = found(runs, run_id)
    if is_news:
        assert (run.status, run.message) == (PENDING, "it is suspended")
        assert run.mirrored_at == at(now + later)
        assert (run.alive_at, ownership.holder()) == (None, None)
    else:
        assert run == before
        assert ownership.holder() == run_id


def test_no_older_suspension_undoes_an_end(ownership: Ownership, runs: Runs, run_id: RunId) -> None:
    begin(ownership, run_id)
    assert end(runs, run_id, 10)
    ended = found(runs, run_id)
    for seconds in (5, 10):
        ownership.suspend(run_id, "it is suspended", at(seconds))
        assert found(runs, run_id) == ended


def test_a_run_that_was_suspended_goes_on_as_its_next_attempt(
    ownership: Ownership, runs: Runs, run_id: RunId
) -> None:
    begin(ownership, run_id, since=10)
    ownership.suspend(run_id, "", at(11))
    assert ownership.take(run_id, OPTIONS, at(10)) is None, "that is what was suspended"
    assert begin(ownership, run_id, since=12).number == 2
    assert found(runs, run_id).started_at == at(10)


def test_a_run_that_was_suspended_while_it_waited_has_no_process(
    ownership: Ownership, runs: Runs, run_id: RunId
) -> None:
    ownership.wait(run_id, "it waits", at(0))
    ownership.suspend(run_id, "it is suspended", at(1))
    run = found(runs, run_id)
    assert (run.status, run.message, run.alive_at) == (PENDING, "it is suspended", None)
