"""`sync_steps`: one document for each item of each run."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import Field, computed_field
from pymongo import ASCENDING, DESCENDING, IndexModel, InsertOne, UpdateOne
from pymongo.collection import Collection

from tasks.entities import ENTITY_NAMES, label_of
from tasks.errors import (
    DUPLICATE_KEY,
    PARENT_FAILED,
    SUPERSEDED,
    VERSION_NOT_RAISED,
    VERSION_REUSED,
    WOULD_SEND,
    ErrorClass,
    ItemError,
)
from tasks.mongo import Document, MongoRetry, identity, mongo_operation
from tasks.trail.fields import Record, RunId, RunKey, Text, UtcTime, stored_error
from tasks.trail.runs import RunErrorRecord
from tasks.trail.stages import StageTotals, Tally

ERRORS_SHOWN: Final = 100
"""How many errors a run's own document carries; all of them are in the steps."""
OLDEST_FIRST: Final = {"created_at": ASCENDING, "_id": ASCENDING}
NEWEST_STEP_FIRST: Final = {"created_at": DESCENDING, "_id": DESCENDING}
SLOWEST_FIRST: Final = {"duration_ms": DESCENDING, "_id": ASCENDING}
SENT: Final = {"duration_ms": {"$gt": 0}}
"""Match steps of items for which a request was sent."""
WITH_CHANGES: Final = {"changes.0": {"$exists": True}}
"""Match steps of a dry run that tell what would change."""
NOT_IN: Final = tuple(ErrorClass)
"""Classes of errors of items that are not in."""
FAILED: Final = tuple(each for each in ErrorClass if each is not ErrorClass.SKIPPED)
"""Those of items that were not skipped."""


class StepState(StrEnum):
    """Prefect's name for the state of an item, as if it had a task run to itself."""

    COMPLETED = "Completed"
    FAILED = "Failed"
    AWAITING_RETRY = "AwaitingRetry"
    SKIPPED = "Skipped"


_STATE_BY_CLASS: Final = {
    None: StepState.COMPLETED,
    ErrorClass.TRANSIENT: StepState.AWAITING_RETRY,
    ErrorClass.PERMANENT: StepState.FAILED,
    ErrorClass.RUN_STOPPING: StepState.FAILED,
    ErrorClass.SKIPPED: StepState.SKIPPED,
}
_STEP_KEY: Final = [
    ("run_id", ASCENDING),
    ("entity_type", ASCENDING),
    ("source_id", ASCENDING),
]
_OF_ONE_DOCUMENT: Final = [DUPLICATE_KEY, VERSION_NOT_RAISED, VERSION_REUSED]
"""Codes of documents that are not in, though Stage 1 has an item of their natural key."""
_NO_ERRORS: Final = [SUPERSEDED, WOULD_SEND]
"""Codes of items that are not sent, and need not be."""
_AWAITING_RETRY: Final = {"state": StepState.AWAITING_RETRY.value}
STEP_INDEXES: Final = [
    IndexModel(_STEP_KEY, unique=True),
    IndexModel([("run_id", ASCENDING), *OLDEST_FIRST.items()]),
    IndexModel(
        [
            ("run_id", ASCENDING),
            ("entity_type", ASCENDING),
            ("error.class", ASCENDING),
            *OLDEST_FIRST.items(),
        ]
    ),
    IndexModel(
        [("run_id", ASCENDING), *SLOWEST_FIRST.items()],
        partialFilterExpression=SENT,
    ),
    IndexModel(
        [("run_id", ASCENDING), ("error.code", ASCENDING), *OLDEST_FIRST.items()],
        partialFilterExpression=WITH_CHANGES,
    ),
    IndexModel(
        [("entity_type", ASCENDING), ("natural_key", ASCENDING), *NEWEST_STEP_FIRST.items()]
    ),
    IndexModel(
        [("run_id", ASCENDING), ("task_run_id", ASCENDING)],
        partialFilterExpression=_AWAITING_RETRY,
    ),
]
STEP_EXPIRY: Final = "steps_expire"
"""Name of the index by which MongoDB deletes steps, `ADMIN_STEPS_RETENTION_DAYS` after a change."""


class FieldChange(Record):
    """A field that a sync would change; as JSON, None where it is absent."""

    field: str = Field(examples=["enabled"])
    old: str | None = Field(examples=["true"])
    new: str | None = Field(examples=["false"])


class PriorStep(Record):
    """How far an item has come in a run."""

    error: ItemError | None = Field(
        None,
        examples=[
            {
                "code": "NOT_FOUND",
                "message": "client semperaltius does not exist",
                "class": "permanent",
            }
        ],
    )
    """Why the item is not in; None for one that is."""
    attempts: int = Field(0, examples=[1])
    """How many requests were sent for it."""
    run_attempt: int = Field(0, exclude=True)
    """Which execution of the run has recorded it, from 1; 0 in steps of older versions."""


class Step(PriorStep):
    """An item in a run, as it is recorded; times in milliseconds."""

    run_id: RunKey = Field(examples=["507f1f77bcf86cd799439011"])
    entity_type: str = Field(examples=["domain"])
    natural_key: str | None = Field(examples=["pagos.semperaltius.edu.mx"])
    source_id: Text = Field(examples=["507f1f77bcf86cd799439013"])
    version: int | str | None = Field(examples=[1])
    request_id: str | None = Field(None, examples=["bd5aebc6b4bd41b7dae2b8c05e57d2fa"])
    http_status: int | None = Field(None, examples=[404])
    sync_id: str | None = None
    duration_ms: float | None = Field(None, examples=[12.5])
    flow_run_id: str = Field(examples=["39f453ec-7ef3-4310-9f72-4de981dc45f3"])
    task_run_id: str | None = Field(None, examples=["9c577579-8753-4d41-926b-45bbd5a3d081"])
    changes: list[FieldChange] | None = None
    """In a dry run, what would change of an item that would be sent."""
    state: StepState = Field(
        default_factory=lambda data: state_after(data["error"]), examples=["Failed"]
    )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def key(self) -> str:
        """Name of the item: its natural key, or its `_id` where it has none."""
        return label_of(self.natural_key, self.source_id)


class StepRecord(Step):
    """A document of `sync_steps`."""

    id: Text = Field(validation_alias="_id", examples=["507f1f77bcf86cd799439012"])
    created_at: UtcTime = Field(examples=["2024-01-01T00:00:07.000Z"])
    updated_at: UtcTime = Field(examples=["2024-01-01T00:00:07.000Z"])


def state_after(error: ItemError | None) -> StepState:
    """Return the state of an item whose last outcome is `error`, None for success."""
    return _STATE_BY_CLASS[error.error_class if error else None]


def insert_of(step: Step) -> InsertOne[Document]:
    """Return the write of a step that is not there yet; it costs half of what an upsert does."""
    now = datetime.now(UTC)
    return InsertOne({**_fields_of(step), "created_at": now, "updated_at": now})


def upsert_of(step: Step) -> UpdateOne:
    """Return the write of a step; one that a later attempt of its run has written stays."""
    now = datetime.now(UTC)
    fields = {**_fields_of(step), "updated_at": now}
    source_id = fields.pop("source_id")
    key = {"run_id": fields.pop("run_id"), "entity_type": fields.pop("entity_type")}
    by_no_later_attempt = {"run_attempt": {"$not": {"$gt": step.run_attempt}}}
    return UpdateOne(
        {**key, "source_id": {"$eq": source_id}, **by_no_later_attempt},
        {"$set": fields, "$setOnInsert": {"created_at": now}},
        upsert=True,
    )


def _fields_of(step: Step) -> Document:
    fields = {**vars(step), "ok": step.ok, "error": stored_error(step.error)}
    if step.changes is not None:
        fields["changes"] = [dict(vars(change)) for change in step.changes]
    return fields


def steps_with(
    run_id: RunId, error_classes: Sequence[ErrorClass | None], entity_type: str | None = None
) -> Document:
    """Match a run's steps by the class of their error, and by type, as their index knows them.

    All that is possible is named, so that MongoDB finds them in order, without sorting.

    Args:
        run_id: the run.
        error_classes: the classes; None for that of an item that is in.
        entity_type: only steps of that type; None for all.
    """
    return {
        "run_id": run_id,
        "entity_type": {"$in": list(ENTITY_NAMES)} if entity_type is None else entity_type,
        "error.class": {"$in": [each and each.value for each in error_classes]},
    }


class Steps:
    """Reads the steps of runs, and ends those that await a retry."""

    def __init__(self, steps: Collection[Document], retry: MongoRetry) -> None:
        self._steps = steps
        self._retry = retry

    @mongo_operation
    def prior(
        self, run_id: RunId, entity_type: str, source_ids: Sequence[Any]
    ) -> dict[bytes, PriorStep]:
        """Return the steps on record of this run for these documents, by `identity`."""
        of_stage = {"run_id": run_id, "entity_type": entity_type}
        if self._steps.find_one(of_stage, {"_id": True}) is None:
            return {}
        fields = dict.fromkeys(("source_id", *PriorStep.model_fields), True)
        steps = self._steps.find({**of_stage, **_is_one_of(source_ids)}, fields)
        return {identity(step["source_id"]): PriorStep.model_validate(step) for step in steps}

    @mongo_operation
    def failed_keys(self, run_id: RunId, entity_type: str) -> frozenset[str]:
        """Return the natural keys of a type that a run can't bring in, whatever it tries."""
        not_in = steps_with(run_id, [ErrorClass.PERMANENT, ErrorClass.SKIPPED], entity_type)
        for_good = [
            {"error.class": ErrorClass.PERMANENT.value, "error.code": {"$nin": _OF_ONE_DOCUMENT}},
            {"error.code": PARENT_FAILED},
        ]
        steps = self._steps.find({**not_in, "$or": for_good}, {"natural_key": True})
        return frozenset(step["natural_key"] for step in steps if step["natural_key"])

    @mongo_operation
    def fail_awaiting(self, run_id: RunId, task_run_id: str | None = None) -> int:
        """Fail a run's items, or a task run's, that await a retry: none will come.

        Returns how many there were.
        """
        of_task_run = {"task_run_id": task_run_id} if task_run_id else {}
        failed = self._steps.update_many(
            {"run_id": run_id, **of_task_run, **_AWAITING_RETRY},
            {"$set": {"state": StepState.FAILED.value, "updated_at": datetime.now(UTC)}},
        )
        return failed.modified_count

    @mongo_operation
    def items_in(self, run_id: RunId, entity_type: str) -> int:
        """Count the items of a stage that are in, as far as steps tell."""
        return self._steps.count_documents(steps_with(run_id, [None], entity_type))

    @mongo_operation
    def tally(self, run_id: RunId, entity_type: str) -> Tally:
        """Count a stage's items by outcome, most frequent error code first."""
        group = {"code": "$error.code", "class": "$error.class"}
        groups = self._steps.aggregate(
            [
                {"$match": {"run_id": run_id, "entity_type": entity_type}},
                {"$group": {"_id": group, "count": {"$sum": 1}}},
                {"$sort": {"count": DESCENDING, "_id": ASCENDING}},
            ]
        )
        return _tally(groups)

    @mongo_operation
    def first_errors(self, run_id: RunId) -> list[RunErrorRecord]:
        """Return the oldest errors of a run, `ERRORS_SHOWN` at most."""
        errors = {**steps_with(run_id, NOT_IN), "error.code": {"$nin": _NO_ERRORS}}
        failed = self._steps.find(errors).sort(OLDEST_FIRST)
        return [_error_record(step) for step in failed.limit(ERRORS_SHOWN)]


def _error_record(step: Document) -> RunErrorRecord:
    source_id = None if step["natural_key"] else str(step["source_id"])
    return RunErrorRecord.model_validate({**step, **step["error"], "source_id": source_id})


def _is_one_of(source_ids: Sequence[Any]) -> Document:
    """Match documents of these `_id`s; a view may yield one that looks like an operator."""
    plain = [source_id for source_id in source_ids if not isinstance(source_id, dict)]
    odd = [{"source_id": {"$eq": each}} for each in source_ids if isinstance(each, dict)]
    return {"$or": [{"source_id": {"$in": plain}}, *odd]} if odd else {"source_id": {"$in": plain}}


def _tally(groups: Iterable[Document]) -> Tally:
    success = skipped = 0
    codes: Counter[str] = Counter()
    for group in groups:
        code, count = group["_id"].get("code"), group["count"]
        if code is None:
            success += count
            continue
        codes[code] += count
        if group["_id"]["class"] == ErrorClass.SKIPPED:
            skipped += count
    totals = StageTotals(
        total=success + codes.total(),
        success=success,
        failed=codes.total() - skipped,
        skipped=skipped,
        superseded=codes.pop(SUPERSEDED, 0),
        would_send=codes.pop(WOULD_SEND, 0),
    )
    return Tally(totals, codes)
