"""The seed's REST API: a thin door to the deployment and to the audit trail."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.exceptions import HTTPException

from deployments.api.guard import FOREIGN_PAGE, browser_guard
from deployments.api.metrics import SyncMetrics
from deployments.api.models import (
    RUN_ID_EXAMPLE,
    RUN_RESPONSE,
    RUNS_RESPONSE,
    STEPS_RESPONSE,
    ApiError,
    Health,
    PartHealth,
    RunCancelled,
    RunStarted,
    SyncRequest,
    error_responses,
)
from deployments.api.sync_deployment import PrefectUnavailable, SyncDeployment
from flows.admin_sync import admin_sync
from flows.state_mirror import mirror_run, open_run_of
from tasks.entities import EntityName
from tasks.mongo import MongoUnavailable
from tasks.settings import (
    ApiSettings,
    SettingsError,
    read_mongo_settings,
    read_settings,
)
from tasks.trail.audit import AuditTrail, RunId, RunStatus, audit_trail
from tasks.trail.history import Page, RunHistory, RunKey, RunRecord, StepRecord, run_history

API_TRIGGER: Final = "REST API"
_HEALTH_PATH: Final = "/api/health"
_HEALTH_SECONDS: Final = 3.0
"""How long a part may take to show that it is well."""

PageNumber = Annotated[int, Query(ge=1, le=1_000_000, description="Which page, from 1.")]
PageLimit = Annotated[int, Query(ge=1, le=500, description="Entries a page.")]


def _history() -> RunHistory:
    return run_history(read_mongo_settings())


def _audit() -> AuditTrail:
    return audit_trail(read_mongo_settings())


def _deployment(request: Request) -> SyncDeployment:
    deployment: SyncDeployment = request.app.state.deployment
    return deployment


History = Annotated[RunHistory, Depends(_history)]
Audit = Annotated[AuditTrail, Depends(_audit)]
Deployment = Annotated[SyncDeployment, Depends(_deployment)]

_UNAUTHORIZED: Final = ApiError(
    HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "This API asks for its bearer token"
)
_NO_SUCH_RUN: Final = ApiError(HTTPStatus.NOT_FOUND, "NOT_FOUND", "There is no such run")
_INVALID: Final = ApiError(
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "VALIDATION_ERROR",
    "The request is wrong",
    {"query.page": "Input should be greater than or equal to 1"},
)
_UNREADABLE: Final = ApiError(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", "The body is no JSON")
_UNAVAILABLE: Final = ApiError(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "UNAVAILABLE",
    "MongoDB does not answer (ServerSelectionTimeoutError): "
    "check MONGODB_URI and that the server is up",
)
_RUNNING: Final = ApiError(
    HTTPStatus.CONFLICT, "SYNC_RUNNING", "A sync is already under way", {"run_id": RUN_ID_EXAMPLE}
)
_FINISHED: Final = ApiError(
    HTTPStatus.CONFLICT, "RUN_FINISHED", "The run has ended: there is nothing left to cancel"
)

_bearer: Final = Depends(HTTPBearer(auto_error=False, description="ADMIN_API_TOKEN, if set"))
_start_lock: Final = asyncio.Lock()
_syncs = APIRouter(
    prefix="/api/admin/sync",
    tags=["sync"],
    responses=error_responses(_UNAUTHORIZED, _INVALID, _UNAVAILABLE),
    dependencies=[_bearer],
)
_state = APIRouter(tags=["state"])


@_syncs.post(
    "/run",
    status_code=HTTPStatus.ACCEPTED,
    summary="Start a sync",
    responses=error_responses(_RUNNING, _UNREADABLE, FOREIGN_PAGE),
)
async def start_sync(
    deployment: Deployment, audit: Audit, asked: Annotated[SyncRequest | None, Body()] = None
) -> RunStarted:
    """Hand a sync to Prefect and answer at once; without a body, a full one of all types."""
    options = (asked or SyncRequest()).options(API_TRIGGER)
    async with _start_lock:
        await asyncio.to_thread(audit.prepare)
        if (flow_run := await deployment.unfinished_run()) is not None:
            raise await asyncio.to_thread(_already_running, flow_run)
        flow_run = await deployment.start(options)
        run_id = await asyncio.to_thread(open_run_of, flow_run)
    return RunStarted(run_id=str(run_id), status=RunStatus.PENDING, message="Sync started")


@_syncs.get("/runs", summary="List runs", responses=RUNS_RESPONSE)
def list_runs(history: History, page: PageNumber = 1, limit: PageLimit = 50) -> Page[RunRecord]:
    """Runs, newest first."""
    return history.runs(page, limit)


@_syncs.get(
    "/runs/{run_id}",
    summary="Show a run",
    responses=RUN_RESPONSE | error_responses(_NO_SUCH_RUN),
)
def show_run(history: History, run_id: RunKey) -> RunRecord:
    """Status, totals and first errors of a run; the counts are final once it has ended."""
    return _existing_run(history, run_id)


@_syncs.get(
    "/runs/{run_id}/steps",
    summary="List the steps of a run",
    responses=STEPS_RESPONSE | error_responses(_NO_SUCH_RUN),
)
def list_steps(
    history: History,
    run_id: RunKey,
    page: PageNumber = 1,
    limit: PageLimit = 50,
    ok: Annotated[bool | None, Query(description="Only items that are in, or are not.")] = None,
    entity_type: Annotated[EntityName | None, Query(description="Only items of this type.")] = None,
) -> Page[StepRecord]:
    """What became of each item, oldest first."""
    _existing_run(history, run_id)
    return history.steps(run_id, page, limit, ok=ok, entity_type=entity_type)


@_syncs.post(
    "/runs/{run_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    summary="Cancel a sync",
    responses=error_responses(_NO_SUCH_RUN, _FINISHED, FOREIGN_PAGE),
)
async def cancel_sync(deployment: Deployment, history: History, run_id: RunKey) -> RunCancelled:
    """Have Prefect end a sync and answer at once; what was sent stays on record."""
    run = await asyncio.to_thread(_existing_run, history, run_id)
    flow_run = await deployment.cancel(run.flow_run_id)
    if flow_run is None or flow_run.state is None:
        raise _FINISHED
    message = "The sync is being cancelled"
    if flow_run.state.is_final():
        # Prefect runs no state hook of a run that had not begun.
        await asyncio.to_thread(mirror_run, admin_sync, flow_run, flow_run.state)
        run = await asyncio.to_thread(_existing_run, history, run_id)
        message = "The sync is cancelled"
    return RunCancelled(run_id=run.id, status=run.status, message=message)


@_state.get(
    _HEALTH_PATH,
    summary="Tell whether a sync could run",
    responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": Health}},
)
async def health(deployment: Deployment, response: Response) -> Health:
    """MongoDB, Prefect and the configuration of the hub, apart; 503 unless all are well."""
    mongodb, prefect = await asyncio.gather(
        _checked(_mongodb_health(), "MONGODB_URI"),
        _checked(_prefect_health(deployment), "PREFECT_API_URL"),
    )
    hub = _hub_health()
    is_well = mongodb.ok and prefect.ok and hub.ok
    if not is_well:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return Health(ok=is_well, mongodb=mongodb, prefect=prefect, hub=hub)


@_state.get(
    "/api/metrics",
    summary="Tell Prometheus what became of the syncs",
    response_class=PlainTextResponse,
    responses=error_responses(_UNAUTHORIZED, _UNAVAILABLE),
    dependencies=[_bearer],
)
def metrics(history: History) -> Response:
    """Items, requests to Stage 1 and runs, in the text format of Prometheus."""
    return Response(
        generate_latest(SyncMetrics(history)), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
    )


async def _checked(check: Awaitable[str], variable: str) -> PartHealth:
    try:
        return PartHealth(ok=True, message=await asyncio.wait_for(check, _HEALTH_SECONDS))
    except TimeoutError:
        message = f"No answer within {_HEALTH_SECONDS:g} seconds: check {variable}"
        return PartHealth(ok=False, message=message)
    except (MongoUnavailable, PrefectUnavailable) as error:
        return PartHealth(ok=False, message=str(error))


async def _mongodb_health() -> str:
    await asyncio.to_thread(_history().ping)
    return "MongoDB answers"


async def _prefect_health(deployment: SyncDeployment) -> str:
    if await deployment.has_worker():
        return "Prefect answers, and a worker is up"
    return "Prefect answers, but no worker is up: runs wait until one is"


def _hub_health() -> PartHealth:
    try:
        read_settings()
    except SettingsError as error:
        return PartHealth(ok=False, message=str(error))
    return PartHealth(ok=True, message="The settings for Stage 1 are complete")


def _already_running(flow_run: FlowRun) -> ApiError:
    message = f"A sync is already under way: {flow_run.name}"
    return _RUNNING.saying(message, {"run_id": str(open_run_of(flow_run))})


def _existing_run(history: RunHistory, run_id: RunId) -> RunRecord:
    run = history.run(run_id)
    if run is None:
        raise _NO_SUCH_RUN
    return run


def create_app(settings: ApiSettings) -> FastAPI:
    """Return the API as an ASGI application."""

    @asynccontextmanager
    async def with_prefect(app: FastAPI) -> AsyncIterator[None]:
        async with get_client() as client:
            app.state.deployment = SyncDeployment(client)
            yield

    app = FastAPIOffline(
        title="Backoffice Sync Orchestrator",
        description="Start syncs of the back office into Stage 1, and see what became of them.",
        version="0.1.0",
        docs_url="/api/docs",
        redoc_url=None,
        openapi_url="/api/openapi.json",
        swagger_ui_oauth2_redirect_url="/api/docs/oauth2-redirect",
        static_url="/api/docs/static",
        lifespan=with_prefect,
    )
    app.include_router(_syncs)
    app.include_router(_state)
    _tell_errors_in_one_shape(app)
    if settings.token is not None:
        _require_token(app, f"Bearer {settings.token.get_secret_value()}".encode())
    else:
        _guard_from_other_sites(app, settings.host)
    return app


def _require_token(app: FastAPI, expected: bytes) -> None:
    @app.middleware("http")
    async def authorize(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        given = request.headers.get("Authorization", "").encode()
        if request.url.path == _HEALTH_PATH or hmac.compare_digest(given, expected):
            return await call_next(request)
        response = _error_response(_UNAUTHORIZED)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


def _guard_from_other_sites(app: FastAPI, host: str) -> None:
    refusal_of = browser_guard(host)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        refusal = refusal_of(request)
        return _error_response(refusal) if refusal else await call_next(request)


def _tell_errors_in_one_shape(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        return _error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = error.errors()
        if any(fault["type"] == "json_invalid" for fault in faults):
            return _error_response(_UNREADABLE)
        details = {".".join(map(str, fault["loc"])): fault["msg"] for fault in faults}
        return _error_response(_INVALID.saying(str(_INVALID), details))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        response = _error_response(ApiError(status, status.name, status.description))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(SettingsError)
    @app.exception_handler(MongoUnavailable)
    @app.exception_handler(PrefectUnavailable)
    async def unavailable(request: Request, error: Exception) -> JSONResponse:
        return _error_response(_UNAVAILABLE.saying(str(error)))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        message = "Something went wrong here; the log of the API says what"
        return _error_response(ApiError(status, "INTERNAL_ERROR", message))


def _error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body.model_dump(), status_code=error.status)
