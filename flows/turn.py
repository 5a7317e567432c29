"""Turn: one sync of a database runs at a time; another one waits here for its turn, and says so."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NoReturn

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort
from prefect.states import Cancelled, Running

from flows.artifacts import remove_artifacts
from flows.audit_sweep import end_dead_runs
from flows.ending import cancel_in_trail
from flows.orders import flow_run_in_prefect, order_of
from flows.run_names import tags_of_run
from flows.state_mirror import (
    begun_here,
    current_flow_run,
    is_for_database,
    mirror_state,
    open_current_run,
    running_since,
)
from tasks.errors import FLOW_RUN_DELETED, RUN_CANCELLED, RUN_ENDED, StopReason
from tasks.settings import Settings
from tasks.trail.audit_trail import AuditTrail, audit_trail
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.ownership import WAITING
from tasks.trail.runs import RunOptions


class OtherDatabase(RuntimeError):
    """A run was asked for another database than that of the process that executes it."""


LOOK_SECONDS: Final = 1.0
"""How often a run that waits asks whether its turn has come, and what Prefect says of it."""


async def take_turn(settings: Settings, options: RunOptions) -> RunAttempt:
    """Begin the next attempt of the flow run that runs here, once no other sync has the turn.

    A sync whose process is gone keeps no other one waiting.

    Raises:
        Abort: the run was cancelled, suspended, ended or begun anew elsewhere meanwhile.
        MongoError: MongoDB is away, or does not let us.
        OtherDatabase: the run was asked for another database; nothing was written.
    """
    _require_own_database(settings.mongodb_database)
    trail = await asyncio.to_thread(audit_trail, settings)
    begun_at = running_since()
    async with get_client() as prefect:
        await _raise_if_revived(prefect, trail)
        with suppress(httpx.HTTPError):
            await _tag(prefect, tags_of_run(options, settings.mongodb_database))
        run_id, options = await asyncio.to_thread(open_current_run, trail, options)
        attempt = await asyncio.to_thread(trail.ownership.take, run_id, options, begun_at)
        if attempt is None:
            wait = _Wait(prefect, trail, run_id, begun_at)
            while attempt is None:
                await wait.go_on(settings)
                attempt = await asyncio.to_thread(trail.ownership.take, run_id, options, begun_at)
            await wait.end(attempt)
        if current_flow_run().run_count > 1:
            with suppress(httpx.HTTPError):
                await remove_artifacts(prefect, current_flow_run().id)
    begun_here(attempt)
    return attempt


def _require_own_database(database: str) -> None:
    if not is_for_database(current_flow_run(), database):
        raise OtherDatabase(
            f"MONGODB_DB names {database}, and this run was asked for another database (see its "
            "tags); nothing was sent. Give each environment a name in ADMIN_ENVIRONMENT and a "
            "worker of its own, and deploy each"
        )


async def _raise_if_revived(prefect: PrefectClient, trail: AuditTrail) -> None:
    """Cancel a run again that was cancelled while its process started: Prefect lets it run.

    Raises:
        Abort: it was.
    """
    flow_run = current_flow_run()
    if flow_run.deployment_id is None:  # Retry runs it at once, also after a cancellation.
        return
    states = await prefect.read_flow_run_states(flow_run.id)
    if len(states) > 1 and states[-2].is_cancelled():
        result = await prefect.set_flow_run_state(flow_run.id, states[-2])
        await asyncio.to_thread(mirror_state, trail, flow_run, result.state or states[-2])
        raise Abort("the run was cancelled before it began")


async def _tag(prefect: PrefectClient, tags: Sequence[str]) -> None:
    """Give the flow run that runs here those of the tags that it lacks."""
    flow_run = current_flow_run()
    if lacking := [tag for tag in tags if tag not in flow_run.tags]:
        await prefect.update_flow_run(flow_run.id, tags=[*flow_run.tags, *lacking])


class _Wait:
    """The wait of a run for its turn, as the dashboard, the log and the audit trail show it.

    A Prefect that is away only makes it longer.
    """

    def __init__(
        self, prefect: PrefectClient, trail: AuditTrail, run_id: RunId, begun_at: datetime
    ) -> None:
        self._prefect = prefect
        self._trail = trail
        self._run_id = run_id
        self._begun_at = begun_at
        self._flow_run_id = current_flow_run().id
        self._holder: RunId | None = None

    async def go_on(self, settings: Settings) -> None:
        """Wait a while longer; end the run that is waited for, should its process be gone.

        Raises:
            Abort: the run does not go on here.
            MongoError: MongoDB is away, or does not let us.
        """
        with suppress(httpx.HTTPError):
            await asyncio.to_thread(end_dead_runs, settings)
        await self._tell()
        await asyncio.sleep(LOOK_SECONDS)
        with suppress(httpx.HTTPError):
            flow_run = await flow_run_in_prefect(self._prefect, self._flow_run_id)
            if order := order_of(flow_run):
                await self._leave(order, flow_run)

    async def end(self, attempt: RunAttempt) -> None:
        """Show that the wait is over, and the attempt runs."""
        with suppress(httpx.HTTPError):
            if at := await self._show(Running()):
                await asyncio.to_thread(self._trail.ownership.run_since, attempt, at)

    async def _tell(self) -> None:
        holder = await asyncio.to_thread(self._trail.ownership.holder)
        message = f"Waits for the sync {holder or self._holder} to end"
        ownership = self._trail.ownership
        if not await asyncio.to_thread(ownership.wait, self._run_id, message, self._begun_at):
            raise Abort(RUN_ENDED.message)
        if holder is not None and holder != self._holder:
            self._holder = holder
            get_run_logger().info(message)
            with suppress(httpx.HTTPError):
                await self._show(Running(name=WAITING, message=message))

    async def _show(self, state: State[Any]) -> datetime | None:
        """Give the flow run a state; return since when it has it, None where Prefect refuses."""
        result = await self._prefect.set_flow_run_state(self._flow_run_id, state)
        return result.state.timestamp if result.state else None

    async def _leave(self, order: StopReason, flow_run: FlowRun | None) -> NoReturn:
        if order == RUN_CANCELLED:
            await self._show(Cancelled())
        if order in (RUN_CANCELLED, FLOW_RUN_DELETED):
            await asyncio.to_thread(cancel_in_trail, self._trail, self._run_id, order)
        if flow_run is not None and flow_run.state is not None and flow_run.state.is_paused():
            await asyncio.to_thread(mirror_state, self._trail, flow_run, flow_run.state)
        raise Abort(order.message)
