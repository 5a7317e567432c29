"""Runs as the REST API shows them: `running` until they have ended, and in which Prefect state."""

import asyncio
import re
from collections.abc import Sequence
from typing import Final, Self, TypeAlias

from prefect.utilities.urls import url_for
from pydantic import Field

from deployments.api.sync_deployment import PrefectUnavailable, SyncDeployment, uuid_or_none
from tasks.trail.fields import ForeignDocument
from tasks.trail.history import Page, RunEntry
from tasks.trail.runs import RunRecord
from tasks.trail.stages import RunStatus

_STATES_SECONDS: Final = 2.0
"""How long an answer waits for Prefect to tell the states of unfinished runs."""
_CREDENTIALS: Final = re.compile("(?<=//)[^/]*@")


class RunView(RunRecord):
    """A run; while it goes on, its counts are at most two seconds old."""

    status: RunStatus = Field(
        description="`running` from the moment that it is asked for until it has ended.",
        examples=["partial"],
    )
    state: str | None = Field(
        description="Prefect's name of its state; null where nobody tells it.",
        examples=["Partial"],
    )
    dashboard: str | None = Field(
        description="Address of its page in Prefect's dashboard.",
        examples=["http://127.0.0.1:4200/runs/flow-run/39f453ec-7ef3-4310-9f72-4de981dc45f3"],
    )

    @classmethod
    def of(cls, run: RunRecord, state: str | None) -> Self:
        """Return the view of a run that is in that state."""
        return cls.model_validate(
            {
                **dict(run),
                "status": status_shown(run.status),
                "state": state,
                "dashboard": _page_in_dashboard(run.flow_run_id),
            }
        )


ShownRun: TypeAlias = RunView | ForeignDocument


class RunPage(Page[ShownRun]):
    """A page of the runs."""


def status_shown(status: RunStatus) -> RunStatus:
    """Return the status that the API shows of a run with this one on record."""
    return status if status.is_terminal else RunStatus.RUNNING


async def shown_runs(deployment: SyncDeployment, entries: Sequence[RunEntry]) -> list[ShownRun]:
    """Return entries of `sync_runs` as the API shows them.

    Prefect is asked once for the states of all that have not ended; where it does not tell one in
    time, that of the trail is shown.
    """
    states = await _states(deployment, entries)
    return [
        RunView.of(entry, states.get(entry.flow_run_id, entry.state))
        if isinstance(entry, RunRecord)
        else entry
        for entry in entries
    ]


async def _states(deployment: SyncDeployment, entries: Sequence[RunEntry]) -> dict[str, str]:
    unfinished = [
        entry.flow_run_id
        for entry in entries
        if isinstance(entry, RunRecord) and not entry.status.is_terminal
    ]
    if not unfinished:
        return {}
    try:
        async with asyncio.timeout(_STATES_SECONDS):
            return await deployment.states(unfinished)
    except (PrefectUnavailable, TimeoutError):
        return {}


def _page_in_dashboard(flow_run_id: str) -> str | None:
    known_id = uuid_or_none(flow_run_id)
    address = known_id and url_for("flow-run", obj_id=known_id)
    return _CREDENTIALS.sub("", address) if address else None
