"""Health: each part is told apart, and a sync could run only where all are well."""

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from fastapi import Response

from deployments.api.health import health
from deployments.api.models import Health
from deployments.api.sync_deployment import PrefectUnavailable
from tasks.entities import ENTITY_TYPES
from tasks.mongo_errors import MongoUnavailable


@pytest.fixture(autouse=True)
def _settings_of_a_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    for entity_type in ENTITY_TYPES:
        monkeypatch.setenv(entity_type.url_variable, "https://hub.example/upsert")
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", "a-token")
    monkeypatch.setenv("MONGODB_URI", "mongodb://localhost")


def told(
    *, prefect: Any = None, mongodb: Any = None, paces: dict[str, float] | Exception | None = None
) -> tuple[int, Health]:
    """Return the answer where the parts answer that, or raise it."""
    deployment = Mock(obstacle=AsyncMock(side_effect=[prefect]))
    history = Mock(ping=Mock(side_effect=[mongodb]))
    figures = Mock(paces=Mock(side_effect=[paces or {}]))
    response = Response()
    answer = asyncio.run(health(deployment, history, figures, response))
    return response.status_code, answer


def test_all_parts_are_well() -> None:
    status, answer = told()
    assert (status, answer.ok) == (200, True)
    assert answer.mongodb.message == "MongoDB answers"
    assert answer.prefect.message == "Prefect answers, and a worker is up"
    assert answer.hub.message == "The settings for Stage 1 are complete"


def test_a_stage_1_that_throttles_is_told_and_is_not_ill() -> None:
    status, answer = told(paces={"tenant": 18.4, "client": 0.0})
    assert (status, answer.ok) == (200, True)
    assert answer.hub.message == (
        "The settings for Stage 1 are complete; client is waiting for Stage 1; "
        "tenant is paced at 18 requests/s"
    )


def test_the_settings_are_told_where_it_can_not_be_told_what_is_paced() -> None:
    _, answer = told(mongodb=MongoUnavailable("away"), paces=MongoUnavailable("away"))
    assert answer.hub.message == "The settings for Stage 1 are complete"


@pytest.mark.parametrize(
    ("parts", "ill", "message"),
    [
        ({"prefect": "no worker is up"}, "prefect", "no worker is up"),
        ({"prefect": PrefectUnavailable("no deployment")}, "prefect", "no deployment"),
        ({"mongodb": MongoUnavailable("it is away")}, "mongodb", "it is away"),
        (
            {"mongodb": TimeoutError()},
            "mongodb",
            "No answer within 3 seconds: check MONGODB_URI",
        ),
        (
            {"prefect": TimeoutError()},
            "prefect",
            "No answer within 3 seconds: check PREFECT_API_URL",
        ),
    ],
)
def test_a_part_that_is_ill_is_told_apart(parts: dict[str, Any], ill: str, message: str) -> None:
    status, answer = told(**parts)
    assert (status, answer.ok) == (503, False)
    assert getattr(answer, ill).message == message
    assert [name for name in ("mongodb", "prefect", "hub") if not getattr(answer, name).ok] == [ill]


def test_settings_for_stage_1_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADMIN_SYNC_TOKEN")
    status, answer = told()
    assert (status, answer.hub.ok) == (503, False)
    assert "ADMIN_SYNC_TOKEN is missing" in answer.hub.message
