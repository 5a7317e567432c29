"""Run: a run as this process works on it, with all that it holds open."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from prefect.context import SyncClientContext

from tasks.decision import Conditions
from tasks.entities import ENTITY_TYPES, EntityType
from tasks.errors import RUN_FORGOTTEN
from tasks.hub.breaker import CircuitBreaker
from tasks.hub.client import hub_admin_client
from tasks.hub.gate import SendGate
from tasks.hub.refusals import Refusals
from tasks.limit import limit_name
from tasks.lookup import Lookup
from tasks.mongo import database, mongo_retry
from tasks.outcome import Outcome, item_write
from tasks.request import Request
from tasks.settings import Settings, read_settings
from tasks.slots import Slots, slots_of_process
from tasks.source.reader import SourceReader
from tasks.stop_switch import StopSwitch
from tasks.trail.audit_trail import audit_trail
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.gone import GoneItems
from tasks.trail.items import Announcement, ItemKey, ItemRecord, Sent
from tasks.trail.runs import RunRecord, SyncMode
from tasks.trail.stages import StageRecord, Tally
from tasks.trail.steps import PriorStep, Step

_RUNS_KEPT: Final = 8


class Run:
    """An attempt of a run, as one process works on it; its connections are those of the process.

    Args:
        attempt: the attempt.
        record: the run's document.
        settings: settings of this process.
        slots: slots of this process.
        is_here: whether its flow run is in this process; in another one, batches may outlive it.
    """

    def __init__(
        self,
        attempt: RunAttempt,
        record: RunRecord,
        settings: Settings,
        slots: Slots,
        *,
        is_here: bool,
    ) -> None:
        self.attempt = attempt
        self.is_here = is_here
        self.id = attempt.run_id
        self.flow_run_id = record.flow_run_id
        self.options = record.options
        self.settings = settings
        self.slots = slots
        self.trail = audit_trail(settings)
        self.retry = mongo_retry(settings)
        self.hub = hub_admin_client(settings)
        self.source = SourceReader(database(settings), self.retry)
        self.lookup = Lookup(
            self.id,
            settings,
            self.source,
            self.trail.items,
            self.trail.steps,
            leaves_unchanged=self.options.mode is SyncMode.CHANGED,
        )
        self.gates = {entity_type.name: self._gate(entity_type) for entity_type in ENTITY_TYPES}
        self.stop_switch = StopSwitch(attempt, self.trail.stops, self.gates)
        self.refusals = Refusals()
        self.unchanged: Counter[str] = Counter()
        """Unchanged items that are in the live counts, by task run: its retries find them again."""
        self.tallies: dict[str, Tally] = {}
        """Tally of each stage that has ended here, by entity type."""
        self._record = record
        self._failed_keys: dict[str, frozenset[str]] = {}

    def announce(
        self, entity_type: EntityType, requests: Sequence[tuple[Request, ItemRecord | None]]
    ) -> set[str]:
        """Note which requests are about to be sent, each with what is on record of its item.

        Those that Stage 1 has confirmed before need not be. Returns the natural keys that are not
        to be sent: see `Items.announce`.
        """
        hub, now = self.settings.hub(entity_type), datetime.now(UTC)
        return self.trail.items.announce(
            [
                Announcement(
                    ItemKey(hub, request.item.entity_type.name, request.item.natural_key),
                    request.item.source_id,
                    Sent(
                        request_id=request.request_id,
                        version=request.version,
                        digest=request.sent_digest,
                        run_id=self.id,
                        at=now,
                    ),
                    revision=known.revision if known else None,
                )
                for request, known in requests
                if request.is_new or request.is_uncertain
            ]
        )

    def record(
        self,
        outcome: Outcome,
        *,
        replaced: PriorStep | None = None,
        is_new: bool = False,
        **facts: Any,
    ) -> None:
        """Record what came of an item.

        Args:
            outcome: what came of it.
            replaced: the step of it that is on record in this run; None for none.
            is_new: whether the run has none, as far as is known.
            facts: further fields of its step.
        """
        found, request, answer = outcome.found, outcome.request, outcome.answer
        step = Step(
            run_id=self.id,
            flow_run_id=self.flow_run_id,
            run_attempt=self.attempt.number,
            entity_type=found.entity_type.name,
            source_id=found.source_id,
            natural_key=found.natural_key,
            version=request.version if request else found.version,
            request_id=request.request_id if request else None,
            error=outcome.error,
            http_status=answer.http_status if answer else None,
            sync_id=answer.sync_id if answer else None,
            duration_ms=answer.duration_ms if answer else None,
            **facts,
        )
        write = None
        if not self.options.dry_run:
            hub = self.settings.hub(found.entity_type)
            write = item_write(hub, outcome, self.id, datetime.now(UTC))
        self.trail.buffer.record(step, write, replaced=replaced, is_new=is_new)

    def note_back(self, entity_type: EntityType, natural_keys: Sequence[str]) -> None:
        """Note that items which had been gone from the source are there again."""
        hub = self.settings.hub(entity_type)
        self.trail.items.are_back(hub, entity_type.name, natural_keys)

    def find_gone(self, entity_type: EntityType) -> GoneItems:
        """Return the items of a type that are gone from the source; a real run notes them."""
        mark_at = None if self.options.dry_run else datetime.now(UTC)
        hub = self.settings.hub(entity_type)
        return self.trail.gone.find(
            hub, entity_type.name, self.source.present(entity_type), mark_at
        )

    def forget_unwanted(self, entity_type: EntityType) -> None:
        """Forget that items are not in of which this run has found no document."""
        if not self.options.dry_run:
            hub = self.settings.hub(entity_type)
            self.trail.gone.forget_failures(hub, entity_type.name, self.id)

    def conditions(self, entity_type: EntityType) -> Conditions:
        """Return the conditions under which the items of a type are sent."""
        return Conditions(
            run_attempt=self.attempt.number,
            is_dry_run=self.options.dry_run,
            leaves_unchanged=self.options.mode is SyncMode.CHANGED,
            failed_keys=self.failed_parents(entity_type),
        )

    def failed_parents(self, entity_type: EntityType) -> dict[str, frozenset[str]]:
        """Return the natural keys of failed parents whose children are not to be sent, by type."""
        if not self.options.skip_orphans:
            return {}
        return {
            parent.entity_type: self._failed_keys_of(parent.entity_type)
            for parent in entity_type.parents
        }

    def restore_record(self) -> None:
        """Write the run's document anew, which somebody has deleted, with what is known of it."""
        stages = [self._as_it_came_out(stage) for stage in self._record.stages]
        self.trail.ownership.restore(self._record, stages, RUN_FORGOTTEN)

    def close(self) -> None:
        """Write the steps that wait, free the slots and close the connections to Stage 1."""
        self.hub.close()
        self.slots.release_idle()
        self.trail.buffer.flush()

    def _as_it_came_out(self, stage: StageRecord) -> StageRecord:
        tally = self.tallies.get(stage.entity_type)
        if tally is None:
            return stage
        return stage.model_copy(update={**dict(tally.totals), "status": tally.totals.outcome})

    def _gate(self, entity_type: EntityType) -> SendGate:
        settings, stages, name = self.settings, self.trail.stages, entity_type.name
        breaker = CircuitBreaker(
            entity_type.url_variable,
            failures=settings.breaker_failures,
            probe_seconds=settings.breaker_probe_ms / 1000,
            limit_seconds=settings.breaker_limit_ms / 1000,
        )
        return SendGate(
            entity_type.url_variable,
            lambda: self.trail.stops.reason(self.attempt, name),
            lambda pace: stages.note_pace(self.attempt, name, pace),
            breaker,
            longest_pause_seconds=settings.retry_after_max_ms / 1000,
        )

    def _failed_keys_of(self, entity_name: str) -> frozenset[str]:
        # The stages of the parents have ended by now.
        if entity_name not in self._failed_keys:
            self._failed_keys[entity_name] = self.trail.steps.failed_keys(self.id, entity_name)
        return self._failed_keys[entity_name]


_runs: dict[RunId, Run] = {}
_runs_lock = threading.Lock()


@contextmanager
def flow_run_of(attempt: RunAttempt, settings: Settings) -> Iterator[Run]:
    """Hold the run open in the process of its flow run, and close it at the end.

    Its Prefect client is that of all task runs on threads of this process, too.

    Raises:
        SlotsUnavailable: Prefect's API doesn't answer.
    """
    with SyncClientContext.get_or_create() as context:
        slots = Slots(context.client, limit_name(settings), settings.concurrency)
        slots.start_limit()
        run = _opened(attempt, settings, slots, is_here=True)
        with _runs_lock:
            _runs[attempt.run_id] = run
        try:
            yield run
        finally:
            with _runs_lock:
                del _runs[attempt.run_id]
            run.close()


def run_of(attempt: RunAttempt) -> Run:
    """Return an attempt of a run as this process works on it; opened at the first call.

    Raises:
        SettingsError: a setting is missing or malformed.
        LookupError: the audit trail knows no such run.
    """
    with _runs_lock:
        run = _runs.get(attempt.run_id)
        if run is None or run.attempt != attempt:
            settings = read_settings()
            slots = slots_of_process(limit_name(settings), settings.concurrency)
            run = _opened(attempt, settings, slots, is_here=False)
            _runs[attempt.run_id] = run
            for earlier in list(_runs)[:-_RUNS_KEPT]:
                del _runs[earlier]
        return run


def run_here(run_id: RunId) -> Run:
    """Return the run whose flow run this process executes.

    Raises:
        KeyError: it executes none of that run.
    """
    return _runs[run_id]


def _opened(attempt: RunAttempt, settings: Settings, slots: Slots, *, is_here: bool) -> Run:
    record = audit_trail(settings).runs.find(attempt.run_id)
    if record is None:
        raise LookupError(f"sync_runs has no run {attempt.run_id}")
    return Run(attempt, record, settings, slots, is_here=is_here)
