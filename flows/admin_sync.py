"""The whole sync: tenants -> clients -> subtenants -> domains -> branding, one stage each."""

import asyncio
from typing import Annotated, Any

from prefect import flow, runtime, unmapped
from prefect.client.schemas.objects import State
from prefect.context import SyncClientContext
from prefect.futures import wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows.dashboard import (
    log_stage,
    name_of_current_run,
    progress_shown,
    publish_results,
    task_runs_unlogged,
)
from flows.state_mirror import (
    MANUAL,
    concluding_state,
    mirror_run,
    mirror_stage,
    raise_unless_settled,
)
from tasks.audit import Totals, audit_trail
from tasks.entities import ENTITY_NAMES, EntityName, in_sync_order
from tasks.settings import read_settings
from tasks.upsert import sender_of, sending, upsert_task

Entities = Annotated[list[EntityName], Field(min_length=1)]
Trigger = Annotated[str, Field(max_length=200)]


@flow(
    name="admin-sync",
    flow_run_name=name_of_current_run,
    on_running=[mirror_run],
    on_completion=[mirror_run, publish_results],
    on_failure=[mirror_run, publish_results],
    on_cancellation=[mirror_run, publish_results],
    on_crashed=[mirror_run, publish_results],
)
async def admin_sync(entities: Entities = ENTITY_NAMES, trigger: Trigger = MANUAL) -> State[Totals]:
    """Carry the backoffice into Stage 1; fails when an item is not in, and says which.

    Settings come from the environment and `.env`. A failed item does not stop the stages after
    its own; a run-stopping error does: what is left is then recorded as skipped.

    Args:
        entities: What to sync; whatever the order here, it runs in sync order.
        trigger: Who or what asked for this run; free text, for the audit trail.
    """
    settings = read_settings()
    selected = in_sync_order(entities)
    run_id = await asyncio.to_thread(
        audit_trail(settings).open_run,
        runtime.flow_run.id,
        runtime.flow_run.name,
        trigger=trigger,
        entities=selected,
    )
    threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=settings.concurrency)
    stage = sync_stage.with_options(task_runner=threads)
    with sending(str(run_id)) as sender:
        for entity_type in selected:
            async with progress_shown(run_id, entity_type):
                state = await stage(str(run_id), entity_type, return_state=True)
            await raise_unless_settled(state)
            await asyncio.to_thread(log_stage, run_id, entity_type, state)
        totals, failures = await asyncio.to_thread(sender.audit.tally, run_id)
        return concluding_state(totals, failures, sender.gate.closed_because)


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
    sender = sender_of(run_id)
    batches = await asyncio.to_thread(sender.plan, entity_type)
    with (
        sender.gate.closing_on_error(),
        task_runs_unlogged(),
        SyncClientContext.get_or_create(),
    ):
        futures = upsert_task(sender.settings).map(unmapped(run_id), batches)
        await asyncio.to_thread(wait, futures)
    await asyncio.to_thread(sender.write_off_lost, batches, futures)
    totals, failures = await asyncio.to_thread(sender.audit.tally, sender.run_id, entity_type)
    return concluding_state(totals, failures, sender.gate.closed_because)
