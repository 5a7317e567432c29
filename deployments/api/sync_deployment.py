"""An environment's deployments of `admin-sync`: is a sync under way, start, cancel."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from json import JSONDecodeError
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.responses import (
    DeploymentResponse,
    GlobalConcurrencyLimitResponse,
    OrchestrationResult,
    SetStateStatus,
)
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from deployments.api.work_pool import obstacle
from flows.orders import time_of
from flows.run_names import name_of_run, tags_of_run
from flows.state_mirror import FLOW_NAME, is_for_database
from tasks.prefect_api import fault_in_words
from tasks.settings import EnvironmentSettings
from tasks.trail.runs import RunOptions, SyncMode

_CALL_SECONDS: Final = 10.0
"""How long Prefect may take for one of the calls below."""
_SOON: Final = timedelta(seconds=5)
"""A run that is due so soon counts as due: Prefect's API tells its time a second or two late."""
_NOT_BEGUN: Final = [StateType.PENDING, StateType.SCHEDULED]
"""States of a sync that is about to begin, the furthest first."""
_ONLINE: Final = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
"""Workers that are up, and such as were a minute or two ago; not all that there have ever been."""


class PrefectUnavailable(RuntimeError):
    """Prefect can't do what was asked; the message says what to look at."""


class RunEnded(RuntimeError):
    """There is nothing left to cancel."""


class SyncDeployment:
    """Speaks to the Prefect API of one client; every method raises `PrefectUnavailable`.

    Args:
        client: speaks to Prefect's API.
        environment: whose deployments these are; it sees nothing of others on that server.
        database: name of the MongoDB database, told by a tag of what is started.
    """

    def __init__(
        self, client: PrefectClient, environment: EnvironmentSettings, database: str
    ) -> None:
        self._client = client
        self._environment = environment
        self._database = database

    async def due_run(self) -> FlowRun | None:
        """Return the sync of a deployment that is due, and about to begin; None for none.

        One that has begun is on record in its database.
        """
        names = [self._environment.named(mode.value) for mode in SyncMode]
        async with _in_time():
            now = time_of((await self._client.hello()).headers) + _SOON
            flow_runs = await self._client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW_NAME])),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names)),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_NOT_BEGUN)),
                    expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
                        {"before_": now}
                    ),
                ),
            )
        ours = (each for each in flow_runs if is_for_database(each, self._database))
        return min(ours, key=_place_in_line, default=None)

    async def start(self, options: RunOptions, key: str) -> tuple[FlowRun, bool]:
        """Create a flow run, which a worker picks up; return it, and True.

        Where there is one of that key already, return that one, and False.
        """
        deployment = await self._deployment(options.mode)
        _work_pool_of(deployment)  # Without one, the run would wait for ever.
        request = {"request": uuid4().hex}
        async with _in_time():
            flow_run = await self._client.create_flow_run_from_deployment(
                deployment.id,
                name=name_of_run(options),
                parameters=options.as_parameters(),
                context=request,
                tags=tags_of_run(options, self._database),
                idempotency_key=f"{self._environment.work_pool}:{self._database}:{key}",
            )
        return flow_run, flow_run.context == request

    async def cancel(self, flow_run_id: str) -> FlowRun | None:
        """Ask for the end of a flow run, as `prefect flow-run cancel` does.

        Returns it as it is then: Cancelling, or Cancelled if no process has taken it. None where
        Prefect doesn't know it.

        Raises:
            RunEnded: it has ended.
        """
        async with _in_time():
            try:
                answer: OrchestrationResult[Any] = await self._client.set_flow_run_state(
                    flow_run_id, Cancelling()
                )
            except ObjectNotFound:
                return None
        if answer.status is SetStateStatus.ABORT:
            raise RunEnded
        return await self.flow_run(flow_run_id)

    async def end_cancelled(self, flow_run_id: str) -> FlowRun | None:
        """End a flow run that is cancelled, and whose process has not begun; return it then.

        That process notices it, should it begin: see `flows.turn`.
        """
        async with _in_time():
            await self._client.set_flow_run_state(flow_run_id, Cancelled())
        return await self.flow_run(flow_run_id)

    async def flow_run(self, flow_run_id: str) -> FlowRun | None:
        """Return a flow run as it is now, None where Prefect doesn't know it."""
        async with _in_time():
            try:
                return await self._client.read_flow_run(UUID(flow_run_id))
            except ObjectNotFound:
                return None

    async def states(self, flow_run_ids: Iterable[str]) -> dict[str, str]:
        """Return Prefect's names of the states of flow runs, by id, as far as it knows them."""
        ids = [flow_run_id for each in flow_run_ids if (flow_run_id := uuid_or_none(each))]
        async with _in_time():
            flow_runs = await self._client.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids))
            )
        return {str(each.id): name for each in flow_runs if (name := state_name(each))}

    async def request_limit(self, name: str) -> GlobalConcurrencyLimitResponse | None:
        """Return the concurrency limit of that name, None where there is none."""
        async with _in_time():
            try:
                return await self._client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                return None

    async def obstacle(self) -> str | None:
        """Return why no sync would begin, and what to do; None where one would."""
        return await self.obstacle_to(await self._deployment(SyncMode.FULL))

    async def obstacle_to(self, run: FlowRun | DeploymentResponse) -> str | None:
        """Return why a flow run, or one of a deployment, would not begin; None where it would."""
        pool_name, queue_id = _work_pool_of(run)
        async with _in_time():
            hello, pool, queue, workers = await asyncio.gather(
                self._client.hello(),
                self._client.read_work_pool(pool_name),
                self._client.read_work_queue(queue_id),
                self._client.read_workers_for_work_pool(pool_name, _ONLINE),
            )
        return obstacle(pool, queue, workers, time_of(hello.headers))

    async def _deployment(self, mode: SyncMode) -> DeploymentResponse:
        name = f"{FLOW_NAME}/{self._environment.named(mode.value)}"
        async with _in_time():
            return await self._client.read_deployment_by_name(name)


def state_name(flow_run: FlowRun) -> str | None:
    """Return Prefect's name of the state of a flow run; None where it has none."""
    return flow_run.state.name if flow_run.state else None


def uuid_or_none(flow_run_id: str) -> UUID | None:
    """Return the id of a flow run; None for a text that Prefect gives no run for an id."""
    try:
        return UUID(flow_run_id)
    except ValueError:
        return None


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            yield
    except ObjectNotFound:
        raise PrefectUnavailable(
            f"Prefect lacks a deployment of {FLOW_NAME}: run `python -m deployments.deploy`"
        ) from None
    except (httpx.HTTPError, TimeoutError, JSONDecodeError) as error:
        raise PrefectUnavailable(fault_in_words(error)) from None


def _work_pool_of(run: FlowRun | DeploymentResponse) -> tuple[str, UUID]:
    """Return the work pool, and the id of its queue, in which workers find a run.

    Raises:
        PrefectUnavailable: it was deleted.
    """
    if run.work_pool_name is None or run.work_queue_id is None:
        raise PrefectUnavailable(
            f"A deployment of {FLOW_NAME} has no work pool: run `python -m deployments.deploy`"
        )
    return run.work_pool_name, run.work_queue_id


def _place_in_line(flow_run: FlowRun) -> tuple[int, datetime]:
    state_type = flow_run.state_type or StateType.SCHEDULED
    return _NOT_BEGUN.index(state_type), flow_run.expected_start_time or datetime.now(UTC)
