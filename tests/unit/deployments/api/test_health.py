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
    *,
    prefect: Any = None,
    mongodb: Any = None,
    paces: dict[str, float] | Exception | None = None,
    limit: Any = None,
) -> tuple[int, Health]:
    """Return the answer where the parts answer that, or raise it."""
    deployment = Mock(
        obstacle=AsyncMock(side_effect=[prefect]), request_limit=AsyncMock(side_effect=[limit])
    )
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
    assert answer.held_up_by == []


def test_a_stage_1_that_throttles_is_told_and_is_not_ill() -> None:
    status, answer = told(paces={"tenant": 18.4, "client": 0.0})
    assert (status, answer.ok) == (200, True)
    assert answer.held_up_by == [
        "client waits: its endpoint is down, or asks for a pause (Retry-After)",
        "tenant sends 18 requests/s: Stage 1 throttles",
    ]


def test_a_limit_that_is_switched_off_is_told_and_nothing_is_ill() -> None:
    off = Mock(active=False)
    status, answer = told(limit=off, paces={"tenant": 1.0})
    assert (status, answer.ok) == (200, True)
    limit, pace = answer.held_up_by
    assert "is switched off: a sync switches it on" in limit
    assert pace == "tenant sends 1 requests/s: Stage 1 throttles"


@pytest.mark.parametrize("fault", [PrefectUnavailable("away"), TimeoutError()])
def test_what_can_not_be_told_of_the_limit_is_not_ill_by_itself(fault: Exception) -> None:
    status, answer = told(limit=fault, paces=MongoUnavailable("away"))
    assert (status, answer.ok, answer.held_up_by) == (200, True, [])


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
