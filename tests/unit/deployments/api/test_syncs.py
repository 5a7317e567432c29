"""The seed's endpoints: a sync is started once, shown, and cancelled while it has not ended."""

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

import pytest
from bson import ObjectId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Cancelling
from pymongo.database import Database

from deployments.api.errors import NO_SUCH_RUN, RUN_FINISHED, ApiError
from deployments.api.models import SyncRequest
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


@pytest.fixture
def trail(database: Database[Document], retry: MongoRetry) -> AuditTrail:
    return trail_in_memory(database, retry)


@pytest.fixture
def history(database: Database[Document], retry: MongoRetry) -> RunHistory:
    return RunHistory(database, retry)


@pytest.fixture
def deployment() -> Any:
    """Deployments none of whose runs is under way."""
    return Mock(
        unfinished_run=AsyncMock(return_value=None),
        start=AsyncMock(return_value=FlowRun(id=uuid4(), flow_id=uuid4(), name="the new run")),
        cancel=AsyncMock(),
    )


def test_a_sync_is_handed_to_prefect_and_is_on_record(
    deployment: Any, trail: AuditTrail, retry: MongoRetry, history: RunHistory
) -> None:
    answer = asyncio.run(start_sync(deployment, trail, retry, SyncRequest(entities=["client"])))
    deployment.start.assert_awaited_once_with(RunOptions("REST API", ("client",)))
    flow_run = deployment.start.return_value
    run = history.run_of(str(flow_run.id))
    assert run is not None
    assert (answer.run_id, answer.status) == (str(run.id), RunStatus.PENDING)
    assert run.flow_run_name == "the new run"


def test_a_second_sync_is_turned_away_with_the_run_id_of_the_first(
    deployment: Any, trail: AuditTrail, retry: MongoRetry, history: RunHistory
) -> None:
    under_way = FlowRun(id=uuid4(), flow_id=uuid4(), name="tenant - schedule")
    deployment.unfinished_run.return_value = under_way
    with pytest.raises(ApiError, match="already under way: tenant - schedule") as refused:
        asyncio.run(start_sync(deployment, trail, retry, None))
    deployment.start.assert_not_awaited()
    run = history.run_of(str(under_way.id))
    assert run is not None
    assert refused.value.status == 409
    assert refused.value.body.error.details == {"run_id": str(run.id)}


def test_nothing_is_started_that_could_not_be_recorded(deployment: Any, trail: AuditTrail) -> None:
    retry = Mock(spec=MongoRetry, **{"await_mongodb.side_effect": MongoUnavailable("away")})
    with pytest.raises(MongoUnavailable):
        asyncio.run(start_sync(deployment, trail, retry, None))
    deployment.start.assert_not_awaited()


def test_of_many_at_once_one_is_started(
    deployment: Any, trail: AuditTrail, retry: MongoRetry
) -> None:
    async def start(_options: RunOptions) -> Any:
        await asyncio.sleep(0.01)
        deployment.unfinished_run.return_value = deployment.start.return_value
        return deployment.start.return_value

    deployment.start.side_effect = start

    async def start_all() -> list[Any]:
        starts = [start_sync(deployment, trail, retry, None) for _ in range(8)]
        return await asyncio.gather(*starts, return_exceptions=True)

    answers = asyncio.run(start_all())
    assert sum(isinstance(answer, ApiError) for answer in answers) == 7
    assert deployment.start.await_count == 1


def test_runs_and_steps_are_shown(
    database: Database[Document], history: RunHistory, run_id: RunId
) -> None:
    database.sync_steps.insert_many([step_document(run_id, 1), step_document(run_id, 2, PERMANENT)])
    assert [run.id for run in list_runs(history, page=1, limit=10).items] == [run_id]
    assert show_run(history, run_id).id == run_id
    page = list_steps(history, run_id, page=1, limit=1, ok=False, entity_type="tenant")
    assert [step.source_id for step in page.items] == [2]
    assert page.total == 1


def test_a_run_that_is_not_there_is_told(
    deployment: Any, trail: AuditTrail, history: RunHistory
) -> None:
    unknown = ObjectId()
    with pytest.raises(ApiError, match=str(NO_SUCH_RUN)):
        show_run(history, unknown)
    with pytest.raises(ApiError, match=str(NO_SUCH_RUN)):
        list_steps(history, unknown)
    with pytest.raises(ApiError, match=str(NO_SUCH_RUN)):
        asyncio.run(cancel_sync(deployment, trail, history, unknown))
    deployment.cancel.assert_not_awaited()


@pytest.mark.filterwarnings("ignore:Pendulum datetime member")  # mongomock copies Prefect's time
@pytest.mark.parametrize(
    ("state", "status", "message"),
    [
        (Cancelling(), RunStatus.PENDING, "The sync is being cancelled"),
        (Cancelled(), RunStatus.CANCELLED, "The sync is cancelled"),
    ],
)
def test_a_sync_is_cancelled(
    deployment: Any,
    trail: AuditTrail,
    history: RunHistory,
    state: Any,
    status: RunStatus,
    message: str,
) -> None:
    flow_run = FlowRun(id=uuid4(), flow_id=uuid4(), name="a run", state=state)
    run_id = trail.runs.open(str(flow_run.id), "a run", OPTIONS)
    deployment.cancel.return_value = flow_run
    answer = asyncio.run(cancel_sync(deployment, trail, history, run_id))
    deployment.cancel.assert_awaited_once_with(str(flow_run.id))
    assert (answer.run_id, answer.status, answer.message) == (str(run_id), status, message)
    assert show_run(history, run_id).status is status


@pytest.mark.parametrize("left", [None, FlowRun(flow_id=uuid4(), state_type=StateType.RUNNING)])
def test_a_sync_that_has_ended_is_not_cancelled(
    deployment: Any, trail: AuditTrail, history: RunHistory, run_id: RunId, left: FlowRun | None
) -> None:
    deployment.cancel.return_value = left
    with pytest.raises(ApiError, match=str(RUN_FINISHED)):
        asyncio.run(cancel_sync(deployment, trail, history, run_id))
