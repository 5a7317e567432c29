"""`sync_steps`: one document for each item of each run."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from bson import MaxKey
from pydantic import Field, PlainSerializer, computed_field
from pymongo import ASCENDING, DESCENDING, IndexModel, UpdateOne
from pymongo.collection import Collection

from tasks.entities import label_of
from tasks.errors import DUPLICATE_KEY, PARENT_FAILED, ErrorClass, ItemError
from tasks.mongo import Document, MongoRetry, identity, mongo_operation
from tasks.trail.fields import Record, RunId, RunKey, UtcTime, stored
from tasks.trail.runs import RunErrorRecord
from tasks.trail.stages import StageTotals, Tally

ERRORS_SHOWN: Final = 100
"""How many errors a run's own document carries; all of them are in the steps."""
OLDEST_FIRST: Final = {"created_at": ASCENDING, "_id": ASCENDING}


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
_AWAITING_RETRY: Final = {"state": StepState.AWAITING_RETRY.value}
STEP_INDEXES: Final = [
    IndexModel(_STEP_KEY, unique=True),
    IndexModel([("run_id", ASCENDING), *OLDEST_FIRST.items()]),
    IndexModel(
        [("run_id", ASCENDING), ("ok", ASCENDING), *OLDEST_FIRST.items()],
        partialFilterExpression={"ok": False},
    ),
    IndexModel([("request_id", ASCENDING), ("ok", ASCENDING)]),
    IndexModel(
        [("run_id", ASCENDING), ("task_run_id", ASCENDING)],
        partialFilterExpression=_AWAITING_RETRY,
    ),
]
STEP_EXPIRY: Final = "steps_expire"
"""Name of the index by which MongoDB deletes steps, `ADMIN_STEPS_RETENTION_DAYS` after a change."""

Text = Annotated[Any, PlainSerializer(str, return_type=str, when_used="json")]
"""A value of any BSON type, shown as text."""


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


def upsert_of(step: Step) -> UpdateOne:
    """Return the write of a step; one that a later attempt of its run has written stays."""
    now = datetime.now(UTC)
    fields = {**stored(step), "updated_at": now}
    source_id = fields.pop("source_id")
    key = {"run_id": fields.pop("run_id"), "entity_type": fields.pop("entity_type")}
    by_no_later_attempt = {"run_attempt": {"$not": {"$gt": step.run_attempt}}}
    return UpdateOne(
        {**key, "source_id": {"$eq": source_id}, **by_no_later_attempt},
        {"$set": fields, "$setOnInsert": {"created_at": now}},
        upsert=True,
    )


class Steps:
    """Reads the steps of runs, and ends those that await a retry."""

    def __init__(self, steps: Collection[Document], retry: MongoRetry) -> None:
        self._steps = steps
        self._retry = retry

    @mongo_operation
    def confirmed(self, request_ids: Sequence[str]) -> set[str]:
        """Return those of the request ids that have a successful step in any run."""
        return set(
            self._steps.distinct("request_id", {"request_id": {"$in": request_ids}, "ok": True})
        )

    @mongo_operation
    def prior(
        self, run_id: RunId, entity_type: str, start: Any, end: Any
    ) -> dict[bytes, PriorStep]:
        """Return the steps on record of this run for `start <= source_id < end`, by `identity`."""
        # No source_id is beyond MaxKey, but one may be MaxKey: then all of the entity type count.
        is_open = isinstance(end, MaxKey)
        low = [("run_id", run_id), ("entity_type", entity_type), ("source_id", start)]
        high = [
            ("run_id", run_id),
            ("entity_type", f"{entity_type}\0" if is_open else entity_type),
            ("source_id", end),
        ]
        fields = dict.fromkeys(("source_id", *PriorStep.model_fields), True)
        steps = self._steps.find({}, fields).hint(_STEP_KEY).min(low).max(high)
        return {identity(step["source_id"]): PriorStep.model_validate(step) for step in steps}

    @mongo_operation
    def failed_keys(self, run_id: RunId, entity_type: str) -> frozenset[str]:
        """Return the natural keys of a type that a run can't bring in, whatever it tries."""
        not_in = {"run_id": run_id, "ok": False, "entity_type": entity_type}
        for_good = [
            {"error.class": ErrorClass.PERMANENT.value, "error.code": {"$ne": DUPLICATE_KEY}},
            {"error.code": PARENT_FAILED},
        ]
        steps = self._steps.find({**not_in, "$or": for_good}, {"natural_key": True})
        return frozenset(step["natural_key"] for step in steps if step["natural_key"])

    @mongo_operation
    def fail_awaiting(self, run_id: RunId, task_run_id: str | None = None) -> None:
        """Fail a run's items, or a task run's, that await a retry: none will come."""
        of_task_run = {"task_run_id": task_run_id} if task_run_id else {}
        self._steps.update_many(
            {"run_id": run_id, **of_task_run, **_AWAITING_RETRY},
            {"$set": {"state": StepState.FAILED.value, "updated_at": datetime.now(UTC)}},
        )

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
        failed = self._steps.find({"run_id": run_id, "ok": False}).sort(OLDEST_FIRST)
        return [
            RunErrorRecord.model_validate({**step, **step["error"]})
            for step in failed.limit(ERRORS_SHOWN)
        ]


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
    total = success + codes.total()
    failed = codes.total() - skipped
    return Tally(StageTotals(total=total, success=success, failed=failed, skipped=skipped), codes)
