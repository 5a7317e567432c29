"""Heartbeat: keeps the turn of a run beside it, and obeys what Prefect and the trail say of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound, Pause

from flows.audit_sweep import end_dead_runs
from flows.late_runs import skip_late_runs
from flows.orders import flow_run_in_prefect, leased_slot_of, order_of
from flows.state_mirror import current_flow_run, mirror_state
from tasks.errors import RUN_FORGOTTEN
from tasks.mongo_errors import MongoError
from tasks.prefect_api import fault_in_words
from tasks.run import Run

BEAT_SECONDS: Final = 1.0
"""How often a run shows that its process lives, and asks whether it goes on."""

_AWAY: Final = (httpx.HTTPError, MongoError)
"""Errors of a Prefect or a MongoDB that is away: the next look may do."""


@asynccontextmanager
async def heartbeat(run: Run) -> AsyncIterator[None]:
    """Keep the heartbeat of the run in the block; beside it, end dead runs and skip late ones."""
    async with get_client() as prefect:
        once = [
            asyncio.create_task(asyncio.to_thread(end_dead_runs, run.settings)),
            asyncio.create_task(skip_late_runs(prefect)),
        ]
        beats = [
            asyncio.create_task(_keep_turn(run)),
            asyncio.create_task(_obey_orders(run, prefect)),
        ]
        try:
            yield
        except Pause:
            with suppress(*_AWAY):
                await _obey_order(run, prefect)
            raise
        finally:
            await asyncio.wait(once)
            for beat in beats:
                beat.cancel()
            for outcome in await asyncio.gather(*once, *beats, return_exceptions=True):
                if isinstance(outcome, Exception):
                    fault = _in_words(outcome)
                    get_run_logger().warning("A part of the run's heartbeat failed: %s", fault)
            with suppress(httpx.HTTPError):
                await _free_slot_of_deleted(prefect)


def _in_words(error: Exception) -> str:
    return fault_in_words(error) if isinstance(error, httpx.HTTPError) else str(error)


async def _keep_turn(run: Run) -> None:
    """Show that the process lives, and its live counts, until the run is no longer its own."""
    is_kept = True
    while is_kept:
        with suppress(MongoError):
            is_kept = await asyncio.to_thread(run.trail.ownership.keep, run.attempt)
        await asyncio.to_thread(run.trail.live.write)
        await asyncio.sleep(BEAT_SECONDS)
    with suppress(MongoError):
        if reason := await asyncio.to_thread(run.trail.stops.reason, run.attempt):
            await asyncio.to_thread(run.stop_switch.obey, reason)
            if reason == RUN_FORGOTTEN:
                await asyncio.to_thread(run.restore_record)


async def _obey_orders(run: Run, prefect: PrefectClient) -> None:
    """Ask Prefect how the flow run is, until there is an order to obey."""
    is_obeyed = False
    while not is_obeyed:
        await asyncio.sleep(BEAT_SECONDS)
        with suppress(*_AWAY):
            is_obeyed = await _obey_order(run, prefect)


async def _obey_order(run: Run, prefect: PrefectClient) -> bool:
    flow_run = await flow_run_in_prefect(prefect, current_flow_run().id)
    order = order_of(flow_run)
    if order is None:
        return False
    if flow_run is not None and flow_run.state is not None and flow_run.state.is_paused():
        await asyncio.to_thread(mirror_state, run.trail, flow_run, flow_run.state)
    await asyncio.to_thread(run.stop_switch.obey, order)
    return True


async def _free_slot_of_deleted(prefect: PrefectClient) -> None:
    """Give the run's slot back where its deployment was deleted: Prefect takes no end else."""
    flow_run = current_flow_run()
    if flow_run.deployment_id and (lease_id := leased_slot_of(flow_run)):
        try:
            await prefect.read_deployment(flow_run.deployment_id)
        except ObjectNotFound:
            await prefect.release_concurrency_slots_with_lease(lease_id)
