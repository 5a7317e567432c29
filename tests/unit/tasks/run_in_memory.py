"""A run whose parts are in memory: a Stage 1 that answers, a source, and a trail on mongomock."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from pymongo.collection import Collection
from pymongo.database import Database

from tasks.entities import ENTITY_TYPES, EntityType, entity_type_named
from tasks.errors import ItemError
from tasks.hub.answer import UpsertOutcome
from tasks.mongo import MongoRetry, identity
from tasks.run import Run
from tasks.settings import read_settings
from tasks.source.batch import LOWEST, NO_END, Batch
from tasks.source.item import Found, InvalidItem, Item, Unchanged, item_from
from tasks.trail.audit_trail import AuditTrail
from tasks.trail.counting import Counting
from tasks.trail.fields import RunId
from tasks.trail.liveness import Liveness
from tasks.trail.runs import RunOptions, Runs
from tasks.trail.stages import RequestTimes, Stages, StageTotals
from tasks.trail.step_buffer import StepBuffer
from tasks.trail.steps import PriorStep, Step, Steps
from tasks.trail.stops import Stops
from tasks.upsert import BatchResult
from tests.trail_documents import OPTIONS, step_document

Document = dict[str, Any]
IN = UpsertOutcome(None, 200, "sync-1", 12.5)
BATCH = Batch("tenant", "batch 1 of 1", LOWEST, NO_END, size=3)


def batch_result(
    success: int = 0,
    failed: int = 0,
    skipped: int = 0,
    *,
    unchanged: int = 0,
    would_send: int = 0,
    first: str | None = None,
    to_retry: int = 0,
    first_error: ItemError | None = None,
) -> BatchResult:
    """Return the result of a batch; `skipped` are those that have a step."""
    left_alone = unchanged + would_send
    totals = StageTotals(
        total=success + failed + skipped + left_alone,
        success=success,
        failed=failed,
        skipped=skipped + left_alone,
        unchanged=unchanged,
        would_send=would_send,
        first=first,
    )
    return BatchResult(totals, to_retry, first_error)


def item(entity_type: str, key: str, **fields: Any) -> Item | InvalidItem:
    """Return an item whose `_id` is its natural key."""
    document = {"_id": key, "id": key, "name": key.title(), "version": 1, **fields}
    return item_from(entity_type_named(entity_type), document)


def tenant(key: str, **fields: Any) -> Item | InvalidItem:
    """Return a tenant whose `_id` is its natural key."""
    return item("tenant", key, **fields)


class Hub:
    """A Stage 1 that gives its answers in turn, and takes everything after that."""

    def __init__(self, *answers: UpsertOutcome | BaseException) -> None:
        self._answers = list(answers)
        self.sent: list[tuple[str, str, Document]] = []
        self.is_closed = False

    def upsert(self, entity_type: EntityType, request_id: str, body: Document) -> UpsertOutcome:
        self.sent.append((entity_type.name, request_id, body))
        answer = self._answers.pop(0) if self._answers else IN
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        self.is_closed = True

    @property
    def keys(self) -> list[str]:
        """Natural keys of what was sent."""
        return [body["id"] for _, _, body in self.sent]


class Source:
    """A source whose items are all in one batch."""

    def __init__(self, *items: Item | InvalidItem) -> None:
        self.items = items
        self.superseded: list[Item | InvalidItem] = []

    def read(self, _batch: Batch) -> Iterator[Item | InvalidItem]:
        return iter(self.items)

    def read_unless(
        self, _batch: Batch, confirmed: Callable[[Sequence[str]], Container[str]]
    ) -> Iterator[Found]:
        known = confirmed([item.request_id for item in self.items if isinstance(item, Item)])
        for item in self.items:
            is_known = isinstance(item, Item) and item.request_id in known
            yield Unchanged(item.source_id) if is_known else item

    def duplicates(self, _entity_type: EntityType) -> Iterator[Item | InvalidItem]:
        return iter(self.superseded)

    def plan(self, entity_type: EntityType, concurrency: int, max_batches: int) -> list[Batch]:
        assert (concurrency, max_batches) == (3, 100)
        return [
            Batch(entity_type.name, str(number), LOWEST, NO_END, size=number + 1)
            for number in range(len(self.items))
        ]


class Slots:
    """Slots that are always free."""

    def __init__(self) -> None:
        self.held_by: list[bool] = []
        self.expected: int | None = None
        self.are_released = False

    @contextmanager
    def held(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        self.held_by.append(is_wanted())
        yield

    def expect(self, batches: int) -> None:
        self.expected = batches

    def release_idle(self) -> None:
        self.are_released = True


class _Steps(Steps):
    """Steps without the index bounds that mongomock does not know: a stage has one batch."""

    def __init__(self, sync_steps: Collection[Document], retry: MongoRetry) -> None:
        super().__init__(sync_steps, retry)
        self._documents = sync_steps

    def prior(
        self, run_id: RunId, entity_type: str, _start: Any, _end: Any
    ) -> dict[bytes, PriorStep]:
        found = self._documents.find({"run_id": run_id, "entity_type": entity_type})
        return {identity(step["source_id"]): PriorStep.model_validate(step) for step in found}


class _Buffer(StepBuffer):
    """Steps that wait for a flush, and are written one by one."""

    def __init__(self, sync_steps: Collection[Document], retry: MongoRetry) -> None:
        super().__init__(sync_steps, retry)
        self._documents = sync_steps
        self._recorded: list[Step] = []

    def record(self, step: Step) -> None:
        self._recorded.append(step)

    def flush(self) -> None:
        while self._recorded:
            fields = dict(self._recorded.pop(0))
            document = step_document(
                fields.pop("run_id"), fields.pop("source_id"), fields.pop("error"), **fields
            )
            key = {name: document[name] for name in ("run_id", "entity_type", "source_id")}
            self._documents.delete_one(key)
            self._documents.insert_one(document)


class _Stages(Stages):
    """Stages whose requests are kept apart: mongomock increments no field that is new."""

    def __init__(self, sync_runs: Collection[Document], retry: MongoRetry) -> None:
        super().__init__(sync_runs, retry)
        self.requests: list[tuple[str, RequestTimes]] = []

    def count_requests(self, _run_id: RunId, entity_type: str, times: RequestTimes) -> None:
        self.requests.append((entity_type, times))


def trail_in_memory(database: Database[Document], retry: MongoRetry) -> AuditTrail:
    """Return an audit trail on mongomock."""
    sync_runs, sync_steps = database.sync_runs, database.sync_steps
    runs, steps = Runs(sync_runs, retry), _Steps(sync_steps, retry)
    buffer = _Buffer(sync_steps, retry)
    return AuditTrail(
        runs,
        _Stages(sync_runs, retry),
        Stops(sync_runs, retry),
        Liveness(sync_runs, retry),
        steps,
        buffer,
        Counting(runs, steps, buffer),
    )


class RunInMemory:
    """Makes runs of parts in memory; Stage 1, the source and the slots can be chosen before."""

    def __init__(
        self, database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.hub = Hub()
        self.source = Source()
        self.slots = Slots()
        self.trail = trail_in_memory(database, retry)
        self.database = database
        self._monkeypatch = monkeypatch
        for entity_type in ENTITY_TYPES:
            monkeypatch.setenv(entity_type.url_variable, "https://hub.example/upsert")
        monkeypatch.setenv("ADMIN_SYNC_TOKEN", "a-token")
        monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:9")
        monkeypatch.setenv("ADMIN_TASK_RUNNER", "dask")  # threads stay on one core for good
        parts = {"audit_trail": self.trail, "mongo_retry": retry, "database": database}
        for name, part in parts.items():
            monkeypatch.setattr(f"tasks.run.{name}", lambda _settings, part=part: part)
        monkeypatch.setattr("tasks.run.hub_admin_client", lambda _settings: self.hub)
        monkeypatch.setattr("tasks.run.SourceReader", lambda _database, _retry: self.source)

    def open(self, options: RunOptions = OPTIONS, *, is_here: bool = True, **settings: str) -> Run:
        """Return the next attempt of the one run."""
        for variable, value in settings.items():
            self._monkeypatch.setenv(variable, value)
        run_id = self.trail.runs.open("a flow run", "its name", options)
        attempt = self.trail.runs.begin_attempt(run_id)
        record = self.trail.runs.find(run_id)
        assert record is not None
        slots: Any = self.slots
        return Run(attempt, record, read_settings(), slots, is_here=is_here)

    def steps(self) -> dict[str, Document]:
        """Return the steps on record by natural key."""
        return {step["natural_key"]: step for step in self.database.sync_steps.find()}
