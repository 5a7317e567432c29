"""Dependencies of the REST API's operations, made once for the application."""

from typing import Annotated

from fastapi import Depends, Request

from deployments.api.followed_runs import FollowedRuns
from deployments.api.sync_deployment import SyncDeployment
from tasks.mongo import MongoRetry, mongo_retry
from tasks.settings import MongoSettings
from tasks.trail.audit_trail import AuditTrail, audit_trail
from tasks.trail.figures import Figures, figures
from tasks.trail.history import RunHistory, run_history
from tasks.trail.item_history import ItemHistory, item_history


def _settings(request: Request) -> MongoSettings:
    settings: MongoSettings = request.app.state.mongo_settings
    return settings


Settings = Annotated[MongoSettings, Depends(_settings)]


def _history(settings: Settings) -> RunHistory:
    return run_history(settings)


def _items(settings: Settings) -> ItemHistory:
    return item_history(settings)


def _figures(settings: Settings) -> Figures:
    return figures(settings)


def _trail(settings: Settings) -> AuditTrail:
    return audit_trail(settings)


def _retry(settings: Settings) -> MongoRetry:
    return mongo_retry(settings)


def _deployment(request: Request) -> SyncDeployment:
    deployment: SyncDeployment = request.app.state.deployment
    return deployment


def _followed(request: Request) -> FollowedRuns:
    followed: FollowedRuns = request.app.state.followed
    return followed


History = Annotated[RunHistory, Depends(_history)]
SyncItems = Annotated[ItemHistory, Depends(_items)]
SyncFigures = Annotated[Figures, Depends(_figures)]
Retry = Annotated[MongoRetry, Depends(_retry)]
Trail = Annotated[AuditTrail, Depends(_trail)]
Deployment = Annotated[SyncDeployment, Depends(_deployment)]
Followed = Annotated[FollowedRuns, Depends(_followed)]
