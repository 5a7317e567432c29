"""Sender: what one process does for one run - plan a stage, decide and send batches, record."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from prefect.context import SyncClientContext
from prefect.futures import PrefectFuture

from tasks.audit import (
    AuditTrail,
    Decisions,
    PriorStep,
    RequestTimes,
    RunId,
    Step,
    StepState,
    SyncMode,
    Totals,
    audit_trail,
)
from tasks.entities import entity_type_named
from tasks.errors import (
    DUPLICATE_KEY,
    INTERNAL_ERROR,
    RUN_STOPPED,
    VALIDATION_ERROR,
    ErrorClass,
    ItemError,
)
from tasks.hub_admin import hub_admin_client
from tasks.mongo import MongoUnavailable, database, identity
from tasks.settings import Settings, read_settings
from tasks.slots import Slots, slots_of_process
from tasks.source import Batch, InvalidItem, Item, Known, Source

_LOOK_SECONDS: Final = 1.0
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


class SendGate:
    """Whether a run may send now: held for a while by `Retry-After`, closed for good.

    Another process may close it too: `look` says why, and is asked once a second.
    """

    def __init__(self, look: Callable[[], str | None]) -> None:
        self._look = look
        self._looks_at = 0.0
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

    def is_open(self) -> bool:
        """Whether something may still be sent, now or once the gate is no longer held."""
        self._look_around()
        return not self._closed.is_set()

    def pass_through(self) -> bool:
        """Wait while the gate is held; return False once it is closed."""
        while (held_for := self._opens_at - time.monotonic()) > 0:
            if not self.is_open() or self._closed.wait(min(held_for, _LOOK_SECONDS)):
                break
        return self.is_open()

    def _look_around(self) -> None:
        if time.monotonic() < self._looks_at:
            return
        with self._lock:
            self._looks_at = time.monotonic() + _LOOK_SECONDS
        if reason := self._look():
            self.close(reason)


class Sender:
    """What one process needs to work on one run; its connections are those of the process."""

    def __init__(
        self,
        run_id: RunId,
        flow_run_id: str,
        settings: Settings,
        slots: Slots,
        *,
        mode: SyncMode,
        is_dry_run: bool,
    ) -> None:
        self.run_id = run_id
        self.settings = settings
        self.is_dry_run = is_dry_run
        self.audit: AuditTrail = audit_trail(settings)
        self.gate = SendGate(lambda: self.audit.stopped_because(run_id))
        self.slots = slots
        self._flow_run_id = flow_run_id
        self._mode = mode
        self._hub = hub_admin_client(settings)
        self._source = Source(database(settings))

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
        """
        if self.settings.task_runner == "threads":
            _share_a_core()
        if is_retry:
            self.audit.flush()
        result = BatchResult()
        durations_ms: list[float] = []
        with nullcontext() if self.is_dry_run else self.slots.held(self.gate.is_open):
            prior_steps = self._prior_steps(batch)
            for item in self._read(batch):
                prior = prior_steps.get(identity(item.source_id)) if prior_steps else None
                if prior is not None and (prior.is_settled or self.gate.closed_because):
                    result = result.with_item(prior.error)
                elif isinstance(item, Known):
                    result = result.with_decision(Decisions(unchanged=1))
                elif self.is_dry_run and isinstance(item, Item):
                    result = result.with_decision(Decisions(would_send=1, first=item.natural_key))
                else:
                    attempts = prior.attempts if prior else 0
                    error = self._send_item(item, attempts, task_run_id, durations_ms)
                    result = result.with_item(error)
        self.audit.flush()
        self.audit.count_requests(self.run_id, batch.entity_type, RequestTimes.of(durations_ms))
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

    def stop(self, reason: str) -> None:
        """Let nothing more be sent for this run, by this process or any other."""
        self.gate.close(reason)
        self.audit.stop(self.run_id, reason)

    def stopped_because(self) -> str | None:
        """Return why this run was stopped, by this process or another; None if it was not."""
        return self.gate.closed_because or self.audit.stopped_because(self.run_id)

    @contextmanager
    def stopping_on_error(self) -> Iterator[None]:
        """Stop the run when the block is left by an exception, a cancellation included."""
        try:
            yield
        except BaseException as error:
            with suppress(MongoUnavailable):
                self.stop(f"the run was interrupted ({type(error).__name__})")
            raise

    def close(self) -> None:
        """Write what waits, give back what is held and close the connections to Stage 1."""
        self._hub.close()
        self.slots.give_back()
        self.audit.flush()

    def _read(self, batch: Batch) -> Iterator[Item | InvalidItem | Known]:
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
            if isinstance(item, Known):
                left_alone += Decisions(unchanged=1)
            else:
                self._record(item, error)
        return left_alone

    def _prior_steps(self, batch: Batch) -> dict[bytes, PriorStep]:
        return self.audit.prior_steps(self.run_id, batch.entity_type, batch.start, batch.end)

    def _send_item(
        self, item: Item | InvalidItem, attempts: int, task_run_id: str, durations_ms: list[float]
    ) -> ItemError | None:
        if isinstance(item, InvalidItem):
            error = ItemError(VALIDATION_ERROR, item.fault, ErrorClass.PERMANENT)
            return self._record(item, error, task_run_id=task_run_id)
        if not self.gate.pass_through():
            reason = f"not sent: {self.gate.closed_because}"
            error = ItemError(RUN_STOPPED, reason, ErrorClass.SKIPPED)
            return self._record(item, error, task_run_id=task_run_id)
        outcome = self._hub.upsert(item.entity_type, item.request_id, item.body)
        durations_ms.append(outcome.duration_ms)
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
            self.stop(f"{error.code} at {place}: {error.message}")
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
            _senders[run_id] = _new_sender(run_id, slots_of_process())
            for earlier in list(_senders)[:-_SENDERS_KEPT]:
                del _senders[earlier]
        return _senders[run_id]


@contextmanager
def sending(run_id: str) -> Iterator[Sender]:
    """Hold the sender of the process that a flow run is in, and close it at the end.

    Its Prefect client is that of all task runs on threads of this process, too.

    Raises:
        SlotsUnavailable: Prefect's API doesn't answer.
    """
    with SyncClientContext.get_or_create() as context:
        sender = _new_sender(run_id, Slots(context.client))
        sender.slots.limit_to(sender.settings.concurrency)
        with _senders_lock:
            _senders[run_id] = sender
        try:
            yield sender
        finally:
            with _senders_lock:
                del _senders[run_id]
            sender.close()


def _new_sender(run_id: str, slots: Slots) -> Sender:
    settings = read_settings()
    run = audit_trail(settings).run(RunId(run_id))
    if run is None:
        raise LookupError(f"sync_runs has no run {run_id}")
    return Sender(
        run["_id"],
        run["flow_run_id"],
        settings,
        slots,
        mode=SyncMode(run["mode"]),
        is_dry_run=run["dry_run"],
    )
