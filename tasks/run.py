"""Sender: what one process does for one run - plan a stage, decide and send batches, record."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from prefect.context import SyncClientContext
from prefect.futures import PrefectFuture

from tasks.entities import entity_type_named, label_of
from tasks.errors import (
    DUPLICATE_KEY,
    INTERNAL_ERROR,
    PARENT_FAILED,
    VALIDATION_ERROR,
    ErrorClass,
    ItemError,
    StopReason,
)
from tasks.hub.answer import UpsertOutcome
from tasks.hub.client import hub_admin_client
from tasks.hub.gate import CircuitBreaker, Permit, SendGate
from tasks.mongo import MongoUnavailable, database, identity, patience_with
from tasks.settings import Settings, read_settings
from tasks.slots import Slots, slots_of_process
from tasks.source.batch import Batch
from tasks.source.item import InvalidItem, Item
from tasks.source.reader import SourceReader, Unchanged
from tasks.trail.audit import (
    CANCELLED,
    AuditTrail,
    Decisions,
    PriorStep,
    RequestTimes,
    RunAttempt,
    RunId,
    Step,
    StepState,
    SyncMode,
    Totals,
    audit_trail,
)

_SENDERS_KEPT: Final = 8


@dataclass(frozen=True)
class BatchResult:
    """What a batch has come to so far; `to_retry` of its failed items are worth a retry."""

    totals: Totals = field(default_factory=Totals)
    decisions: Decisions = field(default_factory=Decisions)
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

    def with_decision(self, decision: Decisions) -> Self:
        """Return the result with one more item that is left alone."""
        return replace(self, decisions=self.decisions + decision)


@dataclass(frozen=True)
class _TaskRun:
    """One execution of a batch's task run, and how long its requests have taken."""

    id: str
    durations_ms: list[float] = field(default_factory=list)


class Sender:
    """What one process needs to work on one run; its connections are those of the process."""

    def __init__(
        self,
        attempt: RunAttempt,
        flow_run_id: str,
        settings: Settings,
        slots: Slots,
        *,
        mode: SyncMode,
        is_dry_run: bool,
        skips_orphans: bool,
    ) -> None:
        self.attempt = attempt
        self.run_id = attempt.run_id
        self.settings = settings
        self.is_dry_run = is_dry_run
        self.audit: AuditTrail = audit_trail(settings)
        self.gate = SendGate(
            lambda: self.audit.stopped_because(attempt), _circuit_breaker(settings)
        )
        self.slots = slots
        self._flow_run_id = flow_run_id
        self._mode = mode
        self._skips_orphans = skips_orphans
        self._failed_keys: dict[str, frozenset[str]] = {}
        self._hub = hub_admin_client(settings)
        self._source = SourceReader(database(settings), patience_with(settings))

    def plan(self, entity_name: str) -> list[Batch]:
        """Plan a stage: record the duplicates, say how many items there are, cut the batches."""
        entity_type = entity_type_named(entity_name)
        for item in self._source.duplicates(entity_type):
            self._record(item, ItemError(DUPLICATE_KEY, _DUPLICATE, ErrorClass.PERMANENT))
        self.audit.flush()
        batches = self._source.plan(
            entity_type, self.settings.concurrency, self.settings.max_task_runs
        )
        self.audit.expect(self.run_id, entity_type.name, sum(batch.size for batch in batches))
        self.slots.expect(min(len(batches), self.settings.concurrency))
        return batches

    def send(self, batch: Batch, task_run_id: str, *, is_retry: bool = False) -> BatchResult:
        """Send what this run has not settled yet of a batch; all of it is on record at the end.

        Raises:
            SlotsUnavailable: Prefect's API doesn't answer; nothing was sent.
            MongoUnavailable: MongoDB stayed away; nothing was sent since that is known.
        """
        if self.settings.task_runner == "threads":
            _share_a_core()
        if is_retry:
            self.audit.flush()
        result = BatchResult()
        task_run = _TaskRun(task_run_id)
        with nullcontext() if self.is_dry_run else self.slots.held(self.gate.is_open):
            prior_steps = self._prior_steps(batch)
            for item in self._read(batch):
                prior = prior_steps.get(identity(item.source_id)) if prior_steps else None
                result = self._with_item(result, item, prior, task_run)
        self.audit.flush()
        times = RequestTimes.of(task_run.durations_ms)
        self.audit.count_requests(self.run_id, batch.entity_type, times)
        self.audit.recount(self.run_id)
        return replace(result, to_retry=0) if self.gate.closed_because else result

    def settle(
        self, entity_name: str, batches: Sequence[Batch], futures: Sequence[PrefectFuture[Any]]
    ) -> None:
        """Say what a stage has left alone; what an exception left without a step has failed."""
        self.audit.flush()
        left_alone = Decisions()
        for batch, future in zip(batches, futures, strict=True):
            outcome = future.result(raise_on_failure=False)
            if isinstance(outcome, BaseException):
                left_alone += self._write_off(batch, outcome)
            else:
                left_alone += outcome.decisions
        self.audit.flush()
        self.audit.decide(self.run_id, entity_name, left_alone)

    def stop(self, reason: StopReason) -> None:
        """Let nothing more be sent for this run, by this process or any other."""
        self.gate.close(reason)
        self.audit.stop(self.run_id, reason)

    def cancel(self) -> None:
        """Let nothing more be sent for this run: somebody has cancelled it."""
        self.stop(CANCELLED)

    def is_cancelled(self) -> bool:
        """Whether the run was stopped because somebody has cancelled it."""
        return self.stopped_because() == CANCELLED

    def stopped_because(self) -> StopReason | None:
        """Return why this run was stopped, by this process or another; None if it was not."""
        return self.gate.closed_because or self.audit.stopped_because(self.attempt)

    @contextmanager
    def stopping_on_error(self) -> Iterator[None]:
        """Stop the run when the block is left by an exception, a cancellation included."""
        try:
            yield
        except BaseException as error:
            with suppress(MongoUnavailable):
                self.stop(StopReason(f"the run was interrupted ({type(error).__name__})"))
            raise

    def close(self) -> None:
        """Write what waits, give back what is held and close the connections to Stage 1."""
        self._hub.close()
        self.slots.give_back()
        self.audit.flush()

    def _with_item(
        self,
        result: BatchResult,
        item: Item | InvalidItem | Unchanged,
        prior: PriorStep | None,
        task_run: _TaskRun,
    ) -> BatchResult:
        """Do with an item what is left to be done, and count it."""
        if prior is not None and prior.is_settled_in(self.attempt.number):
            return result.with_item(prior.error)
        if isinstance(item, Unchanged):
            return result.with_decision(Decisions(unchanged=1))
        if isinstance(item, InvalidItem):
            error = ItemError(VALIDATION_ERROR, item.fault, ErrorClass.PERMANENT)
            return result.with_item(self._record(item, error, task_run_id=task_run.id))
        if parent := self._failed_parent(item):
            why = f"{parent} failed in this run"
            return result.with_item(self._skip(item, PARENT_FAILED, why, task_run.id))
        if self.is_dry_run:
            return result.with_decision(Decisions(would_send=1, first=item.natural_key))
        return result.with_item(self._send_item(item, prior, task_run))

    def _failed_parent(self, item: Item) -> str | None:
        """Return the parent without which an item is not to be sent; None where there is none."""
        if not self._skips_orphans:
            return None
        for parent in item.entity_type.parents:
            key = item.body.get(parent.field)
            if key in self._failed_keys_of(parent.entity_type):
                return f"{parent.entity_type} {key}"
        return None

    def _failed_keys_of(self, entity_name: str) -> frozenset[str]:
        # The stages of the parents have ended by now.
        if entity_name not in self._failed_keys:
            self._failed_keys[entity_name] = self.audit.failed_keys(self.run_id, entity_name)
        return self._failed_keys[entity_name]

    def _read(self, batch: Batch) -> Iterator[Item | InvalidItem | Unchanged]:
        if self._mode is SyncMode.CHANGED:
            return self._source.read_unless(batch, self.audit.confirmed)
        return self._source.read(batch)

    def _write_off(self, batch: Batch, cause: BaseException) -> Decisions:
        error = ItemError(INTERNAL_ERROR, type(cause).__name__, ErrorClass.PERMANENT)
        prior_steps = self._prior_steps(batch)
        left_alone = Decisions()
        for item in self._read(batch):
            if identity(item.source_id) in prior_steps:
                continue
            if isinstance(item, Unchanged):
                left_alone += Decisions(unchanged=1)
            else:
                self._record(item, error)
        return left_alone

    def _prior_steps(self, batch: Batch) -> dict[bytes, PriorStep]:
        return self.audit.prior_steps(self.run_id, batch.entity_type, batch.start, batch.end)

    def _send_item(
        self, item: Item, prior: PriorStep | None, task_run: _TaskRun
    ) -> ItemError | None:
        permit = self.gate.admit()
        if isinstance(permit, StopReason):
            if prior:
                return prior.error
            return self._skip(item, permit.code, permit.message, task_run.id)
        outcome = self._upsert(item, permit)
        task_run.durations_ms.append(outcome.duration_ms)
        return self._record(
            item,
            outcome.error,
            http_status=outcome.http_status,
            sync_id=outcome.sync_id,
            attempts=(prior.attempts if prior else 0) + 1,
            duration_ms=outcome.duration_ms,
            task_run_id=task_run.id,
        )

    def _skip(self, item: Item, code: str, why: str, task_run_id: str) -> ItemError | None:
        error = ItemError(code, f"not sent: {why}", ErrorClass.SKIPPED)
        return self._record(item, error, task_run_id=task_run_id)

    def _upsert(self, item: Item, permit: Permit) -> UpsertOutcome:
        try:
            self.audit.await_mongodb()
            outcome = self._hub.upsert(item.entity_type, item.request_id, item.body)
        except BaseException:
            self.gate.abandon(permit)
            raise
        self._heed(item, outcome)
        if reason := self.gate.report(permit, outcome.error):
            self.stop(reason)
        return outcome

    def _heed(self, item: Item, outcome: UpsertOutcome) -> None:
        error, retry_after = outcome.error, outcome.retry_after_seconds
        if error and error.error_class is ErrorClass.RUN_STOPPING:
            place = f"{item.entity_type.name} {label_of(item.natural_key, item.source_id)}"
            self.stop(StopReason(f"{error.code} at {place}: {error.message}"))
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
            run_attempt=self.attempt.number,
            state=_STATE_BY_CLASS[error.error_class] if error else StepState.COMPLETED,
            error=error,
            **sent,
        )
        self.audit.record(self.run_id, self._flow_run_id, step)
        return error


def _circuit_breaker(settings: Settings) -> CircuitBreaker:
    return CircuitBreaker(
        failures=settings.breaker_failures,
        probe_seconds=settings.breaker_probe_ms / 1000,
        limit_seconds=settings.breaker_limit_ms / 1000,
    )


def _share_a_core() -> None:
    """Let the thread run on the one core that all threads which send have in this process.

    They take turns at Python's interpreter lock anyway, and handing it to another core takes
    longer than the work in between: 5,000 items took 5.6 to 6.1 s on two cores, 4.4 to 5.3 s so.
    """
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(os.getpid()))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})


_DUPLICATE: Final = "another document has this natural key too: the highest version wins"
_STATE_BY_CLASS: Final = {
    ErrorClass.TRANSIENT: StepState.AWAITING_RETRY,
    ErrorClass.PERMANENT: StepState.FAILED,
    ErrorClass.RUN_STOPPING: StepState.FAILED,
    ErrorClass.SKIPPED: StepState.SKIPPED,
}

_senders: dict[RunId, Sender] = {}
_senders_lock = threading.Lock()


def sender_of(attempt: RunAttempt) -> Sender:
    """Return this process's sender for an attempt of a run, made at its first call.

    Raises:
        SettingsError: a setting is missing or malformed.
        LookupError: the audit trail knows no such run.
    """
    with _senders_lock:
        sender = _senders.get(attempt.run_id)
        if sender is None or sender.attempt != attempt:
            sender = _senders[attempt.run_id] = _new_sender(attempt, slots_of_process())
            for earlier in list(_senders)[:-_SENDERS_KEPT]:
                del _senders[earlier]
        return sender


def sender_here(run_id: RunId) -> Sender:
    """Return the sender of the flow run that this process executes.

    Raises:
        KeyError: it executes none for that run.
    """
    return _senders[run_id]


@contextmanager
def sending(attempt: RunAttempt) -> Iterator[Sender]:
    """Hold the sender of the process that a flow run is in, and close it at the end.

    Its Prefect client is that of all task runs on threads of this process, too.

    Raises:
        SlotsUnavailable: Prefect's API doesn't answer.
    """
    with SyncClientContext.get_or_create() as context:
        sender = _new_sender(attempt, Slots(context.client))
        sender.slots.limit_to(sender.settings.concurrency)
        with _senders_lock:
            _senders[attempt.run_id] = sender
        try:
            yield sender
        finally:
            with _senders_lock:
                del _senders[attempt.run_id]
            sender.close()


def _new_sender(attempt: RunAttempt, slots: Slots) -> Sender:
    settings = read_settings()
    run = audit_trail(settings).run(attempt.run_id)
    if run is None:
        raise LookupError(f"sync_runs has no run {attempt.run_id}")
    return Sender(
        attempt,
        run["flow_run_id"],
        settings,
        slots,
        mode=SyncMode(run["mode"]),
        is_dry_run=run["dry_run"],
        skips_orphans=run["parameters"]["skip_orphans"],
    )
