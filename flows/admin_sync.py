"""The whole sync: tenants -> clients -> subtenants -> domains -> branding, one stage each."""

import asyncio
from typing import Annotated, Literal

from prefect import flow, unmapped
from prefect.client.schemas.objects import State
from prefect.futures import wait
from pydantic import Field

from flows.dashboard import (
    ProgressBoard,
    conclude,
    log_stage,
    name_of_current_run,
    publish_results,
    task_runs_unlogged,
)
from flows.heartbeat import attended
from flows.state_mirror import (
    FLOW_NAME,
    MANUAL,
    begin_current_run,
    conclusion,
    mirror_run,
    mirror_stage,
    raise_unless_settled,
)
from flows.task_runners import stage_runner
from tasks.entities import ENTITY_NAMES, EntityName, in_sync_order
from tasks.run import sender_here, sending
from tasks.settings import read_settings
from tasks.trail.audit import RunId, RunOptions, SyncMode, Totals
from tasks.upsert import upsert_task

Entities = Annotated[list[EntityName], Field(min_length=1)]
Mode = Literal["full", "changed"]
Trigger = Annotated[str, Field(max_length=200)]


@flow(
    name=FLOW_NAME,
    flow_run_name=name_of_current_run,
    on_running=[mirror_run],
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
    trigger: Trigger = MANUAL,
) -> State[Totals]:
    """Carry the backoffice into Stage 1; fails when an item is not in, and says which.

    Settings come from the environment and `.env`. A failed item does not stop the stages after
    its own; a run-stopping error does, and a Stage 1 that stays down: what is left is then
    recorded as skipped.

    Args:
        entities: What to sync; whatever the order here, it runs in sync order.
        mode: `full` sends every item; `changed` only those that are new, have changed, or were
            never confirmed: no run has a successful step for their current request id.
        dry_run: Read, validate and decide as a real run does, but send nothing.
        skip_orphans: Do not send an item whose parent failed in this run with a permanent error.
        trigger: Who or what asked for this run; free text, for the audit trail.
    """
    settings = read_settings()
    selected = in_sync_order(entities)
    options = RunOptions(trigger, tuple(selected), SyncMode(mode), dry_run, skip_orphans)
    attempt = await asyncio.to_thread(begin_current_run, options)
    run_id = attempt.run_id
    progress = ProgressBoard(run_id)
    with sending(attempt) as sender, stage_runner(settings) as task_runner:
        stage = sync_stage.with_options(task_runner=task_runner)
        async with attended(sender):
            for entity_type in selected:
                with progress.showing(entity_type):
                    state = await stage(str(run_id), entity_type, return_state=True)
                await raise_unless_settled(state)
                await asyncio.to_thread(log_stage, run_id, entity_type, state)
            await progress.finish()
        return await asyncio.to_thread(conclude, sender)


@flow(
    name="sync-stage",
    flow_run_name="{entity_type}",
    on_running=[mirror_stage],
    on_completion=[mirror_stage],
    on_failure=[mirror_stage],
    on_cancellation=[mirror_stage],
    on_crashed=[mirror_stage],
)
async def sync_stage(run_id: str, entity_type: EntityName) -> State[Totals]:
    """Upsert all items of one entity type, one task run a batch; fails when an item is not in."""
    sender = sender_here(RunId(run_id))
    batches = await asyncio.to_thread(sender.plan, entity_type)
    with sender.stopping_on_error(), task_runs_unlogged():
        futures = upsert_task(sender.settings).map(unmapped(sender.attempt), batches)
        await asyncio.to_thread(wait, futures)
    await asyncio.to_thread(sender.settle, entity_type, batches, futures)
    return await asyncio.to_thread(conclusion, sender, entity_type)
