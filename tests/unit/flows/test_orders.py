"""Orders: what a state in Prefect tells the process that executes the flow run."""

import asyncio
import uuid
from typing import Any
from unittest.mock import AsyncMock, Mock

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Late,
    Paused,
    Pending,
    Retrying,
    Running,
    Scheduled,
    Suspended,
)

from flows.conclusion import PARTIAL
from flows.orders import flow_run_in_prefect, order_of
from tasks.errors import (
    FLOW_RUN_DELETED,
    RUN_CANCELLED,
    RUN_SUSPENDED,
    RUN_TAKEN_OVER,
    LeaveReason,
    StopReason,
)
from tasks.trail.ownership import WAITING

FLOW_RUN = uuid.UUID(int=1)


def flow_run(state: State[Any] | None) -> FlowRun:
    return FlowRun(id=FLOW_RUN, flow_id=uuid.uuid4(), name="its name", state=state)


@pytest.mark.parametrize(
    ("state", "order"),
    [
        (Running(), None),
        (Running(name=WAITING), None),
        (Retrying(), None),
        (Cancelling(), RUN_CANCELLED),
        (Cancelled(), RUN_CANCELLED),
        (Paused(), RUN_SUSPENDED),
        (Suspended(), RUN_SUSPENDED),
        (Pending(), RUN_TAKEN_OVER),
        (Scheduled(), RUN_TAKEN_OVER),
        (AwaitingRetry(), RUN_TAKEN_OVER),
        (Late(), RUN_TAKEN_OVER),
        (Completed(), None),
        (Failed(), None),
        (Failed(name=PARTIAL), None),
        (Crashed(), None),
        (None, None),
    ],
    ids=lambda value: getattr(value, "name", "-"),
)
def test_a_state_is_an_order(state: State[Any] | None, order: StopReason | None) -> None:
    assert order_of(flow_run(state)) == order


def test_a_flow_run_that_was_deleted_is_left() -> None:
    assert order_of(None) == FLOW_RUN_DELETED


@pytest.mark.parametrize("state_type", StateType)
def test_only_a_cancellation_stops_a_run_for_good(state_type: StateType) -> None:
    order = order_of(flow_run(State(type=state_type)))
    is_cancelled = state_type in (StateType.CANCELLING, StateType.CANCELLED)
    assert (order is not None and not isinstance(order, LeaveReason)) is is_cancelled


def test_a_flow_run_is_read_as_prefect_has_it() -> None:
    known = flow_run(Running())
    prefect: Any = Mock(read_flow_run=AsyncMock(return_value=known))
    assert asyncio.run(flow_run_in_prefect(prefect, FLOW_RUN)) is known
    prefect.read_flow_run.assert_awaited_once_with(FLOW_RUN)


def test_a_flow_run_that_prefect_does_not_know_is_none() -> None:
    gone: Any = Mock(read_flow_run=AsyncMock(side_effect=ObjectNotFound(ValueError())))
    assert asyncio.run(flow_run_in_prefect(gone, FLOW_RUN)) is None


def test_a_prefect_that_does_not_answer_gives_no_order() -> None:
    away: Any = Mock(read_flow_run=AsyncMock(side_effect=httpx.ConnectError("away")))
    with pytest.raises(httpx.ConnectError):
        asyncio.run(flow_run_in_prefect(away, FLOW_RUN))
