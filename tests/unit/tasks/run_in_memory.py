"""A run whose parts are in memory: a Stage 1 that answers, a source, and a trail on mongomock."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from pymongo import InsertOne, UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DuplicateKeyError

from tasks.batch_result import BatchResult
from tasks.entities import ENTITY_TYPES, EntityType, entity_type_named
from tasks.errors import ItemError
from tasks.hub.answer import UpsertOutcome
from tasks.mongo import MongoRetry
from tasks.request import request_of
from tasks.run import Run
from tasks.settings import read_settings
from tasks.slots import HeldSlot
from tasks.source.batch import LOWEST, NO_END, Batch
from tasks.source.bookkeeping import natural_key_of
from tasks.source.item import Found, Item, item_from
from tasks.source.twins import Twin, losers, twin_from
from tasks.trail.audit_trail import AuditTrail, trail_of
from tasks.trail.fields import RunAttempt
from tasks.trail.item_writes import confirmation_of, failure_of
from tasks.trail.items import Confirmed, ItemKey, ItemRecord, ItemWrite, LastOutcome
from tasks.trail.live_counts import LiveCounts
from tasks.trail.runs import RunOptions
from tasks.trail.stages import RequestTimes, Stages, StageTotals
from tasks.trail.step_buffer import StepBuffer
from tasks.trail.steps import Step
from tests.trail_documents import HUB, OPTIONS, PERMANENT, RUN, at, begin

Document = dict[str, Any]
IN = UpsertOutcome(None, 200, "sync-1", 12.5)
BATCH = Batch("tenant", "batch 1 of 1", LOWEST, NO_END, size=3)
NOW = int(at(0).timestamp()) * 1000


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
    """Return the result of a batch; `skipped` are those that were not to be left alone."""
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


def document(key: str, **fields: Any) -> Document:
    """Return a source document whose `_id` is its natural key."""
    return {"_id": key, "id": key, "name": key.title(), "version": 1, **fields}


def found(key: str, entity_type: str = "tenant", **fields: Any) -> Found:
    """Return what is found of a source document."""
    return item_from(entity_type_named(entity_type), document(key, **fields), NOW)


def item(key: str, entity_type: str = "tenant", **fields: Any) -> Item:
    """Return the item of a source document that can be sent."""
    item = found(key, entity_type, **fields)
    assert isinstance(item, Item)
    return item


class Hub:
    """A Stage 1 that gives its answers in turn, and takes everything after that."""

    def __init__(self, *answers: UpsertOutcome | BaseException) -> None:
        self._answers = list(answers)
        self.sent: list[tuple[str, str, Document]] = []
        self.before: Callable[[], object] = lambda: None
        """What happens before a request is answered."""
        self.is_closed = False

    def upsert(self, entity_type: EntityType, request_id: str, body: Document) -> UpsertOutcome:
        self.before()
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
    """A source whose documents are all in one batch; they come in `_id` order."""

    def __init__(self, *documents: Document) -> None:
        self.documents = list(documents)
        self.collections = [entity_type.collection for entity_type in ENTITY_TYPES]

    def pages(self, batch: Batch) -> Iterator[list[Found]]:
        entity_type = entity_type_named(batch.entity_type)
        if self.documents:
            yield [item_from(entity_type, document, NOW) for document in self.documents]

    def duplicates(self, entity_type: EntityType) -> Iterator[Twin]:
        return losers(self.twins(entity_type, self.present(entity_type)))

    def twins(self, entity_type: EntityType, natural_keys: Container[str]) -> list[Twin]:
        keys = [natural_key_of(entity_type, document) for document in self.documents]
        return [
            twin_from(entity_type, key, document, NOW)
            for key, document in zip(keys, self.documents, strict=True)
            if key is not None and key in natural_keys
        ]

    def existing(self, entity_types: Sequence[EntityType]) -> list[str]:
        return [each.collection for each in entity_types if each.collection in self.collections]

    def present(self, entity_type: EntityType) -> set[str]:
        keys = {natural_key_of(entity_type, document) for document in self.documents}
        return {key for key in keys if key is not None}

    def plan(self, entity_type: EntityType, concurrency: int, max_batches: int) -> list[Batch]:
        assert (concurrency, max_batches) == (3, 100)
        return [
            Batch(entity_type.name, str(number), LOWEST, NO_END, size=number + 1)
            for number in range(len(self.documents))
        ]


class Slots:
    """Slots that are always free."""

    def __init__(self) -> None:
        self.held_by: list[bool] = []
        self.expected: int | None = None
        self.are_released = False
        self.lease: Any = Mock(is_valid=True)

    @contextmanager
    def held(self, is_wanted: Callable[[], bool]) -> Iterator[HeldSlot]:
        self.held_by.append(is_wanted())
        yield HeldSlot(self.lease, self.regain)

    def regain(self, _lost: Any) -> Any:
        """Return another lease for one that is lost: there is none."""
        return None

    def expect(self, batches: int) -> None:
        self.expected = batches

    def release_idle(self) -> None:
        self.are_released = True


class _OneByOne:
    """A collection whose bulk writes are made one by one: mongomock fails at PyMongo's own."""

    def __init__(self, collection: Collection[Document]) -> None:
        self._collection = collection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    def bulk_write(
        self, writes: Sequence[InsertOne[Document] | UpdateOne], *, ordered: bool
    ) -> None:
        assert not ordered
        faults = [
            {"index": position, "code": 11000, "errmsg": ""}
            for position, write in enumerate(writes)
            if not self._is_written(write)
        ]
        if faults:
            raise BulkWriteError({"writeErrors": faults, "writeConcernErrors": []})

    def _is_written(self, write: InsertOne[Document] | UpdateOne) -> bool:
        try:
            if isinstance(write, InsertOne):
                self._collection.insert_one(dict(write._doc))
                return True
            self._collection.update_one(write._filter, write._doc, upsert=bool(write._upsert))
        except DuplicateKeyError:
            return False
        return True


class _Buffer(StepBuffer):
    """Steps that wait for a flush, and go by no clock."""

    def record(self, step: Step, item: ItemWrite | None = None, **facts: Any) -> None:
        super().record(step, item, **facts)
        if self._timer is not None:
            self._timer.cancel()


class _Stages(Stages):
    """Stages whose requests are kept apart: mongomock increments no field that is new."""

    def __init__(self, sync_runs: Collection[Document], retry: MongoRetry) -> None:
        super().__init__(sync_runs, retry)
        self.requests: list[tuple[str, RequestTimes]] = []

    def count_requests(self, _attempt: RunAttempt, entity_type: str, times: RequestTimes) -> None:
        self.requests.append((entity_type, times))


def trail_in_memory(database: Database[Document], retry: MongoRetry) -> AuditTrail:
    """Return an audit trail on mongomock."""
    sync_runs: Any = database.sync_runs
    sync_steps: Any = _OneByOne(database.sync_steps)
    sync_items: Any = _OneByOne(database.sync_items)
    stages = _Stages(sync_runs, retry)
    buffer = _Buffer(sync_steps, sync_items, LiveCounts(stages), retry)
    trail = trail_of(sync_runs, sync_steps, sync_items, buffer, retry)
    return replace(trail, stages=stages)


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
            monkeypatch.setenv(entity_type.url_variable, HUB)
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
        attempt = begin(self.trail.ownership, run_id, options)
        record = self.trail.runs.find(run_id)
        assert record is not None
        slots: Any = self.slots
        return Run(attempt, record, read_settings(), slots, is_here=is_here)

    def steps(self) -> dict[str, Document]:
        """Return the steps on record by natural key."""
        return {step["natural_key"]: step for step in self.database.sync_steps.find()}

    def items(self) -> dict[str, Document]:
        """Return the documents of `sync_items` by natural key."""
        return {item["natural_key"]: item for item in self.database.sync_items.find()}

    def confirm(self, *items: Item) -> None:
        """Put on record that Stage 1 has confirmed items, each after what is on record of it."""
        for item in items:
            key, known = self._known(item)
            request = request_of(item, known)
            confirmed = Confirmed(
                request_id=request.request_id,
                version=request.version,
                digest=item.digest,
                run_id=RUN,
                at=at(0),
                body=item.body,
            )
            self._write(confirmation_of(key, item.source_id, confirmed, known))

    def fail(self, item: Item, error: ItemError = PERMANENT, requests: int = 1) -> None:
        """Put on record that an item is not in."""
        key, _ = self._known(item)
        last = LastOutcome(ok=False, error=error, run_id=RUN, at=at(1))
        self._write(failure_of(key, item.source_id, last, requests=requests, not_taken=None))

    def _known(self, item: Item) -> tuple[ItemKey, ItemRecord | None]:
        key = ItemKey(HUB, item.entity_type.name, item.natural_key)
        known = self.trail.items.known(HUB, key.entity_type, [key.natural_key])
        return key, known.get(key.natural_key)

    def _write(self, write: UpdateOne) -> None:
        _OneByOne(self.database.sync_items).bulk_write([write], ordered=False)
