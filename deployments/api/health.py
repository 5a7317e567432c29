"""`GET /api/health`: whether a sync could run."""

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Response

from deployments.api.dependencies import Deployment, History, SyncFigures
from deployments.api.models import Health, PartHealth
from deployments.api.sync_deployment import PrefectUnavailable, SyncDeployment
from tasks.mongo_errors import MongoError
from tasks.settings import SettingsError, read_settings
from tasks.trail.figures import Figures
from tasks.trail.history import RunHistory
from tasks.trail.stages import pace_in_words

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
    """MongoDB, Prefect and the configuration of the hub, apart; 503 unless all are well."""
    mongodb, prefect, paces = await asyncio.gather(
        _checked(_mongodb_health(history), "MONGODB_URI"),
        _checked(_prefect_health(deployment), "PREFECT_API_URL"),
        _checked(_paces(figures), "MONGODB_URI"),
    )
    hub = _hub_health(paces.message if paces.ok else "")
    is_well = mongodb.ok and prefect.ok and hub.ok
    if not is_well:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return Health(ok=is_well, mongodb=mongodb, prefect=prefect, hub=hub)


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


async def _paces(figures: Figures) -> str:
    paces = await asyncio.to_thread(figures.paces)
    return "".join(f"; {name} is {pace_in_words(pace)}" for name, pace in sorted(paces.items()))


def _hub_health(paces: str) -> PartHealth:
    # Flow runs read these when they begin, so what they say now is what counts.
    try:
        read_settings()
    except SettingsError as error:
        return PartHealth(ok=False, message=str(error))
    return PartHealth(ok=True, message=f"The settings for Stage 1 are complete{paces}")
