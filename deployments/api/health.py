"""`GET /api/health`: whether a sync could run, and what would hold it up."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Response

from deployments.api.dependencies import Deployment, History, SyncFigures
from deployments.api.held_up import limit_in_words, paces_in_words
from deployments.api.models import Health, PartHealth
from deployments.api.sync_deployment import PrefectUnavailable, SyncDeployment
from tasks.limit import limit_name
from tasks.mongo_errors import MongoError
from tasks.settings import SettingsError, read_settings
from tasks.trail.figures import Figures
from tasks.trail.history import RunHistory

HEALTH_PATH: Final = "/api/health"
_PART_SECONDS: Final = 3.0
"""How long a part may take to show that it is well."""

router = APIRouter(tags=["state"])


@router.head(HEALTH_PATH, include_in_schema=False)
@router.get(
    HEALTH_PATH,
    summary="Tell whether a sync could run",
    responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": Health}},
)
async def health(
    deployment: Deployment, history: History, figures: SyncFigures, response: Response
) -> Health:
    """MongoDB, Prefect and the configuration of the hub, apart; 503 unless all are well.

    What only holds a sync up does not count.
    """
    mongodb, prefect, held_by_limit, held_by_hub = await asyncio.gather(
        _checked(_mongodb_health(history), "MONGODB_URI"),
        _checked(_prefect_health(deployment), "PREFECT_API_URL"),
        _told(_limit(deployment)),
        _told(_paces(figures)),
    )
    hub = _hub_health()
    is_well = mongodb.ok and prefect.ok and hub.ok
    if not is_well:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return Health(
        ok=is_well,
        mongodb=mongodb,
        prefect=prefect,
        hub=hub,
        held_up_by=[*held_by_limit, *held_by_hub],
    )


async def _checked(check: Awaitable[str], variable: str) -> PartHealth:
    try:
        return PartHealth(ok=True, message=await asyncio.wait_for(check, _PART_SECONDS))
    except TimeoutError:
        message = f"No answer within {_PART_SECONDS:g} seconds: check {variable}"
        return PartHealth(ok=False, message=message)
    except (MongoError, PrefectUnavailable) as error:
        return PartHealth(ok=False, message=str(error))


async def _mongodb_health(history: RunHistory) -> str:
    await asyncio.to_thread(history.ping)
    return "MongoDB answers"


async def _prefect_health(deployment: SyncDeployment) -> str:
    if obstacle := await deployment.obstacle():
        raise PrefectUnavailable(obstacle)
    return "Prefect answers, and a worker is up"


def _hub_health() -> PartHealth:
    # Flow runs read these when they begin, so what they say now is what counts.
    try:
        read_settings()
    except SettingsError as error:
        return PartHealth(ok=False, message=str(error))
    return PartHealth(ok=True, message="The settings for Stage 1 are complete")


async def _told(look: Awaitable[list[str]]) -> list[str]:
    """Return what a look at a part has found; nothing where the part is not well."""
    with suppress(TimeoutError, MongoError, PrefectUnavailable, SettingsError):
        return await asyncio.wait_for(look, _PART_SECONDS)
    return []


async def _limit(deployment: SyncDeployment) -> list[str]:
    settings = read_settings()
    limit = await deployment.request_limit(limit_name(settings))
    return list(limit_in_words(limit, settings.concurrency)) if limit else []


async def _paces(figures: Figures) -> list[str]:
    return list(paces_in_words(await asyncio.to_thread(figures.paces)))
