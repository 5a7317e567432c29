"""The mapped task: send a batch, record each outcome, say what is left to retry."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.tasks import Task, exponential_backoff

from tasks.audit import AuditTrail, PriorStep, RunId, Step, StepState, Totals, audit_trail
from tasks.entities import entity_type_named
from tasks.errors import (
    DUPLICATE_KEY,
    INTERNAL_ERROR,
    RUN_STOPPED,
    VALIDATION_ERROR,
    ErrorClass,
    ItemError,
)
from tasks.hub_admin import HubAdminClient
from tasks.mongo import database, identity, is_connection_lost
from tasks.settings import Settings, read_mongo_settings, read_settings
from tasks.source import Batch, InvalidItem, Item, Source

RETRY_JITTER_FACTOR = 0.3
"""A retry comes at 0.3 to 1.3 times its delay (Prefect's clamped Poisson interval)."""


@dataclass(frozen=True)
class BatchResult:
    """What a batch has come to so far; `to_retry` of its failed items are worth a retry."""

    totals: Totals = field(default_factory=Totals)
    to_retry: int = 0
    first_error: ItemError | None = None

    def with_item(self, error: ItemError | None) -> Self:
        """Return the result with one more item counted."""
        error_class = error.error_class if error else None
        outcome = Totals(
            success=int(error is None),
            failed=int(error is not None and error_class is not ErrorClass.SKIPPED),
            skipped=int(error_class is ErrorClass.SKIPPED),
        )
        return replace(
            self,
            totals=self.totals + outcome,
            to_retry=self.to_retry + int(error_class is ErrorClass.TRANSIENT),
            first_error=self.first_error or error,
        )

    def as_state(self) -> State["BatchResult"]:
        """Return the Prefect state that says the same."""
        counted = f"{self.totals.success} of {self.totals.total} items are in"
        if self.first_error is None:
            return Completed(message=counted, data=self)
        why = f"{self.first_error.code}: {self.first_error.message}"
        return Failed(message=why if self.totals.total == 1 else f"{counted}; {why}", data=self)


class SendGate:
    """Whether this process may send now: held for a while by `Retry-After`, closed for good."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._opens_at = 0.0
        self.closed_because: str | None = None

    def close(self, reason: str) -> None:
        """Let nothing more through; the first reason stays."""
        with self._lock:
            if not self._closed.is_set():
                self.closed_because = reason
                self._closed.set()

    def hold(self, seconds: float) -> None:
        """Let nothing through for that long from now."""
        with self._lock:
            self._opens_at = max(self._opens_at, time.monotonic() + seconds)

    def pass_through(self) -> bool:
        """Wait while the gate is held; return False once it is closed."""
        while (held_for := self._opens_at - time.monotonic()) > 0:
            if self._closed.wait(held_for):
                break
        return not self._closed.is_set()

    @contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """Close the gate when the block is left by an exception, a cancellation included."""
        try:
            yield
        except BaseException as error:
            self.close(f"the run was interrupted ({type(error).__name__})")
            raise


class Sender:
    """What one process needs to work on one run; its connections are made once."""

    def __init__(self, run_id: RunId, flow_run_id: str, settings: Settings) -> None:
        self.run_id = run_id
        self.settings = settings
        self.gate = SendGate()
        self.audit: AuditTrail = audit_trail(settings)
        self._flow_run_id = flow_run_id
        self._hub = HubAdminClient(settings)
        self._source = Source(database(settings))

    def plan(self, entity_name: str) -> list[Batch]:
        """Plan a stage: record the duplicates, say how many items there are, cut the batches."""
        entity_type = entity_type_named(entity_name)
        for item in self._source.duplicates(entity_type):
            self._record(item, ItemError(DUPLICATE_KEY, _DUPLICATE, ErrorClass.PERMANENT))
        self.audit.flush()
        batches = self._source.plan(entity_type, self.settings.max_task_runs)
        self.audit.expect(self.run_id, entity_type.name, sum(batch.size for batch in batches))
        return batches

    def send(self, batch: Batch, task_run_id: str) -> BatchResult:
        """Send what this run has not settled yet of a batch; all of it is on record at the end."""
        prior_steps = self._prior_steps(batch)
        result = BatchResult()
        for item in self._source.read(batch):
            prior = prior_steps.get(identity(item.source_id))
            if prior is None or not (prior.is_settled or self.gate.closed_because):
                error = self._send_item(item, prior.attempts if prior else 0, task_run_id)
            else:
                error = prior.error
            result = result.with_item(error)
        self.audit.flush()
        return replace(result, to_retry=0) if self.gate.closed_because else result

    def write_off_lost(
        self, batches: Sequence[Batch], futures: Sequence[PrefectFuture[Any]]
    ) -> None:
        """Record as failed what batches that an exception ended have left without a step."""
        for batch, future in zip(batches, futures, strict=True):
            outcome = future.result(raise_on_failure=False)
            if isinstance(outcome, BaseException):
                self._write_off(batch, outcome)
        self.audit.flush()

    def close(self) -> None:
        """Write what waits and close the connections to Stage 1."""
        self._hub.close()
        self.audit.flush()

    def _write_off(self, batch: Batch, cause: BaseException) -> None:
        error = ItemError(INTERNAL_ERROR, type(cause).__name__, ErrorClass.PERMANENT)
        prior_steps = self._prior_steps(batch)
        for item in self._source.read(batch):
            if identity(item.source_id) not in prior_steps:
                self._record(item, error)

    def _prior_steps(self, batch: Batch) -> dict[bytes, PriorStep]:
        return self.audit.prior_steps(self.run_id, batch.entity_type, batch.start, batch.end)

    def _send_item(
        self, item: Item | InvalidItem, attempts: int, task_run_id: str
    ) -> ItemError | None:
        if isinstance(item, InvalidItem):
            error = ItemError(VALIDATION_ERROR, item.fault, ErrorClass.PERMANENT)
            return self._record(item, error, task_run_id=task_run_id)
        if not self.gate.pass_through():
            reason = f"not sent: {self.gate.closed_because}"
            error = ItemError(RUN_STOPPED, reason, ErrorClass.SKIPPED)
            return self._record(item, error, task_run_id=task_run_id)
        outcome = self._hub.upsert(item.entity_type, item.request_id, item.body)
        self._heed(item, outcome.error, outcome.retry_after_seconds)
        return self._record(
            item,
            outcome.error,
            http_status=outcome.http_status,
            sync_id=outcome.sync_id,
            attempts=attempts + 1,
            duration_ms=outcome.duration_ms,
            task_run_id=task_run_id,
        )

    def _heed(self, item: Item, error: ItemError | None, retry_after: float | None) -> None:
        if error and error.error_class is ErrorClass.RUN_STOPPING:
            place = f"{item.entity_type.name} {item.natural_key}"
            self.gate.close(f"{error.code} at {place}: {error.message}")
        if retry_after is not None:
            self.gate.hold(min(retry_after, self.settings.retry_after_max_ms / 1000))

    def _record(
        self, item: Item | InvalidItem, error: ItemError | None, **sent: Any
    ) -> ItemError | None:
        step = Step(
            entity_type=item.entity_type.name,
            source_id=item.source_id,
            natural_key=item.natural_key,
            version=item.version,
            request_id=item.request_id if isinstance(item, Item) else None,
            state=_STATE_BY_CLASS[error.error_class] if error else StepState.COMPLETED,
            error=error,
            **sent,
        )
        self.audit.record(self.run_id, self._flow_run_id, step)
        return error


_DUPLICATE = "another document has this natural key too: the highest version wins"
_STATE_BY_CLASS = {
    ErrorClass.TRANSIENT: StepState.AWAITING_RETRY,
    ErrorClass.PERMANENT: StepState.FAILED,
    ErrorClass.RUN_STOPPING: StepState.FAILED,
    ErrorClass.SKIPPED: StepState.SKIPPED,
}

_senders: dict[str, Sender] = {}
_senders_lock = threading.Lock()


def sender_of(run_id: str) -> Sender:
    """Return this process's sender for a run, made at the first call from the environment.

    Raises:
        SettingsError: a setting is missing or malformed.
        LookupError: the audit trail knows no such run.
    """
    with _senders_lock:
        if run_id not in _senders:
            settings = read_settings()
            run = audit_trail(settings).run(RunId(run_id))
            if run is None:
                raise LookupError(f"sync_runs has no run {run_id}")
            _senders[run_id] = Sender(run["_id"], run["flow_run_id"], settings)
        return _senders[run_id]


@contextmanager
def sending(run_id: str) -> Iterator[Sender]:
    """Hold this process's sender for a run, and close it at the end."""
    sender = sender_of(run_id)
    try:
        yield sender
    finally:
        with _senders_lock:
            del _senders[run_id]
        sender.close()


def is_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's retry condition: only what failed transiently is worth a retry.

    A batch whose connection to MongoDB was lost goes on where its records end.
    """
    if isinstance(state.data, BatchResult):
        return state.data.to_retry > 0
    return is_connection_lost(state.data)


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
def upsert_batch(run_id: str, batch: Batch) -> State[BatchResult]:
    """Upsert the items of a batch that this run has not settled yet.

    Fails when an item is not in; Prefect retries it as long as transient failures are left.
    """
    return sender_of(run_id).send(batch, runtime.task_run.id).as_state()


def upsert_task(settings: Settings) -> Task[[str, Batch], State[BatchResult]]:
    """Return the task with the retries that the settings ask for."""
    return upsert_batch.with_options(
        retries=settings.retry_max,
        retry_delay_seconds=exponential_backoff(settings.retry_base_delay_ms / 1000),
    )
