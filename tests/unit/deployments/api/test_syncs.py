"""The seed's endpoints: a sync is started once, shown, and cancelled while it has not ended."""

import asyncio
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

import pytest
from bson import ObjectId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling, Scheduled
from pymongo.database import Database

from deployments.api.errors import NO_SUCH_RUN, RUN_FINISHED, ApiError
from deployments.api.followed_runs import FollowedRuns
from deployments.api.models import SyncRequest
from deployments.api.run_view import RunView
from deployments.api.sync_deployment import PrefectUnavailable, RunEnded
from deployments.api.syncs import cancel_sync, list_runs, list_steps, show_run, start_sync
from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoUnavailable
from tasks.trail.audit_trail import AuditTrail
from tasks.trail.fields import RunId
from tasks.trail.history import RunHistory
from tasks.trail.runs import RunOptions
from tasks.trail.stages import RunStatus
from tests.trail_documents import OPTIONS, PERMANENT, step_document
from tests.unit.tasks.run_in_memory import trail_in_memory

Document = dict[str, Any]
FULL = SyncRequest()
UNKNOWN = "Prefect has the sync, and does not tell whether a worker is up"


@pytest.fixture
def trail(database: Database[Document], retry: MongoRetry) -> AuditTrail:
    """A trail without a run under way, whose next run has the key of how many it has.

    Both are told by what mongomock lacks.
    """
    trail = trail_in_memory(database, retry)
    runs: Any = Mock(wraps=trail.runs)
    runs.next_key.side_effect = lambda: str(database.sync_runs.count_documents({}))
    ownership = Mock(wraps=trail.ownership, under_way=Mock(return_value=None))
    return replace(trail, runs=runs, ownership=ownership)


@pytest.fixture
def history(database: Database[Document], retry: MongoRetry) -> RunHistory:
    return RunHistory(database, retry)


def flow_run(name: str, state: Any = None) -> FlowRun:
    return FlowRun(id=uuid4(), flow_id=uuid4(), name=name, state=state)


@pytest.fixture
def deployment() -> Any:
    """Deployments none of whose runs is under way."""
    return Mock(
        due_run=AsyncMock(return_value=None),
        start=AsyncMock(return_value=(flow_run("the new run", Scheduled()), True)),
        obstacle_to=AsyncMock(return_value=None),
        cancel=AsyncMock(),
        states=AsyncMock(return_value={}),
    )


@pytest.fixture
def followed() -> Any:
    return Mock(spec=FollowedRuns)


def test_a_sync_is_handed_to_prefect_is_on_record_and_followed(
    deployment: Any, trail: AuditTrail, retry: MongoRetry, followed: Any, history: RunHistory
) -> None:
    asked = SyncRequest(entities=["client"])
    answer = asyncio.run(start_sync(deployment, trail, retry, followed, asked))
    deployment.start.assert_awaited_once_with(RunOptions("REST API", ("client",)), "0")
    new, _ = deployment.start.return_value
    run = history.run_of(str(new.id))
    assert run is not None
    assert run.status is RunStatus.PENDING
    assert (answer.run_id, answer.status) == (str(run.id), RunStatus.RUNNING)
    assert (answer.state, answer.message) == ("Scheduled", "Sync started")
    deployment.obstacle_to.assert_awaited_once_with(new)
    assert run.flow_run_name == "the new run"
    followed.follow.assert_called_once_with(trail, str(new.id))


async def for_ever(_: FlowRun) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("obstacle", "message"),
    [
        (["No worker is up: start one"], "The sync waits. No worker is up: start one"),
        (PrefectUnavailable("away"), UNKNOWN),
        (for_ever, UNKNOWN),
    ],
)
def test_a_sync_that_waits_or_of_which_prefect_tells_nothing_is_not_called_started(
    deployment: Any,
    trail: AuditTrail,
    retry: MongoRetry,
    followed: Any,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: Any,
    message: str,
) -> None:
    monkeypatch.setattr("deployments.api.syncs._OBSTACLE_SECONDS", 0.01)
    deployment.obstacle_to.side_effect = obstacle
    answer = asyncio.run(start_sync(deployment, trail, retry, followed, FULL))
    assert (answer.status, answer.message) == (RunStatus.RUNNING, message)
    followed.follow.assert_called_once()


def test_a_sync_in_prefect_turns_a_second_one_away_with_its_run_id(
    deployment: Any, trail: AuditTrail, retry: MongoRetry, followed: Any, history: RunHistory
) -> None:
    under_way = flow_run("tenant - schedule")
    deployment.due_run.return_value = under_way
    with pytest.raises(ApiError, match="already under way: tenant - schedule") as refused:
        asyncio.run(start_sync(deployment, trail, retry, followed, FULL))
    deployment.start.assert_not_awaited()
    run = history.run_of(str(under_way.id))
    assert run is not None
    assert refused.value.status == 409
    assert refused.value.body.error.details == {"run_id": str(run.id)}


def test_a_sync_in_the_trail_turns_a_second_one_away_with_its_run_id(
    deployment: Any, trail: Any, retry: MongoRetry, followed: Any, run_id: RunId
) -> None:
    trail.ownership.under_way.return_value = run_id
    with pytest.raises(ApiError, match="already under way: its name") as refused:
        asyncio.run(start_sync(deployment, trail, retry, followed, FULL))
    deployment.start.assert_not_awaited()
    assert refused.value.body.error.details == {"run_id": str(run_id)}


def test_a_flow_run_that_another_request_made_at_that_moment_is_not_ours(
    deployment: Any, trail: AuditTrail, retry: MongoRetry, followed: Any, history: RunHistory
) -> None:
    theirs = flow_run("another run")
    deployment.start.return_value = (theirs, False)
    with pytest.raises(ApiError, match="already under way: another run") as refused:
        asyncio.run(start_sync(deployment, trail, retry, followed, FULL))
    run = history.run_of(str(theirs.id))
    assert run is not None
    assert refused.value.body.error.details == {"run_id": str(run.id)}
    followed.follow.assert_not_called()


@pytest.mark.filterwarnings("ignore:Pendulum datetime member")  # mongomock copies Prefect's time
def test_a_flow_run_that_ended_unrecorded_is_recorded_and_another_is_started(
    deployment: Any, trail: AuditTrail, retry: MongoRetry, followed: Any, history: RunHistory
) -> None:
    ended, new = flow_run("an ended run", Cancelled()), flow_run("the new run")
    deployment.start.side_effect = [(ended, False), (new, True)]
    answer = asyncio.run(start_sync(deployment, trail, retry, followed, FULL))
    assert [call.args[1] for call in deployment.start.await_args_list] == ["0", "1"]
    left, started = history.run_of(str(ended.id)), history.run_of(str(new.id))
    assert left is not None
    assert left.status is RunStatus.CANCELLED
    assert started is not None
    assert answer.run_id == str(started.id)


def test_nothing_is_started_that_could_not_be_recorded(
    deployment: Any, trail: AuditTrail, followed: Any
) -> None:
    retry = Mock(spec=MongoRetry, **{"await_mongodb.side_effect": MongoUnavailable("away")})
    with pytest.raises(MongoUnavailable):
        asyncio.run(start_sync(deployment, trail, retry, followed, FULL))
    deployment.start.assert_not_awaited()


def status_of(deployment: Any, history: RunHistory, run_id: RunId) -> RunStatus:
    run = asyncio.run(show_run(deployment, history, str(run_id)))
    assert isinstance(run, RunView)
    return run.status


def test_runs_and_steps_are_shown(
    database: Database[Document], deployment: Any, history: RunHistory, run_id: RunId
) -> None:
    database.sync_steps.insert_many([step_document(run_id, 1), step_document(run_id, 2, PERMANENT)])
    runs = asyncio.run(list_runs(deployment, history, page=1, limit=10))
    assert [(run.id, runs.total) for run in runs.items] == [(run_id, 1)]
    assert status_of(deployment, history, run_id) is RunStatus.RUNNING
    page = list_steps(history, run_id, page=1, limit=1, ok=False, entity_type="tenant")
    assert [step.source_id for step in page.items] == [2]
    assert (page.total, page.next) == (1, None)
    first = list_steps(history, run_id, page=1, limit=1)
    second = list_steps(history, run_id, page=1, limit=1, after=first.next)
    assert [step.source_id for step in (*first.items, *second.items)] == [1, 2]
    assert second.next is None


def test_a_run_that_is_not_there_is_told(
    deployment: Any, trail: AuditTrail, history: RunHistory, followed: Any
) -> None:
    unknown = ObjectId()
    with pytest.raises(ApiError, match=str(NO_SUCH_RUN)):
        asyncio.run(show_run(deployment, history, unknown))
    with pytest.raises(ApiError, match=str(NO_SUCH_RUN)):
        list_steps(history, unknown)
    with pytest.raises(ApiError, match=str(NO_SUCH_RUN)):
        asyncio.run(cancel_sync(deployment, trail, history, followed, unknown))
    deployment.cancel.assert_not_awaited()


@pytest.mark.filterwarnings("ignore:Pendulum datetime member")  # mongomock copies Prefect's time
@pytest.mark.parametrize(
    ("state", "status", "message"),
    [
        (Cancelling(), RunStatus.RUNNING, "The sync is being cancelled"),
        (Cancelled(), RunStatus.CANCELLED, "The sync is cancelled"),
    ],
)
def test_a_sync_is_cancelled(
    deployment: Any,
    trail: AuditTrail,
    history: RunHistory,
    followed: Any,
    state: Any,
    status: RunStatus,
    message: str,
) -> None:
    cancelled = flow_run("a run", state)
    run_id = trail.runs.open(str(cancelled.id), "a run", OPTIONS)
    deployment.cancel.return_value = cancelled
    answer = asyncio.run(cancel_sync(deployment, trail, history, followed, run_id))
    deployment.cancel.assert_awaited_once_with(str(cancelled.id))
    assert (answer.run_id, answer.status, answer.message) == (str(run_id), status, message)
    assert answer.state == state.name
    assert status_of(deployment, history, run_id) is status
    assert followed.follow.called is not status.is_terminal


def test_a_sync_that_has_ended_is_not_cancelled(
    deployment: Any, trail: AuditTrail, history: RunHistory, followed: Any, run_id: RunId
) -> None:
    deployment.cancel.side_effect = RunEnded
    with pytest.raises(ApiError, match=str(RUN_FINISHED)):
        asyncio.run(cancel_sync(deployment, trail, history, followed, run_id))


def test_a_sync_whose_flow_run_was_deleted_is_cancelled_once(
    deployment: Any, trail: AuditTrail, history: RunHistory, followed: Any, run_id: RunId
) -> None:
    deployment.cancel.return_value = None
    answer = asyncio.run(cancel_sync(deployment, trail, history, followed, run_id))
    assert (answer.status, answer.message) == (RunStatus.CANCELLED, "The sync is cancelled")
    assert status_of(deployment, history, run_id) is RunStatus.CANCELLED
    with pytest.raises(ApiError, match=str(RUN_FINISHED)):
        asyncio.run(cancel_sync(deployment, trail, history, followed, run_id))
