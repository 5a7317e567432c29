"""The REST API as an application: the seed's endpoints, health and metrics, behind one guard."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from prefect.client.orchestration import get_client

from deployments.api import health, items, metrics, syncs
from deployments.api.body_limit import BodyLimit
from deployments.api.errors import UNAUTHORIZED, answer_errors_in_one_shape, error_response
from deployments.api.followed_runs import FollowedRuns
from deployments.api.guard import browser_guard
from deployments.api.json_body import JsonBody
from deployments.api.sync_deployment import SyncDeployment
from deployments.version import VERSION
from tasks.settings import ApiSettings, MongoSettings


def create_app(settings: ApiSettings, mongo_settings: MongoSettings) -> FastAPI:
    """Return the API as an ASGI application."""

    @asynccontextmanager
    async def with_prefect(app: FastAPI) -> AsyncIterator[None]:
        async with get_client() as client:
            deployment = SyncDeployment(client, settings, mongo_settings.mongodb_database)
            followed = FollowedRuns(deployment)
            app.state.deployment, app.state.followed = deployment, followed
            yield
            await followed.stop()

    app = FastAPIOffline(
        title="Backoffice Sync Orchestrator",
        description="Start syncs of the back office into Stage 1, and see what became of them.",
        version=VERSION,
        docs_url="/api/docs",
        redoc_url=None,
        openapi_url="/api/openapi.json",
        swagger_ui_oauth2_redirect_url="/api/docs/oauth2-redirect",
        static_url="/api/docs/static",
        generate_unique_id_function=lambda route: route.name,
        lifespan=with_prefect,
    )
    app.state.mongo_settings = mongo_settings
    for router in (syncs.router, items.router, health.router, metrics.router):
        app.include_router(router)
    answer_errors_in_one_shape(app)
    app.add_middleware(JsonBody)
    app.add_middleware(BodyLimit)
    # Comes before the limit: who is not let in is answered without reading the body.
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
        if request.url.path == health.HEALTH_PATH or hmac.compare_digest(given, expected):
            return await call_next(request)
        response = error_response(UNAUTHORIZED)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


def _guard_from_other_sites(app: FastAPI, host: str) -> None:
    refusal_of = browser_guard(host)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        refusal = refusal_of(request)
        return error_response(refusal) if refusal else await call_next(request)
