"""Runs as the API shows them: `running` until they have ended, with what Prefect says of them."""

import asyncio
from collections.abc import Iterable
from typing import Any
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.api.run_view import RunView, ShownRun, shown_runs
from deployments.api.sync_deployment import PrefectUnavailable
from tasks.trail.fields import ForeignDocument
from tasks.trail.history import RunEntry
from tasks.trail.runs import RunRecord
from tasks.trail.stages import UNFINISHED, RunStatus
from tests.item_documents import run_document

FLOW_RUN_ID = "39f453ec-7ef3-4310-9f72-4de981dc45f3"


def run(status: RunStatus, flow_run_id: str = FLOW_RUN_ID, **fields: Any) -> RunRecord:
    return RunRecord.model_validate(
        run_document("tenant", status=status, flow_run_id=flow_run_id, **fields)
    )


def shown(states: Any, *entries: RunEntry) -> tuple[list[ShownRun], AsyncMock]:
    """Return the runs as they are shown where Prefect tells that, and what it was asked."""
    ask = AsyncMock(side_effect=states)
    return asyncio.run(shown_runs(Mock(states=ask), entries)), ask


def shown_run(states: Any, entry: RunEntry) -> RunView:
    ((view,), _) = shown(states, entry)
    assert isinstance(view, RunView)
    return view


@pytest.mark.parametrize("status", UNFINISHED)
def test_a_run_is_running_until_it_has_ended_in_the_state_that_prefect_tells(
    status: RunStatus,
) -> None:
    view = shown_run([{FLOW_RUN_ID: "AwaitingConcurrencySlot"}], run(status, state="Running"))
    assert (view.status, view.state) == (RunStatus.RUNNING, "AwaitingConcurrencySlot")


def test_the_counts_of_a_run_that_goes_on_are_those_on_record() -> None:
    stage = {"entity_type": "tenant", "total": 9, "success": 4, "failed": 1, "retrying": 2}
    totals = {"total": 9, "success": 4, "failed": 1, "skipped": 0}
    view = shown_run([{}], run(RunStatus.RUNNING, totals=totals, stages=[stage]))
    told = view.model_dump(mode="json")
    assert told["totals"] == totals
    assert told["stages"][0].items() >= stage.items()


async def nothing(_: Iterable[str]) -> dict[str, str]:
    return {}


async def never(_: Iterable[str]) -> dict[str, str]:
    await asyncio.Event().wait()
    return {}


@pytest.mark.parametrize("states", [nothing, PrefectUnavailable("away"), never])
def test_where_prefect_tells_no_state_that_of_the_trail_is_shown(
    monkeypatch: pytest.MonkeyPatch, states: Any
) -> None:
    monkeypatch.setattr("deployments.api.run_view._STATES_SECONDS", 0.01)
    for state in ("Waiting", None):
        view = shown_run(states, run(RunStatus.PENDING, state=state))
        assert (view.status, view.state) == (RunStatus.RUNNING, state)


@pytest.mark.parametrize("status", [each for each in RunStatus if each.is_terminal])
def test_a_run_that_has_ended_is_shown_as_it_is_on_record_and_prefect_is_not_asked(
    status: RunStatus,
) -> None:
    (view,), ask = shown([], run(status, state="Stopped", message="said"))
    assert isinstance(view, RunView)
    assert (view.status, view.state, view.message) == (status, "Stopped", "said")
    assert view.stages[0].entity_type == "tenant"
    ask.assert_not_awaited()


def test_prefect_is_asked_once_for_all_that_have_not_ended() -> None:
    ids = [str(uuid4()) for _ in range(3)]
    statuses = [RunStatus.PENDING, RunStatus.SUCCESS, RunStatus.RUNNING]
    foreign = ForeignDocument.model_validate({"_id": 1, "document": "{}"})
    entries = [run(status, each) for status, each in zip(statuses, ids, strict=True)]
    views, ask = shown([{ids[0]: "Late", ids[2]: "Running"}], foreign, *entries)
    assert views[0] is foreign
    assert [view.state for view in views[1:] if isinstance(view, RunView)] == [
        "Late",
        None,
        "Running",
    ]
    ask.assert_awaited_once_with([ids[0], ids[2]])


@pytest.mark.parametrize(
    ("flow_run_id", "page"),
    [
        (FLOW_RUN_ID, f"http://prefect.example:4200/runs/flow-run/{FLOW_RUN_ID}"),
        ("no id of Prefect's", None),
        ("", None),
    ],
)
def test_the_page_of_a_run_is_told_without_the_password_of_prefect(
    flow_run_id: str, page: str | None
) -> None:
    with temporary_settings({PREFECT_API_URL: "http://user:marked@prefect.example:4200/api"}):
        assert shown_run([], run(RunStatus.SUCCESS, flow_run_id)).dashboard == page
