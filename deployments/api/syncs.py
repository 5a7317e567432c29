"""The seed's endpoints: start, list, show and cancel syncs."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Body, Depends, Path, Query
from fastapi.security import HTTPBearer
from prefect.client.schemas.objects import FlowRun

from deployments.api.dependencies import Deployment, Followed, History, Retry, Trail
from deployments.api.errors import (
    BODY_TOO_LARGE,
    FOREIGN_PAGE,
    INVALID,
    NO_SUCH_RUN,
    RUN_FINISHED,
    RUN_ID_EXAMPLE,
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
from deployments.api.run_view import RunPage, ShownRun, shown_runs, status_shown
from deployments.api.sync_deployment import (
    PrefectUnavailable,
    RunEnded,
    SyncDeployment,
    state_name,
)
from flows.ending import cancel_in_trail
from flows.state_mirror import mirror_state, open_run_of
from tasks.entities import EntityName
from tasks.errors import FLOW_RUN_DELETED
from tasks.trail.audit_trail import AuditTrail
from tasks.trail.fields import RunId
from tasks.trail.history import RunHistory, StepPage
from tasks.trail.runs import RunOptions, RunRecord
from tasks.trail.stages import RunStatus
from tasks.trail.step_cursor import CURSOR_PATTERN, StepCursor

_OBSTACLE_SECONDS: Final = 2.0
"""How long the start of a sync, which Prefect has by then, waits to hear whether it begins."""
BEARER: Final = Depends(HTTPBearer(auto_error=False, description="ADMIN_API_TOKEN, if set"))

PageNumber = Annotated[int, Query(ge=1, le=1_000_000, description="Which page, from 1.")]
PageLimit = Annotated[int, Query(ge=1, le=500, description="Entries a page.")]
_RUN_NAME: Final = "`run_id` of the run, or the id of its flow run."
RunName = Annotated[str, Path(description=_RUN_NAME, examples=[RUN_ID_EXAMPLE])]
_FULL_SYNC: Final = SyncRequest()
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
    responses=error_responses(SYNC_RUNNING, UNREADABLE, BODY_TOO_LARGE, FOREIGN_PAGE),
)
async def start_sync(
    deployment: Deployment,
    trail: Trail,
    retry: Retry,
    followed: Followed,
    asked: Annotated[SyncRequest, Body()] = _FULL_SYNC,
) -> RunStarted:
    """Hand a sync to Prefect and answer at once; without a body, a full one of all types.

    It waits while no worker is up or the work pool is paused; the message says so.
    """
    options = asked.options()
    await asyncio.to_thread(retry.await_mongodb)
    flow_run, is_new = await _start(deployment, trail, options)
    run_id = await asyncio.to_thread(open_run_of, trail, flow_run)
    if not is_new:
        raise _already_running(run_id, flow_run.name)
    followed.follow(trail, str(flow_run.id))
    message = await _told_of(deployment, flow_run)
    return RunStarted(
        run_id=str(run_id), status=RunStatus.RUNNING, state=state_name(flow_run), message=message
    )


@router.get("/runs", summary="List runs", responses=RUNS_RESPONSE)
async def list_runs(
    deployment: Deployment, history: History, page: PageNumber = 1, limit: PageLimit = 50
) -> RunPage:
    """Runs, newest first."""
    found = await asyncio.to_thread(history.runs, page, limit)
    items = await shown_runs(deployment, found.items)
    return RunPage(page=page, limit=limit, total=found.total, items=items)


@router.get(
    "/runs/{run_id}",
    summary="Show a run",
    responses=RUN_RESPONSE | error_responses(NO_SUCH_RUN),
)
async def show_run(deployment: Deployment, history: History, run_id: RunName) -> ShownRun:
    """Status, totals and stages of a run; its first errors come at its end."""
    entry = await asyncio.to_thread(history.named, run_id)
    if entry is None:
        raise NO_SUCH_RUN
    (run,) = await shown_runs(deployment, [entry])
    return run


@router.get(
    "/runs/{run_id}/steps",
    summary="List the steps of a run",
    responses=STEPS_RESPONSE | error_responses(NO_SUCH_RUN),
)
def list_steps(
    history: History,
    run_id: RunName,
    page: PageNumber = 1,
    limit: PageLimit = 50,
    ok: Annotated[bool | None, Query(description="Only items that are in, or are not.")] = None,
    entity_type: Annotated[EntityName | None, Query(description="Only items of this type.")] = None,
    after: Annotated[
        str | None,
        Query(
            pattern=CURSOR_PATTERN,
            description="`next` of the page before: pages count from there. So each page of a long "
            "list comes as soon as the first one; a high `page` does not.",
        ),
    ] = None,
) -> StepPage:
    """Outcome of each item, oldest first."""
    run = existing_run(history, run_id)
    cursor = StepCursor.parsed(after) if after else None
    return history.steps(run.id, page, limit, ok=ok, entity_type=entity_type, after=cursor)


@router.post(
    "/runs/{run_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    summary="Cancel a sync",
    responses=error_responses(NO_SUCH_RUN, RUN_FINISHED, BODY_TOO_LARGE, FOREIGN_PAGE),
)
async def cancel_sync(
    deployment: Deployment, trail: Trail, history: History, followed: Followed, run_id: RunName
) -> RunCancelled:
    """Have Prefect end a sync and answer at once; what was sent stays on record."""
    run = await asyncio.to_thread(existing_run, history, run_id)
    try:
        flow_run = await deployment.cancel(run.flow_run_id)
    except RunEnded:
        raise RUN_FINISHED from None
    if flow_run is None:
        await asyncio.to_thread(_end_unknown, trail, run)
    elif flow_run.state is not None and flow_run.state.is_final():
        # Prefect runs no state hook of a run that had not begun.
        await asyncio.to_thread(mirror_state, trail, flow_run, flow_run.state)
    else:
        followed.follow(trail, run.flow_run_id)
        return _cancelled(run, flow_run, "The sync is being cancelled")
    run = await asyncio.to_thread(existing_run, history, run_id)
    return _cancelled(run, flow_run, "The sync is cancelled")


async def _start(
    deployment: SyncDeployment, trail: AuditTrail, options: RunOptions
) -> tuple[FlowRun, bool]:
    """Return a flow run, and whether it is new: of requests at the same moment, one makes it."""
    while True:
        # Read first: whoever starts a run after this is seen below, or makes the same flow run.
        key = await asyncio.to_thread(trail.runs.next_key)
        await _require_none_under_way(deployment, trail)
        flow_run, is_new = await deployment.start(options, key)
        if flow_run.state is None or not flow_run.state.is_final():
            return flow_run, is_new
        # It was cancelled before it was on record. Once it is, there is another key.
        await asyncio.to_thread(mirror_state, trail, flow_run, flow_run.state)


async def _told_of(deployment: SyncDeployment, flow_run: FlowRun) -> str:
    """Return whether a sync that Prefect has will begin, as far as Prefect tells soon."""
    try:
        async with asyncio.timeout(_OBSTACLE_SECONDS):
            obstacle = await deployment.obstacle_to(flow_run)
    except (PrefectUnavailable, TimeoutError):
        return "Prefect has the sync, and does not tell whether a worker is up"
    return f"The sync waits. {obstacle}" if obstacle else "Sync started"


async def _require_none_under_way(deployment: SyncDeployment, trail: AuditTrail) -> None:
    run_id = await asyncio.to_thread(trail.ownership.under_way)
    if run_id is not None:
        run = await asyncio.to_thread(trail.runs.find, run_id)
        raise _already_running(run_id, run.flow_run_name if run else "")
    flow_run = await deployment.due_run()
    if flow_run is not None:
        run_id = await asyncio.to_thread(open_run_of, trail, flow_run)
        raise _already_running(run_id, flow_run.name)


def _already_running(run_id: RunId, name: str) -> ApiError:
    message = f"A sync is already under way: {name}"
    return SYNC_RUNNING.saying(message, {"run_id": str(run_id)})


def _end_unknown(trail: AuditTrail, run: RunRecord) -> None:
    """End a run whose flow run was deleted in Prefect; its process, if any, stops by that."""
    if run.status.is_terminal:
        raise RUN_FINISHED
    cancel_in_trail(trail, run.id, FLOW_RUN_DELETED)


def _cancelled(run: RunRecord, flow_run: FlowRun | None, message: str) -> RunCancelled:
    state = state_name(flow_run) if flow_run else run.state
    return RunCancelled(
        run_id=str(run.id), status=status_shown(run.status), state=state, message=message
    )


def existing_run(history: RunHistory, name: str) -> RunRecord:
    """Return the run of that `run_id`, or of the flow run of that id.

    Raises:
        ApiError: there is none, or its document has another shape.
    """
    run = history.named(name)
    if not isinstance(run, RunRecord):
        raise NO_SUCH_RUN
    return run
