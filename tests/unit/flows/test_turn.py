"""A run begins when its turn comes, and leaves its wait when Prefect says so."""

import asyncio
from contextlib import nullcontext
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import Artifact, State
from prefect.exceptions import Abort
from prefect.states import Cancelled, Cancelling, Crashed, Pending, Scheduled, Suspended
from pymongo.database import Database

from flows import turn
from flows.turn import OtherDatabase
from tasks.errors import (
    FLOW_RUN_DELETED,
    RUN_CANCELLED,
    RUN_SUSPENDED,
    RUN_TAKEN_OVER,
    StopReason,
)
from tasks.mongo import MongoRetry
from tasks.settings import Settings
from tasks.trail.audit_trail import AuditTrail
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.ownership import WAITING
from tasks.trail.runs import RunRecord
from tasks.trail.stages import RunStatus
from tests.trail_documents import OPTIONS, at, begin
from tests.unit.flows.prefect_in_memory import FLOW_RUN, Prefect
from tests.unit.tasks.run_in_memory import trail_in_memory

Document = dict[str, Any]
PATIENCE = 5.0
SETTINGS: Settings = Mock(mongodb_database="backoffice")


class PrefectWithArtifacts(Prefect):
    """One that keeps artifacts of its flow run, and lets its tags be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.artifacts: list[Artifact] = []
        self.updates = 0
        self.is_read_only = False

    async def update_flow_run(self, flow_run_id: UUID, *, tags: list[str]) -> None:
        assert flow_run_id == FLOW_RUN
        if self.is_read_only:
            raise httpx.ConnectError("away")
        self.updates += 1
        self.tags = tags

    async def read_artifacts(self, *, artifact_filter: ArtifactFilter) -> list[Artifact]:
        assert artifact_filter.flow_run_id is not None
        assert artifact_filter.flow_run_id.any_ == [FLOW_RUN]
        return list(self.artifacts)

    async def delete_artifact(self, artifact_id: UUID) -> None:
        if self.is_read_only:
            raise httpx.ConnectError("away")
        self.artifacts = [each for each in self.artifacts if each.id != artifact_id]


class Waiting:
    """A flow run that wants the turn of a trail in which another run has it."""

    def __init__(self, trail: AuditTrail, prefect: PrefectWithArtifacts) -> None:
        self.trail = trail
        self.prefect = prefect
        self.other: RunId = trail.runs.open("another flow run", "its name", OPTIONS)
        begin(trail.ownership, self.other)

    def take_turn(self) -> RunAttempt:
        return asyncio.run(asyncio.wait_for(turn.take_turn(SETTINGS, OPTIONS), PATIENCE))

    def end_other(self) -> None:
        self.trail.counting.end_run(self.other, RunStatus.SUCCESS, "", at(5))

    def run(self) -> RunRecord:
        run_id = self.trail.runs.open(str(FLOW_RUN), "its name", OPTIONS)
        run = self.trail.runs.find(run_id)
        assert run is not None
        return run


@pytest.fixture
def waiting(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> Waiting:
    trail, prefect = trail_in_memory(database, retry), PrefectWithArtifacts()

    def context() -> Mock:
        return Mock(flow_run=prefect.flow_run(), parameters={})

    monkeypatch.setattr("flows.state_mirror.FlowRunContext", Mock(get=context))
    parts: dict[str, Any] = {
        "LOOK_SECONDS": 0.001,
        "audit_trail": lambda _settings: trail,
        "end_dead_runs": lambda _settings: [],
        "get_client": lambda: prefect,
        "get_run_logger": Mock(),
    }
    for name, part in parts.items():
        monkeypatch.setattr(turn, name, part)
    return Waiting(trail, prefect)


def test_a_run_begins_at_once_where_no_other_has_the_turn(waiting: Waiting) -> None:
    waiting.end_other()
    attempt = waiting.take_turn()
    run = waiting.run()
    assert attempt == RunAttempt(run.id, 1)
    assert (run.status, run.started_at, run.mirrored_at) == (RunStatus.RUNNING, at(10), at(10))
    assert (waiting.prefect.looks, waiting.prefect.set) == (0, [])


@pytest.mark.parametrize(
    ("tags", "begins"),
    [([], True), (["a"], True), (["database:backoffice"], True), (["database:other"], False)],
)
def test_a_run_that_was_asked_for_another_database_writes_nothing(
    waiting: Waiting, database: Database[Document], tags: list[str], begins: bool
) -> None:
    waiting.end_other()
    waiting.prefect.tags = tags
    with nullcontext() if begins else pytest.raises(OtherDatabase, match="MONGODB_DB names back"):
        waiting.take_turn()
    assert database.sync_runs.count_documents({}) == 1 + begins


@pytest.mark.parametrize(
    ("given", "tags"),
    [
        ([], ["mode:full", "database:backoffice"]),
        (["mine"], ["mine", "mode:full", "database:backoffice"]),
        (["database:backoffice"], ["database:backoffice", "mode:full"]),
    ],
)
def test_a_run_is_given_the_tags_that_it_lacks(
    waiting: Waiting, given: list[str], tags: list[str]
) -> None:
    waiting.prefect.tags = given
    waiting.prefect.at_looks = {1: waiting.end_other}
    waiting.take_turn()
    assert (waiting.prefect.tags, waiting.prefect.updates) == (tags, 1)


def test_a_run_that_has_its_tags_asks_for_none(waiting: Waiting) -> None:
    waiting.end_other()
    waiting.prefect.tags = ["database:backoffice", "mode:full"]
    waiting.take_turn()
    assert waiting.prefect.updates == 0


def test_what_an_earlier_attempt_showed_is_gone_once_the_next_one_has_the_turn(
    waiting: Waiting,
) -> None:
    waiting.prefect.run_count = 2
    waiting.prefect.artifacts = [Artifact(id=uuid4(), key=key) for key in ("summary", "failures")]
    shown: list[int] = []

    def look() -> None:
        shown.append(len(waiting.prefect.artifacts))

    waiting.prefect.at_looks = {1: look, 2: waiting.end_other}
    waiting.take_turn()
    assert shown == [2], "until then it tells what came of the run last"
    assert waiting.prefect.artifacts == []


def test_a_prefect_that_takes_neither_tags_nor_artifacts_stops_nothing(waiting: Waiting) -> None:
    waiting.prefect.run_count = 2
    waiting.end_other()
    waiting.prefect.is_read_only = True
    waiting.prefect.artifacts = [Artifact(id=uuid4(), key="summary")]
    assert waiting.take_turn().number == 1


@pytest.mark.parametrize(
    ("earlier", "is_of_deployment", "begins"),
    [
        ([Pending(), Cancelling(), Cancelled()], True, False),
        ([Cancelled()], False, True),
        ([Cancelled(), Scheduled(), Pending()], True, True),
        ([Crashed()], True, True),
        ([], True, True),
    ],
)
def test_a_run_that_was_cancelled_while_its_process_started_stays_cancelled(
    waiting: Waiting, earlier: list[State[Any]], is_of_deployment: bool, begins: bool
) -> None:
    waiting.end_other()
    waiting.prefect.earlier = earlier
    waiting.prefect.deployment_id = UUID(int=2) if is_of_deployment else None
    with nullcontext() if begins else pytest.raises(Abort, match="cancelled before it began"):
        waiting.take_turn()
    assert [state.is_cancelled() for state in waiting.prefect.set] == ([] if begins else [True])
    run = waiting.run()
    assert (run.attempt, run.status.is_terminal) == (begins, not begins)


def test_a_run_waits_for_its_turn_and_says_for_whom(waiting: Waiting) -> None:
    seen: list[RunRecord] = []

    def look() -> None:
        seen.append(waiting.run())

    waiting.prefect.at_looks = {1: look, 2: look, 3: waiting.end_other}
    attempt = waiting.take_turn()
    message = f"Waits for the sync {waiting.other} to end"
    assert {(run.status, run.message) for run in seen} == {(RunStatus.PENDING, message)}
    waits, runs = waiting.prefect.set
    assert (waits.is_running(), waits.name, waits.message) == (True, WAITING, message)
    assert (runs.is_running(), runs.name) == (True, "Running")
    run = waiting.run()
    assert waiting.trail.ownership.keep(attempt)
    assert (run.status, run.message) == (RunStatus.RUNNING, "")


def test_a_run_that_had_to_wait_runs_since_its_turn_came(waiting: Waiting) -> None:
    waiting.prefect.at_looks = {1: waiting.end_other}
    waiting.take_turn()
    run = waiting.run()
    assert waiting.prefect.state is not None
    assert run.started_at == run.mirrored_at == waiting.prefect.state.timestamp


def test_a_run_that_is_gone_keeps_no_other_one_waiting(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "end_dead_runs", lambda _settings: waiting.end_other())
    assert waiting.take_turn().number == 1
    assert waiting.prefect.looks == 1


@pytest.mark.parametrize(
    ("state", "order", "status"),
    [
        (Cancelling(timestamp=at(30)), RUN_CANCELLED, RunStatus.CANCELLED),
        (Cancelled(timestamp=at(30)), RUN_CANCELLED, RunStatus.CANCELLED),
        (None, FLOW_RUN_DELETED, RunStatus.CANCELLED),
        (Suspended(timestamp=at(30)), RUN_SUSPENDED, RunStatus.PENDING),
        (Pending(timestamp=at(30)), RUN_TAKEN_OVER, RunStatus.PENDING),
    ],
    ids=["cancelling", "cancelled", "deleted", "suspended", "pending"],
)
def test_a_run_that_waits_obeys_prefect(
    waiting: Waiting, state: State[Any] | None, order: StopReason, status: RunStatus
) -> None:
    def happen() -> None:
        waiting.prefect.state = state

    waiting.prefect.at_looks = {2: happen}
    with pytest.raises(Abort, match=order.message):
        waiting.take_turn()
    run = waiting.run()
    assert (run.status, run.attempt) == (status, 0)
    assert (run.alive_at is None) is (order != RUN_TAKEN_OVER), "another process speaks for it"
    assert waiting.trail.ownership.holder() == waiting.other
    told = [state.name for state in waiting.prefect.set]
    assert told == [WAITING, "Cancelled"] if order == RUN_CANCELLED else [WAITING]


def test_a_run_that_others_have_ended_while_its_process_was_held_up_waits_no_more(
    waiting: Waiting,
) -> None:
    """It is crashed in Prefect and on record: no turn will ever come for what it runs since."""

    def end() -> None:
        waiting.prefect.state = Crashed(timestamp=at(40))
        waiting.trail.counting.end_run(waiting.run().id, RunStatus.CRASHED, "gone", at(40))
        waiting.end_other()

    waiting.prefect.at_looks = {2: end}
    with pytest.raises(Abort):
        waiting.take_turn()
    assert waiting.run().status is RunStatus.CRASHED


def test_a_run_whose_document_is_gone_waits_no_more(
    waiting: Waiting, database: Database[Document]
) -> None:
    def forget() -> None:
        database.sync_runs.delete_many({})

    waiting.prefect.at_looks = {2: forget}
    with pytest.raises(Abort):
        waiting.take_turn()


@pytest.mark.parametrize("where", ["its own state", "the sweep"])
def test_a_prefect_that_is_away_for_a_moment_ends_no_wait(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    are_away = iter([False, True])

    def fail() -> None:
        raise httpx.ConnectError("away")

    def sweep(_settings: Settings) -> None:
        if next(are_away, False):
            fail()

    if where == "the sweep":
        monkeypatch.setattr(turn, "end_dead_runs", sweep)
        waiting.prefect.at_looks = {3: waiting.end_other}
    else:
        waiting.prefect.at_looks = {2: fail, 3: waiting.end_other}
    assert waiting.take_turn().number == 1
