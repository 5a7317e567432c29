"""The mapped task: sends a batch, tells how many items are left to retry, lets Prefect retry it."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final, TypeGuard

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import Abort
from prefect.tasks import Task, exponential_backoff

from tasks.batch_result import BatchCount, BatchResult
from tasks.changes import changes_between
from tasks.decision import (
    NOT_SENT_IN_DRY_RUN,
    Candidate,
    Decision,
    Keep,
    LeaveUnchanged,
    Reject,
    Send,
    WouldSend,
    after_stop,
    decide,
    stop_after,
)
from tasks.entities import EntityType, entity_type_named
from tasks.errors import LeaveReason, StopReason
from tasks.hub.answer import UpsertOutcome
from tasks.hub.breaker import Permit
from tasks.limit import SlotsUnavailable
from tasks.mongo_errors import MongoUnavailable
from tasks.outcome import Outcome
from tasks.request import Request
from tasks.run import Run, run_of
from tasks.settings import Settings, read_mongo_settings
from tasks.slots import HeldSlot
from tasks.source.batch import Batch, GoneBatch
from tasks.trail.audit_trail import audit_trail
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.stages import RequestTimes

RETRY_JITTER_FACTOR: Final = 0.3
"""A retry comes at 0.3 to 1.3 times its delay (Prefect's clamped Poisson interval)."""
_ANNOUNCED_AT_ONCE: Final = 100
"""So many items are announced, then sent: of so many a crash leaves it in doubt."""
RETRYABLE: Final = (MongoUnavailable, SlotsUnavailable)
"""Errors of a batch that another try may mend; it goes on where its records end."""


def is_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Retry condition of Prefect: only a transient failure is worth a retry."""
    if isinstance(state.data, BatchResult):
        return state.data.to_retry > 0
    return isinstance(state.data, RETRYABLE)


def fail_awaiting_steps(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> None:
    """State hook of a task run: fails its items that await a retry, for none will come."""
    stage = runtime.flow_run.parameters
    run_id, trail = RunId(stage["run_id"]), audit_trail(read_mongo_settings())
    failed = trail.steps.fail_awaiting(run_id, str(task_run.id))
    if failed and (run := trail.runs.find(run_id)):
        changes = {"retrying": -failed, "failed": failed}
        trail.live.add(RunAttempt(run_id, run.attempt), stage["entity_type"], changes)


@task(
    task_run_name="{batch.name}",
    cache_policy=NO_CACHE,
    retry_condition_fn=is_transient,
    retry_jitter_factor=RETRY_JITTER_FACTOR,
    on_failure=[fail_awaiting_steps],
)
def upsert_batch(attempt: RunAttempt, batch: Batch | GoneBatch) -> State[BatchResult]:
    """Upsert the items of a batch that this attempt of the run has no final outcome for.

    Fails when an item is not in; Prefect retries it as long as transient failures are left.
    """
    this_run = runtime.task_run
    run = run_of(attempt)
    if this_run.run_count > 1:
        run.trail.buffer.flush()
    return send_batch(run, batch, this_run.id).as_state()


def upsert_task(settings: Settings) -> Task[[RunAttempt, Batch | GoneBatch], State[BatchResult]]:
    """Return the task with the retries that the settings ask for."""
    return upsert_batch.with_options(
        retries=settings.retry_max,
        retry_delay_seconds=exponential_backoff(settings.retry_base_delay_ms / 1000),
    )


def send_batch(run: Run, batch: Batch | GoneBatch, task_run_id: str) -> BatchResult:
    """Send the items of a batch that have no final outcome; all of it is on record at the end.

    Raises:
        SlotsUnavailable: Prefect's API doesn't answer; nothing was sent.
        MongoUnavailable: MongoDB stayed away; nothing was sent meanwhile.
    """
    if run.settings.task_runner == "threads":
        _share_a_core()
    gate = run.gates[batch.entity_type]
    with nullcontext() if run.options.dry_run else run.slots.held(gate.is_open) as slot:
        sender = _Sender(run, entity_type_named(batch.entity_type), task_run_id, slot)
        try:
            for page in run.lookup.pages(batch):
                sender.carry_out_all(page)
        except Abort:
            _put_on_record(run, batch, sender)
            run.trail.counting.recount(run.id, batch.entity_type)
            raise
    _put_on_record(run, batch, sender)
    if not run.is_here:
        run.trail.counting.recount(run.id, batch.entity_type)
    result = sender.count.result()
    return replace(result, to_retry=0) if gate.closed_because else result


def _put_on_record(run: Run, batch: Batch | GoneBatch, sender: "_Sender") -> None:
    run.trail.buffer.flush()
    run.trail.live.write()
    times = RequestTimes.of(sender.durations_ms)
    run.trail.stages.count_requests(run.attempt, batch.entity_type, times)


class _Sender:
    """Carries out what is decided of a batch's items, in one execution of its task run."""

    def __init__(
        self, run: Run, entity_type: EntityType, task_run_id: str, slot: HeldSlot | None
    ) -> None:
        self.count = BatchCount()
        self.durations_ms: list[float] = []
        self._run = run
        self._gate = run.gates[entity_type.name]
        self._slot = slot
        self._entity_type = entity_type
        self._task_run_id = task_run_id
        self._unchanged = 0
        self._conditions = run.conditions(entity_type)

    def carry_out_all(self, page: Sequence[Candidate]) -> None:
        """Decide each item of a page, and carry it out."""
        for start in range(0, len(page), _ANNOUNCED_AT_ONCE):
            self._carry_out_each(page[start : start + _ANNOUNCED_AT_ONCE])

    def _carry_out_each(self, candidates: Sequence[Candidate]) -> None:
        _raise_if_left(self._gate.closed_because)
        decided = [(candidate, decide(candidate, self._conditions)) for candidate in candidates]
        sends = [(each, it.request) for each, it in decided if isinstance(it, Send)]
        taken = self._run.announce(
            self._entity_type, [(request, each.known) for each, request in sends]
        )
        for candidate, decision in decided:
            if not (isinstance(decision, Send) and candidate.found.natural_key in taken):
                self._carry_out(decision, candidate)
        self._note_back([it.natural_key for _, it in decided if _is_back(it)])
        self._count_unchanged([it for _, it in decided if isinstance(it, LeaveUnchanged)])
        self._tell_changes([(c, it.request) for c, it in decided if isinstance(it, WouldSend)])
        if again := [request.item for _, request in sends if request.item.natural_key in taken]:
            self._carry_out_each(self._run.lookup.candidates(self._entity_type, again))

    def _carry_out(self, decision: Decision, candidate: Candidate) -> None:
        match decision:
            case Send(request, attempts):
                self._send(request, attempts, candidate)
            case Reject(found, error, request):
                self._record(Outcome(found, error, request, candidate.known), candidate)
            case Keep(error):
                self.count.add_outcome(error)
            case LeaveUnchanged():
                self.count.add_unchanged()
            case WouldSend(request):
                self.count.add_would_send(request.item.natural_key)

    def _send(self, request: Request, attempts: int, candidate: Candidate) -> None:
        """Send an item once the gate admits it; of a run that is stopped, it is not sent.

        Raises:
            Abort: this process has to leave the run; the item is let be.
        """
        permit = self._permit()
        if isinstance(permit, StopReason):
            _raise_if_left(permit)
            self._carry_out(after_stop(permit, request, candidate.prior), candidate)
            return
        answer = self._request(request, permit, candidate)
        self.durations_ms.append(answer.duration_ms)
        error = answer.error or request.repeat
        outcome = Outcome(request.item, error, request, candidate.known, answer)
        self._record(outcome, candidate, attempts=attempts + 1)

    def _permit(self) -> Permit | StopReason:
        """Wait for the gate, MongoDB and a slot; return why nothing may be sent, if so."""
        permit = self._gate.admit()
        if isinstance(permit, StopReason):
            return permit
        try:
            self._run.retry.await_mongodb()
            if self._slot is None or self._slot.await_lease():
                return permit
        except BaseException:
            self._gate.abandon(permit)
            raise
        self._gate.abandon(permit)
        return self._gate.admit()

    def _request(self, request: Request, permit: Permit, candidate: Candidate) -> UpsertOutcome:
        """Send one request, and let the run and the stage obey its outcome."""
        run, item = self._run, request.item
        try:
            answer = run.hub.upsert(item.entity_type, request.request_id, item.body)
        except BaseException:
            self._gate.abandon(permit)
            raise
        outcome = run.refusals.judged(answer, was_out=candidate.was_out)
        if endpoint_is_down := self._gate.report(permit, outcome):
            run.stop_switch.stop_stage(item.entity_type.name, endpoint_is_down)
        if reason := stop_after(item, outcome.error):
            run.stop_switch.stop(reason)
        return outcome

    def _count_unchanged(self, items: Sequence[LeaveUnchanged]) -> None:
        """Add to the live counts what no earlier execution of this task run has."""
        self._unchanged += len(items)
        new = self._unchanged - self._run.unchanged[self._task_run_id]
        if new > 0:
            self._run.unchanged[self._task_run_id] += new
            counts = {"skipped": new, "unchanged": new}
            self._run.trail.live.add(self._run.attempt, self._entity_type.name, counts)

    def _note_back(self, natural_keys: Sequence[str]) -> None:
        if natural_keys and not self._conditions.is_dry_run:
            self._run.note_back(self._entity_type, natural_keys)

    def _tell_changes(self, sends: Sequence[tuple[Candidate, Request]]) -> None:
        """Record what a real run would change of the items that it would send."""
        if not sends:
            return
        keys = [request.item.natural_key for _, request in sends]
        bodies = self._run.lookup.bodies(self._entity_type, keys)
        for candidate, request in sends:
            confirmed = bodies.get(request.item.natural_key)
            changes = changes_between(confirmed, request.item.body)
            outcome = Outcome(request.item, NOT_SENT_IN_DRY_RUN, request)
            self._put(outcome, candidate, changes=changes)

    def _record(self, outcome: Outcome, candidate: Candidate, **facts: Any) -> None:
        self._put(outcome, candidate, **facts)
        self.count.add_outcome(outcome.error)

    def _put(self, outcome: Outcome, candidate: Candidate, **facts: Any) -> None:
        prior = candidate.prior
        self._run.record(
            outcome,
            replaced=prior,
            is_new=prior is None,
            task_run_id=self._task_run_id,
            **facts,
        )


def _raise_if_left(closed_because: StopReason | None) -> None:
    if isinstance(closed_because, LeaveReason):
        raise Abort(closed_because.message)


def _is_back(decision: Decision) -> TypeGuard[LeaveUnchanged]:
    return isinstance(decision, LeaveUnchanged) and decision.is_back


def _share_a_core() -> None:
    """Let the thread run on the one core that all threads which send have in this process.

    They take turns at Python's interpreter lock anyway, and handing it to another core takes
    longer than the work in between: tests/benchmarks/README.md has the figures.
    """
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(os.getpid()))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
