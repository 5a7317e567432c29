"""The whole sync: tenants -> clients -> subtenants -> domains -> branding, one stage each."""

import asyncio
import gc
from typing import Annotated, Literal

import fastapi.encoders  # noqa: F401  Prefect imports it when the first stage begins.
from prefect import flow, unmapped
from prefect.client.schemas.objects import State
from prefect.futures import wait
from pydantic import Field

from flows.artifacts import publish_results
from flows.dashboard import ProgressBoard, log_stage, task_runs_unlogged
from flows.ending import end_run, end_stage, ended_on_record, raise_unless_ended
from flows.heartbeat import heartbeat
from flows.run_names import name_of_current_run
from flows.server_waits import server_waits_told
from flows.state_mirror import FLOW_NAME, MANUAL, mirror_run
from flows.task_runners import stage_runner
from flows.turn import take_turn
from tasks.entities import ENTITY_NAMES, EntityName, in_sync_order
from tasks.run import flow_run_of, run_here
from tasks.settings import read_settings
from tasks.stage import close_stage, plan_gone, plan_stage, require_source
from tasks.trail.fields import RunId
from tasks.trail.runs import RunOptions, SyncMode
from tasks.trail.stages import StageTotals
from tasks.upsert import upsert_task

gc.freeze()  # Python looks no more for garbage in what is loaded; that takes 0.1 s each time.

Entities = Annotated[list[EntityName], Field(min_length=1)]
Mode = Literal["full", "changed"]
Trigger = Annotated[str, Field(max_length=200)]


@flow(
    name=FLOW_NAME,
    persist_result=False,
    flow_run_name=name_of_current_run,
    on_completion=[mirror_run, publish_results],
    on_failure=[mirror_run, publish_results],
    on_cancellation=[mirror_run, publish_results],
    on_crashed=[mirror_run, publish_results],
)
async def admin_sync(
    entities: Entities = ENTITY_NAMES,
    mode: Mode = "full",
    dry_run: bool = False,
    skip_orphans: bool = False,
    disable_gone: bool = False,
    trigger: Trigger = MANUAL,
) -> State[StageTotals]:
    """Carry the backoffice into Stage 1; fails when an item is not in, and says which.

    Settings come from the environment and `.env`. A failed item does not stop the stages after
    its own; a run-stopping error does, and a Stage 1 that stays down: what is left is then
    recorded as skipped.

    Args:
        entities: What to sync; whatever the order here, it runs in sync order.
        mode: "full" sends every item; "changed" only those that Stage 1 does not hold as they are:
            new, changed, or not in by the last run.
        dry_run: Read, validate and decide as a real run does, but send nothing.
        skip_orphans: Do not send an item whose parent failed in this run with a permanent error.
        disable_gone: Disable what Stage 1 holds and whose document is gone from the source, unless
            more than a fifth of a type (and more than ten) are gone at once.
        trigger: Who or what asked for this run; free text, for the audit trail.
    """
    settings = read_settings()
    selected = in_sync_order(entities)
    options = RunOptions(
        trigger, tuple(selected), SyncMode(mode), dry_run, skip_orphans, disable_gone
    )
    attempt = await take_turn(settings, options)
    with (
        flow_run_of(attempt, settings) as run,
        server_waits_told(run.id),
        stage_runner(settings) as task_runner,
        ended_on_record(run),
    ):
        stage = sync_stage.with_options(task_runner=task_runner)
        progress = ProgressBoard(run)
        async with heartbeat(run):
            await asyncio.to_thread(require_source, run, selected)
            for entity_type in selected:
                with progress.showing(entity_type):
                    state = await stage(str(run.id), entity_type, return_state=True)
                await raise_unless_ended(state)
                await asyncio.to_thread(log_stage, run, entity_type, state)
            await progress.finish()
        return await asyncio.to_thread(end_run, run)


@flow(name="sync-stage", flow_run_name="{entity_type}")
async def sync_stage(run_id: str, entity_type: EntityName) -> State[StageTotals]:
    """Upsert all items of one entity type, one task run a batch; fails when an item is not in."""
    run = run_here(RunId(run_id))
    upsert = upsert_task(run.settings)
    batches = await asyncio.to_thread(plan_stage, run, entity_type)
    with run.stop_switch.thrown_by_errors(), task_runs_unlogged():
        futures = upsert.map(unmapped(run.attempt), batches)
        await asyncio.to_thread(wait, futures)
        gone = await asyncio.to_thread(plan_gone, run, entity_type)
        futures += upsert.map(unmapped(run.attempt), gone)
        await asyncio.to_thread(wait, futures)
    tally = await asyncio.to_thread(close_stage, run, entity_type, [*batches, *gone], futures)
    return await asyncio.to_thread(end_stage, run, entity_type, tally)
