"""The deployments of admin-sync, as the REST API asks Prefect for them."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from json import JSONDecodeError
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, StateType, Worker, WorkPool, WorkQueue
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Running, Scheduled

from deployments.api.sync_deployment import PrefectUnavailable, RunEnded, SyncDeployment
from tasks.prefect_api import fault_in_words
from tasks.settings import read_environment_settings
from tasks.trail.runs import RunOptions, SyncMode

NOT_FOUND = ObjectNotFound(ValueError())
FLOW_RUN_ID = str(uuid4())
_REQUEST = httpx.Request("GET", "http://prefect.example/api")
WRONG_PASSWORD = httpx.HTTPStatusError(
    "marked", request=_REQUEST, response=httpx.Response(401, request=_REQUEST)
)


def start(deployment: SyncDeployment) -> Awaitable[Any]:
    return deployment.start(RunOptions("a test", ("tenant",)), "a key")


@pytest.fixture
def client() -> Any:
    client = AsyncMock(spec=PrefectClient)
    client.hello.return_value = Mock(headers={"Date": "Mon, 01 Jan 2024 12:00:00 GMT"})
    return client


def deployment_of(client: Any) -> SyncDeployment:
    return SyncDeployment(client, read_environment_settings(), "backoffice")


def flow_run(state_type: StateType, minutes: int) -> FlowRun:
    due: Any = datetime(2024, 1, 1, 12, minutes, tzinfo=UTC)
    return FlowRun(flow_id=uuid4(), state_type=state_type, expected_start_time=due)


def test_of_due_runs_of_the_database_the_furthest_and_then_the_first_is_told(client: Any) -> None:
    scheduled, pending = flow_run(StateType.SCHEDULED, 1), flow_run(StateType.PENDING, 5)
    earlier, other = flow_run(StateType.PENDING, 3), flow_run(StateType.PENDING, 2)
    other.tags = ["database:staging"]
    scheduled.tags = ["nightly", "database:backoffice"]
    for found, told in [
        ([other, scheduled, pending, earlier], earlier),
        ([scheduled, pending], pending),
        ([other, scheduled], scheduled),
        ([other], None),
        ([], None),
    ]:
        client.read_flow_runs.return_value = found
        assert asyncio.run(deployment_of(client).due_run()) is told
        due = client.read_flow_runs.await_args.kwargs["flow_run_filter"].expected_start_time
        assert due.before_ == datetime(2024, 1, 1, 12, 0, 5, tzinfo=UTC), (
            "that is not Prefect's clock"
        )


@pytest.mark.parametrize("mode", SyncMode)
def test_a_sync_is_started_as_it_was_asked_for(client: Any, mode: SyncMode) -> None:
    options = RunOptions("REST API", ("tenant",), mode, dry_run=True)
    deployment_id = uuid4()
    client.read_deployment_by_name.return_value = SimpleNamespace(
        id=deployment_id, work_pool_name="backoffice", work_queue_id=uuid4()
    )
    _, is_new = asyncio.run(deployment_of(client).start(options, "a key"))
    client.read_deployment_by_name.assert_awaited_once_with(f"admin-sync/{mode.value}")
    started = client.create_flow_run_from_deployment.await_args
    assert started.args == (deployment_id,)
    assert started.kwargs["parameters"] == {
        "entities": ["tenant"],
        "mode": mode,
        "dry_run": True,
        "skip_orphans": False,
        "disable_gone": False,
        "trigger": "REST API",
    }
    assert started.kwargs["name"].endswith("tenant - REST API")
    assert started.kwargs["tags"] == [f"mode:{mode}", "dry-run", "database:backoffice"]
    assert started.kwargs["idempotency_key"] == "backoffice:backoffice:a key"
    assert not is_new, "it was made by another request"


def test_an_environment_sees_its_own_deployments_only(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_ENVIRONMENT", "staging")
    client.read_flow_runs.return_value = []
    asyncio.run(deployment_of(client).due_run())
    asked = client.read_flow_runs.await_args.kwargs["deployment_filter"]
    assert asked.name.any_ == ["full-staging", "changed-staging"]
    asyncio.run(deployment_of(client).obstacle())
    client.read_deployment_by_name.assert_awaited_once_with("admin-sync/full-staging")


def test_a_run_is_cancelled_and_returned_as_it_is_then(client: Any) -> None:
    client.set_flow_run_state.return_value = Mock(status=SetStateStatus.ACCEPT)
    told = asyncio.run(deployment_of(client).cancel(FLOW_RUN_ID))
    assert told is client.read_flow_run.return_value
    asked, state = client.set_flow_run_state.await_args.args
    assert (asked, state.type) == (FLOW_RUN_ID, StateType.CANCELLING)


def test_a_run_that_has_ended_is_not_cancelled(client: Any) -> None:
    client.set_flow_run_state.return_value = Mock(status=SetStateStatus.ABORT)
    with pytest.raises(RunEnded):
        asyncio.run(deployment_of(client).cancel(FLOW_RUN_ID))


def test_a_run_that_prefect_does_not_know_is_none(client: Any) -> None:
    client.set_flow_run_state.side_effect = NOT_FOUND
    client.read_flow_run.side_effect = NOT_FOUND
    assert asyncio.run(deployment_of(client).cancel(FLOW_RUN_ID)) is None
    assert asyncio.run(deployment_of(client).flow_run(FLOW_RUN_ID)) is None


def test_the_states_of_flow_runs_are_told_at_once(client: Any) -> None:
    late: Any = Scheduled(name="Late")
    running: Any = Running()
    known = [FlowRun(id=uuid4(), flow_id=uuid4(), state=state) for state in (late, running, None)]
    client.read_flow_runs.return_value = known
    ids = [str(each.id) for each in known]
    told = asyncio.run(deployment_of(client).states([*ids, "no id of Prefect's"]))
    assert told == {ids[0]: "Late", ids[1]: "Running"}
    asked = client.read_flow_runs.await_args.kwargs["flow_run_filter"]
    assert asked.id.any_ == [each.id for each in known]


def test_a_limit_that_prefect_does_not_know_is_none(client: Any) -> None:
    limit = client.read_global_concurrency_limit_by_name.return_value
    assert asyncio.run(deployment_of(client).request_limit("a limit")) is limit
    client.read_global_concurrency_limit_by_name.assert_awaited_once_with("a limit")
    client.read_global_concurrency_limit_by_name.side_effect = NOT_FOUND
    assert asyncio.run(deployment_of(client).request_limit("a limit")) is None


@pytest.mark.parametrize(
    ("silent_seconds", "told"), [(0, None), (20, "No worker of the work pool backoffice is up")]
)
def test_a_sync_begins_while_a_worker_speaks_by_the_clock_of_prefect(
    client: Any, silent_seconds: int, told: str | None
) -> None:
    queue_id, heard = uuid4(), datetime(2024, 1, 1, 12, tzinfo=UTC)
    heard -= timedelta(seconds=silent_seconds)
    client.read_deployment_by_name.return_value = SimpleNamespace(
        work_pool_name="backoffice", work_queue_id=queue_id
    )
    client.read_work_pool.return_value = WorkPool(
        name="backoffice", type="process", default_queue_id=queue_id
    )
    client.read_work_queue.return_value = WorkQueue(name="default", work_pool_id=uuid4())
    client.read_workers_for_work_pool.return_value = [
        Worker.model_validate(
            {
                "name": "a worker",
                "work_pool_id": uuid4(),
                "last_heartbeat_time": heard,
                "heartbeat_interval_seconds": 6,
            }
        )
    ]
    answer = asyncio.run(deployment_of(client).obstacle())
    assert answer is told if told is None else answer and answer.startswith(told)
    client.read_work_pool.assert_awaited_once_with("backoffice")
    client.read_work_queue.assert_awaited_once_with(queue_id)


def test_where_the_work_pool_was_deleted_nothing_is_started_and_that_is_told(client: Any) -> None:
    client.read_deployment_by_name.return_value = SimpleNamespace(
        work_pool_name=None, work_queue_id=None
    )
    for call in (SyncDeployment.obstacle, start):
        with pytest.raises(PrefectUnavailable, match=r"no work pool: run `python -m deployments"):
            asyncio.run(call(deployment_of(client)))
    client.create_flow_run_from_deployment.assert_not_awaited()


CALLS: list[Callable[[SyncDeployment], Awaitable[Any]]] = [
    SyncDeployment.due_run,
    SyncDeployment.obstacle,
    start,
    lambda deployment: deployment.cancel(FLOW_RUN_ID),
    lambda deployment: deployment.flow_run(FLOW_RUN_ID),
    lambda deployment: deployment.states([FLOW_RUN_ID]),
    lambda deployment: deployment.request_limit("a limit"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "fault",
    [
        httpx.ConnectError("http://marked"),
        TimeoutError("marked"),
        JSONDecodeError("marked", "<html>", 0),
        WRONG_PASSWORD,
    ],
)
def test_a_prefect_that_does_not_do_it_is_told(client: Any, call: Any, fault: Any) -> None:
    for method in (
        "read_flow_run",
        "read_flow_runs",
        "read_deployment_by_name",
        "set_flow_run_state",
        "read_global_concurrency_limit_by_name",
    ):
        getattr(client, method).side_effect = fault
    with pytest.raises(PrefectUnavailable) as raised:
        asyncio.run(call(deployment_of(client)))
    assert str(raised.value) == fault_in_words(fault)


@pytest.mark.parametrize("call", CALLS[1:3])
def test_a_deployment_that_is_missing_is_told(client: Any, call: Any) -> None:
    client.read_deployment_by_name.side_effect = NOT_FOUND
    with pytest.raises(PrefectUnavailable, match=r"`python -m deployments\.deploy`"):
        asyncio.run(call(deployment_of(client)))
