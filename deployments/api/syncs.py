"""The seed's endpoints: start, list, show and cancel syncs."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Body, Depends, Query
from fastapi.security import HTTPBearer
from prefect.client.schemas.objects import FlowRun

from deployments.api.dependencies import Deployment, History, Retry, Trail
from deployments.api.errors import (
    FOREIGN_PAGE,
    INVALID,
    NO_SUCH_RUN,
    RUN_FINISHED,
    SYNC_RUNNING,
    UNAUTHORIZED,
    UNAVAILABLE,
    UNREADABLE,
    ApiError,
    error_responses,
)
from deployments.api.models import (
    RUN_RESPONSE,
    RUNS_RESPONSE,
    STEPS_RESPONSE,
    RunCancelled,
    RunStarted,
    SyncRequest,
)
from flows.state_mirror import mirror_state, open_run_of
from tasks.entities import EntityName
from tasks.trail.audit_trail import AuditTrail
from tasks.trail.fields import RunId, RunKey
from tasks.trail.history import Page, RunHistory
from tasks.trail.runs import RunRecord
from tasks.trail.stages import RunStatus
from tasks.trail.steps import StepRecord

API_TRIGGER: Final = "REST API"
BEARER: Final = Depends(HTTPBearer(auto_error=False, description="ADMIN_API_TOKEN, if set"))

PageNumber = Annotated[int, Query(ge=1, le=1_000_000, description="Which page, from 1.")]
PageLimit = Annotated[int, Query(ge=1, le=500, description="Entries a page.")]
_start_lock: Final = asyncio.Lock()
router = APIRouter(
    prefix="/api/admin/sync",
    tags=["sync"],
    responses=error_responses(UNAUTHORIZED, INVALID, UNAVAILABLE),
    dependencies=[BEARER],
)


@router.post(
    "/run",
    status_code=HTTPStatus.ACCEPTED,
    summary="Start a sync",
    responses=error_responses(SYNC_RUNNING, UNREADABLE, FOREIGN_PAGE),
)
async def start_sync(
    deployment: Deployment,
    trail: Trail,
    retry: Retry,
    asked: Annotated[SyncRequest | None, Body()] = None,
) -> RunStarted:
    """Hand a sync to Prefect and answer at once; without a body, a full one of all types."""
    options = (asked or SyncRequest()).options(API_TRIGGER)
    async with _start_lock:
        await asyncio.to_thread(retry.await_mongodb)
        if (flow_run := await deployment.unfinished_run()) is not None:
            raise await asyncio.to_thread(_already_running, trail, flow_run)
        flow_run = await deployment.start(options)
        run_id = await asyncio.to_thread(open_run_of, trail, flow_run)
    return RunStarted(run_id=str(run_id), status=RunStatus.PENDING, message="Sync started")


@router.get("/runs", summary="List runs", responses=RUNS_RESPONSE)
def list_runs(history: History, page: PageNumber = 1, limit: PageLimit = 50) -> Page[RunRecord]:
    """Runs, newest first."""
    return history.runs(page, limit)


@router.get(
    "/runs/{run_id}",
    summary="Show a run",
    responses=RUN_RESPONSE | error_responses(NO_SUCH_RUN),
)
def show_run(history: History, run_id: RunKey) -> RunRecord:
    """Status, totals and first errors of a run; the counts are final once it has ended."""
    return _existing_run(history, run_id)


@router.get(
    "/runs/{run_id}/steps",
    summary="List the steps of a run",
    responses=STEPS_RESPONSE | error_responses(NO_SUCH_RUN),
)
def list_steps(
    history: History,
    run_id: RunKey,
    page: PageNumber = 1,
    limit: PageLimit = 50,
    ok: Annotated[bool | None, Query(description="Only items that are in, or are not.")] = None,
    entity_type: Annotated[EntityName | None, Query(description="Only items of this type.")] = None,
) -> Page[StepRecord]:
    """Outcome of each item, oldest first."""
    _existing_run(history, run_id)
    return history.steps(run_id, page, limit, ok=ok, entity_type=entity_type)


@router.post(
    "/runs/{run_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    summary="Cancel a sync",
    responses=error_responses(NO_SUCH_RUN, RUN_FINISHED, FOREIGN_PAGE),
)
async def cancel_sync(
    deployment: Deployment, trail: Trail, history: History, run_id: RunKey
) -> RunCancelled:
    """Have Prefect end a sync and answer at once; what was sent stays on record."""
    run = await asyncio.to_thread(_existing_run, history, run_id)
    flow_run = await deployment.cancel(run.flow_run_id)
    if flow_run is None or flow_run.state is None:
        raise RUN_FINISHED
    message = "The sync is being cancelled"
    if flow_run.state.is_final():
        # Prefect runs no state hook of a run that had not begun.
        await asyncio.to_thread(mirror_state, trail, flow_run, flow_run.state)
        run = await asyncio.to_thread(_existing_run, history, run_id)
        message = "The sync is cancelled"
    return RunCancelled(run_id=str(run.id), status=run.status, message=message)


def _already_running(trail: AuditTrail, flow_run: FlowRun) -> ApiError:
    message = f"A sync is already under way: {flow_run.name}"
    return SYNC_RUNNING.saying(message, {"run_id": str(open_run_of(trail, flow_run))})


def _existing_run(history: RunHistory, run_id: RunId) -> RunRecord:
    run = history.run(run_id)
    if run is None:
        raise NO_SUCH_RUN
    return run
