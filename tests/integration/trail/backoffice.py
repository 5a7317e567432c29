"""A back office, a Stage 1 that keeps to the contract, and syncs between them without Prefect.

Faults come at the request: it is refused, its answer is lost, or the process dies there. A process
that dies takes with it what it has not written.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import MagicMock, Mock, patch

from pymongo.database import Database

from flows.conclusion import conclusion, status_of
from tasks.batch_result import BatchResult
from tasks.entities import EntityType
from tasks.errors import ErrorClass, ItemError
from tasks.hub.answer import UpsertOutcome
from tasks.mongo import MongoRetry
from tasks.run import Run
from tasks.settings import Settings
from tasks.source.batch import Batch, GoneBatch
from tasks.stage import close_stage, plan_gone, plan_stage
from tasks.trail.audit_trail import AuditTrail, trail_of
from tasks.trail.items import ItemWrite
from tasks.trail.runs import RunOptions, SyncMode
from tasks.trail.stages import RunStatus, StageTotals, Tally
from tasks.trail.step_buffer import StepBuffer
from tasks.trail.steps import Step
from tasks.upsert import send_batch
from tests.trail_documents import begin, live_counts

Document = dict[str, Any]

REFUSED = "refused"
LOST = "lost"
"""Nothing was stored, and no answer came."""
STORED_AND_LOST = "stored and lost"
DIES_BEFORE = "dies before"
DIES_AFTER = "dies after"

_NO = UpsertOutcome(
    ItemError("NOT_FOUND", "no", ErrorClass.PERMANENT), 404, None, 1.0, is_refusal=True
)
_SILENCE = UpsertOutcome(ItemError("TIMEOUT", "no answer", ErrorClass.TRANSIENT), None, None, 1.0)


class Died(BaseException):
    """The process has died."""


class Stage1:
    """A Stage 1 that answers a repeated request id as the first one, and changes nothing then."""

    def __init__(self) -> None:
        self.items: dict[str, Document] = {}
        self.requests = 0
        self._taken: set[str] = set()
        self._faults: list[str | None] = []
        self._at_requests: dict[int, Callable[[], None]] = {}

    @property
    def is_edited_meanwhile(self) -> bool:
        return bool(self._at_requests)

    def expect(
        self, faults: Sequence[str | None], at_requests: dict[int, Callable[[], None]]
    ) -> None:
        """Let the next requests go wrong in this way, and something happen before some of them."""
        self.requests = 0
        self._faults, self._at_requests = list(faults), at_requests

    def upsert(self, entity_type: EntityType, request_id: str, body: Document) -> UpsertOutcome:
        if happening := self._at_requests.get(self.requests):
            happening()
        self.requests += 1
        fault = self._faults.pop(0) if self._faults else None
        if fault == DIES_BEFORE:
            raise Died
        if fault == REFUSED:
            return _NO
        if fault == LOST:
            return _SILENCE
        if request_id not in self._taken:
            self._taken.add(request_id)
            self.items[body[entity_type.natural_key]] = body
        if fault == DIES_AFTER:
            raise Died
        return _SILENCE if fault == STORED_AND_LOST else UpsertOutcome(None, 200, "sync", 1.0)


class BackOffice:
    """The source documents of tenants, and what was recorded of their syncs."""

    def __init__(self, database: Database[Document], retry: MongoRetry, settings: Settings) -> None:
        self.stage1 = Stage1()
        self.database = database
        self.tenants = database.source_tenants
        self._retry = retry
        self._settings = settings

    def sync(
        self,
        mode: str = "full",
        *,
        disable_gone: bool = False,
        faults: Sequence[str | None] = (),
        at_requests: dict[int, Callable[[], None]] | None = None,
    ) -> "Synced | None":
        """Sync the tenants; None where the process died."""
        self.stage1.expect(faults, at_requests or {})
        options = RunOptions("a test", ("tenant",), SyncMode(mode), disable_gone=disable_gone)
        with self._run(options) as run:
            try:
                synced = self._synced(run)
            except Died:
                run.trail.buffer.die()  # type: ignore[attr-defined]
                synced = None
            status = synced.status if synced else RunStatus.CRASHED
            run.trail.counting.end_run(run.id, status, "", None)
            return synced

    def record(self, natural_key: str) -> Document:
        """Return what is on record of an item; {} for nothing."""
        return self.database.sync_items.find_one({"natural_key": natural_key}) or {}

    @contextmanager
    def _run(self, options: RunOptions) -> Iterator[Run]:
        trail = self._trail()
        run_id = trail.runs.open(uuid.uuid4().hex, "its name", options)
        attempt = begin(trail.ownership, run_id, options)
        record = trail.runs.find(run_id)
        assert record is not None
        slots: Any = MagicMock()
        slots.held.return_value.__enter__.return_value.await_lease.return_value = True
        with patch.multiple(
            "tasks.run",
            audit_trail=lambda _settings: trail,
            mongo_retry=lambda _settings: self._retry,
            database=lambda _settings: self.database,
            hub_admin_client=lambda _settings: self.stage1,
        ):
            yield Run(attempt, record, self._settings, slots, is_here=True)

    def _trail(self) -> AuditTrail:
        database, retry = self.database, self._retry
        buffer = MortalBuffer(
            database.sync_steps, database.sync_items, live_counts(database, retry), retry
        )
        return trail_of(database.sync_runs, database.sync_steps, database.sync_items, buffer, retry)

    def _synced(self, run: Run) -> "Synced":
        batches: list[Batch | GoneBatch] = [*plan_stage(run, "tenant")]
        results = [self._sent(run, batch) for batch in batches]
        gone = plan_gone(run, "tenant")
        results += [self._sent(run, batch) for batch in gone]
        futures: Any = [Mock(result=Mock(return_value=result)) for result in results]
        tally = close_stage(run, "tenant", [*batches, *gone], futures)
        self._require_live(run, tally.totals)
        status = status_of(conclusion(tally, run.stop_switch.reason("tenant")))
        steps = list(self.database.sync_steps.find({"run_id": run.id}))
        return Synced(status, tally, steps)

    def _require_live(self, run: Run, totals: StageTotals) -> None:
        """The counts that were live while the stage went on came to what its end counts."""
        run.trail.live.write()
        record = run.trail.runs.find(run.id)
        assert record is not None
        (live,) = (stage for stage in record.stages if stage.entity_type == "tenant")
        assert live.failed + live.retrying == totals.failed
        counts = {"success", "skipped", "unchanged", "superseded"}
        assert live.model_dump(include=counts) == totals.model_dump(include=counts)
        if not self.stage1.is_edited_meanwhile:
            assert live.total == totals.total

    def _sent(self, run: Run, batch: Batch | GoneBatch) -> BatchResult:
        result = send_batch(run, batch, batch.name)
        for _ in range(run.settings.retry_max):
            if not result.to_retry:
                break
            result = send_batch(run, batch, batch.name)
        return result


@dataclass(frozen=True)
class Synced:
    """What a sync came to."""

    status: RunStatus
    tally: Tally
    steps: list[Document]

    def codes(self) -> dict[str | None, set[str | None]]:
        """Return the error codes by natural key; None for what is in."""
        codes: dict[str | None, set[str | None]] = {}
        for step in self.steps:
            code = step["error"] and step["error"]["code"]
            codes.setdefault(step["natural_key"], set()).add(code)
        return codes


class MortalBuffer(StepBuffer):
    """A buffer that writes by no clock, and may die."""

    def record(self, step: Step, item: ItemWrite | None = None, **facts: Any) -> None:
        super().record(step, item, **facts)
        if self._timer is not None:
            self._timer.cancel()

    def die(self) -> None:
        """Lose what waits."""
        self._take()
