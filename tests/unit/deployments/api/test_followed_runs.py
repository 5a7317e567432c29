"""Runs that may end before they speak: they are looked at until they have begun or ended."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling, Pending, Running, Scheduled

from deployments.api.followed_runs import FollowedRuns
from deployments.api.sync_deployment import PrefectUnavailable
from tasks.mongo_errors import MongoUnavailable

TRAIL: Any = object()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Mock:
    monkeypatch.setattr("deployments.api.followed_runs._LOOK_SECONDS", 0.0)
    mirror = Mock()
    monkeypatch.setattr("deployments.api.followed_runs.mirror_state", mirror)
    return mirror


def followed(*told: Any, start_time: Any = None) -> AsyncMock:
    """Follow a flow run that is so in turn, to the end; return what was asked."""
    answers = [
        FlowRun(flow_id=uuid4(), state=state, start_time=start_time)
        if hasattr(state, "is_final")
        else state
        for state in told
    ]
    state: Any = Cancelled(message="before it began")
    ended = AsyncMock(return_value=FlowRun(flow_id=uuid4(), state=state))
    deployment = Mock(flow_run=AsyncMock(side_effect=answers), end_cancelled=ended)

    async def follow() -> None:
        followed_runs = FollowedRuns(deployment)
        for _ in range(2):
            followed_runs.follow(TRAIL, "a flow run")
        this = asyncio.current_task()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not this))

    asyncio.run(follow())
    asked: AsyncMock = deployment.flow_run
    return asked


def test_an_end_that_nobody_else_tells_is_mirrored(mirror: Mock) -> None:
    end: Any = Cancelled()
    asked = followed(Scheduled(), Pending(), Cancelling(), end, start_time=datetime.now(UTC))
    assert asked.await_count == 4
    ((trail, _, state),) = [call.args for call in mirror.call_args_list]
    assert (trail, state.name) == (TRAIL, "Cancelled")


def test_one_that_is_cancelled_before_it_begins_is_ended_here(mirror: Mock) -> None:
    assert followed(Pending(), Cancelling()).await_count == 2
    ((_, _, state),) = [call.args for call in mirror.call_args_list]
    assert state.message == "before it began"


@pytest.mark.parametrize("state", [Running(), None])
def test_one_that_has_begun_or_is_deleted_is_followed_no_longer(mirror: Mock, state: Any) -> None:
    assert followed(Pending(), state).await_count == 2
    mirror.assert_not_called()


def test_what_is_away_is_asked_again(mirror: Mock) -> None:
    mirror.side_effect = [MongoUnavailable("away"), None]
    assert followed(PrefectUnavailable("away"), Cancelled(), Cancelled()).await_count == 3
    assert mirror.call_count == 2


def test_nothing_is_followed_after_the_end_of_the_api(mirror: Mock) -> None:
    async def follow_and_stop() -> None:
        followed_runs = FollowedRuns(Mock(flow_run=AsyncMock(return_value=None)))
        followed_runs.follow(TRAIL, "a flow run")
        await followed_runs.stop()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(follow_and_stop())
    mirror.assert_not_called()
