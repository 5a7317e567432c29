"""The mapped task: send a batch, say what is left to retry, let Prefect retry it."""

from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed
from prefect.tasks import Task, exponential_backoff

from tasks.mongo import is_connection_lost
from tasks.run import BatchResult, sender_of
from tasks.settings import Settings, read_mongo_settings
from tasks.slots import SlotsUnavailable
from tasks.source.batch import Batch
from tasks.trail.audit import RunAttempt, RunId, audit_trail

RETRY_JITTER_FACTOR = 0.3
"""A retry comes at 0.3 to 1.3 times its delay (Prefect's clamped Poisson interval)."""


def is_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's retry condition: only what failed transiently is worth a retry.

    A batch that lost MongoDB or Prefect goes on where its records end.
    """
    if isinstance(state.data, BatchResult):
        return state.data.to_retry > 0
    return is_connection_lost(state.data) or isinstance(state.data, SlotsUnavailable)


def finish_awaiting_steps(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> None:
    """Task-run state hook: items that awaited a retry have failed with their task run."""
    run_id = RunId(runtime.flow_run.parameters["run_id"])
    audit_trail(read_mongo_settings()).fail_awaiting(run_id, str(task_run.id))


@task(
    task_run_name="{batch.name}",
    cache_policy=NO_CACHE,
    retry_condition_fn=is_transient,
    retry_jitter_factor=RETRY_JITTER_FACTOR,
    on_failure=[finish_awaiting_steps],
)
def upsert_batch(attempt: RunAttempt, batch: Batch) -> State[BatchResult]:
    """Upsert the items of a batch that this attempt of the run has not settled yet.

    Fails when an item is not in; Prefect retries it as long as transient failures are left.
    """
    this_run = runtime.task_run
    return _state_of(sender_of(attempt).send(batch, this_run.id, is_retry=this_run.run_count > 1))


def upsert_task(settings: Settings) -> Task[[RunAttempt, Batch], State[BatchResult]]:
    """Return the task with the retries that the settings ask for."""
    return upsert_batch.with_options(
        retries=settings.retry_max,
        retry_delay_seconds=exponential_backoff(settings.retry_base_delay_ms / 1000),
    )


def _state_of(result: BatchResult) -> State[BatchResult]:
    left_alone = result.decisions.unchanged + result.decisions.would_send
    counted = f"{result.totals.success} of {result.totals.total} items are in"
    if left_alone:
        counted += f", {left_alone} were left alone"
    if result.first_error is None:
        return Completed(message=counted, data=result)
    why = f"{result.first_error.code}: {result.first_error.message}"
    message = why if result.totals.total == 1 else f"{counted}; {why}"
    return Failed(message=message, data=result)
