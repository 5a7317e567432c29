"""`sync_runs`: one document for each run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, cast

from bson import ObjectId
from pydantic import Field
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument
from pymongo.collection import Collection

from tasks.errors import StopReason
from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.trail.fields import Record, RunId, RunKey, UtcTime, readable, stored
from tasks.trail.stages import (
    RunStatus,
    StageRecord,
    StageTotals,
    Totals,
    most_of,
    seconds_between,
)

RUN_INDEXES: Final = [
    IndexModel([("flow_run_id", ASCENDING)], unique=True),
    IndexModel([("started_at", DESCENDING), ("_id", DESCENDING)]),
    IndexModel([("status", ASCENDING), ("started_at", DESCENDING), ("_id", DESCENDING)]),
    IndexModel(
        [("stages.entity_type", ASCENDING), ("started_at", DESCENDING), ("_id", DESCENDING)]
    ),
    IndexModel(
        [("counted_at", ASCENDING), ("_id", ASCENDING)],
        partialFilterExpression={"counted_at": {"$exists": True}},
    ),
]
ACTIVE: Final[Mapping[str, Any]] = {"active": True}
"""Field of the one run of the database that has the turn; the others lack it."""
INACTIVE: Final[Mapping[str, Any]] = {"active": True, "alive_at": True}
"""Fields that a run loses when nobody works on it any more."""
NEWEST_FIRST: Final = {"started_at": DESCENDING, "_id": DESCENDING}


class SyncMode(StrEnum):
    """Which items a run sends."""

    FULL = "full"
    """All of them."""
    CHANGED = "changed"
    """Those that Stage 1 does not hold as they are, as far as `sync_items` knows."""


@dataclass(frozen=True)
class RunOptions:
    """Options that were asked for."""

    trigger: str
    entities: tuple[str, ...]
    mode: SyncMode = SyncMode.FULL
    dry_run: bool = False
    skip_orphans: bool = False
    disable_gone: bool = False

    def as_parameters(self) -> dict[str, Any]:
        """Return the parameters of the flow that ask for the same."""
        return {**asdict(self), "entities": list(self.entities)}


class RunErrorRecord(Record):
    """An item that is not in, as the run's own document tells of it."""

    entity_type: str = Field(examples=["domain"])
    natural_key: str | None = Field(examples=["pagos.semperaltius.edu.mx"])
    source_id: str | None = Field(None, examples=[None])
    """`_id` of the source document, where there is no natural key."""
    code: str = Field(examples=["NOT_FOUND"])
    message: str = Field(examples=["client semperaltius does not exist"])


class RunRecord(Record):
    """A document of `sync_runs`. Counts of a run that goes on are not final."""

    id: RunKey = Field(
        default_factory=ObjectId, validation_alias="_id", examples=["507f1f77bcf86cd799439011"]
    )
    status: RunStatus = Field(RunStatus.PENDING, examples=["partial"])
    state: str | None = Field(None, examples=["Partial"])
    """Prefect's name of the state that is mirrored; None for none yet, and in older documents."""
    started_at: UtcTime = Field(examples=["2024-01-01T00:00:00.000Z"])
    finished_at: UtcTime | None = Field(None, examples=["2024-01-01T00:00:10.000Z"])
    totals: Totals = Totals()
    errors: list[RunErrorRecord] = Field(default_factory=list)
    mode: SyncMode = Field(examples=["full"])
    dry_run: bool = False
    trigger: str | None = Field(examples=["REST API"])
    message: str | None = Field(None, examples=["1 of 1 items failed: NOT_FOUND (1)"])
    flow_run_id: str = Field(examples=["39f453ec-7ef3-4310-9f72-4de981dc45f3"])
    flow_run_name: str = Field(examples=["domain - REST API"])
    stages: list[StageRecord]
    parameters: dict[str, Any] = Field({}, exclude=True)
    attempt: int = Field(0, exclude=True)
    """How many executions have begun."""
    stopped_because: StopReason | None = Field(None, exclude=True)
    """Why nothing more is sent."""
    mirrored_at: datetime | None = Field(None, exclude=True)
    """When Prefect's flow run entered the state that `status` is taken from."""
    alive_at: datetime | None = Field(None, exclude=True)
    """When the process of the run was last heard of, by MongoDB's clock; None while it has none."""

    @property
    def seconds(self) -> float | None:
        """Seconds that it took; None while it runs."""
        return seconds_between(self.started_at, self.finished_at)

    @property
    def options(self) -> RunOptions:
        """Return the options that were asked for."""
        entities = tuple(stage.entity_type for stage in self.stages)
        skip_orphans = self.parameters.get("skip_orphans", False)
        disable_gone = self.parameters.get("disable_gone", False)
        return RunOptions(
            self.trigger or "", entities, self.mode, self.dry_run, skip_orphans, disable_gone
        )


class Runs:
    """Finds, opens and ends runs."""

    def __init__(self, runs: Collection[Document], retry: MongoRetry) -> None:
        self._runs = runs
        self._retry = retry

    @mongo_operation
    def open(self, flow_run_id: str, flow_run_name: str, options: RunOptions) -> RunId:
        """Find or create the run of a Prefect flow run and return its `run_id`."""
        opening = RunRecord(
            flow_run_id=flow_run_id,
            flow_run_name=flow_run_name,
            started_at=datetime.now(UTC),
            stages=[],
            **as_fields(options),
        )
        document = stored_inactive(opening)
        document["stages"] = [opening_stage(entity_type) for entity_type in options.entities]
        run = self._runs.find_one_and_update(
            {"flow_run_id": flow_run_id},
            {"$setOnInsert": document},
            projection={"_id": True},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        return cast(RunId, cast(Document, run)["_id"])

    @mongo_operation
    def next_key(self) -> str:
        """Return a text that changes with each new run: who gets the same means the same run."""
        newest = self._runs.find_one({}, {"_id": True}, sort=[("_id", DESCENDING)])
        count = self._runs.estimated_document_count()
        return f"{count}:{newest and newest['_id']}"

    @mongo_operation
    def find(self, run_id: RunId) -> RunRecord | None:
        """Return a run, None where there is none."""
        return run_record(self._runs.find_one({"_id": run_id}))

    @mongo_operation
    def end(
        self,
        run: RunRecord,
        status: RunStatus,
        message: str,
        at: datetime | None,
        stages: Sequence[StageRecord],
        errors: Sequence[RunErrorRecord],
        state_name: str | None = None,
    ) -> bool:
        """Note how a run ended, and its stages with it; False where that is older news.

        So it is where another attempt has begun since the run was read. `at` is when Prefect has
        noted this end, by its clock; None where it has not. `state_name` is what Prefect calls it;
        None where that says no more than the status.
        """
        name = state_name or status.state_name
        ending = _recounted(run, stages, errors)
        ending["$set"] |= {"status": status, "state": name, "message": message}
        ending["$unset"] = INACTIVE
        # Older versions did not count attempts.
        as_read: Document = {"_id": run.id, "attempt": run.attempt or {"$in": [0, None]}}
        if at is None:
            ending["$currentDate"] |= {"finished_at": True}
        else:
            ending["$set"] |= {"mirrored_at": at, "finished_at": at}
            as_read |= not_newer_than(at, "$lte")
        return bool(self._runs.update_one(as_read, ending).matched_count)

    @mongo_operation
    def correct(
        self, run: RunRecord, stages: Sequence[StageRecord], errors: Sequence[RunErrorRecord]
    ) -> bool:
        """Let a run and its stages count what `stages` say; False where they do."""
        if run.stages == stages and run.totals == sum_of(stages):
            return False
        self._runs.update_one({"_id": run.id}, _recounted(run, stages, errors))
        return True


def run_record(document: Document | None) -> RunRecord | None:
    """Return a document of `sync_runs` as a record; None for none, or one of another shape."""
    return None if document is None else readable(RunRecord, document)


def stored_inactive(run: RunRecord) -> Document:
    """Return a run as it is stored while no process works on it; its stages are left to others."""
    document = stored(run)
    document["_id"] = document.pop("id")
    for name in INACTIVE:
        document.pop(name, None)
    return document


def sum_of(stages: Sequence[StageRecord]) -> Totals:
    """Return the totals of a run: the sum of its stages."""
    total = sum(stages, StageTotals())
    return Totals(**{name: getattr(total, name) for name in Totals.model_fields})


def as_fields(options: RunOptions) -> Document:
    """Return the fields of a run that tell what was asked for, but for its stages."""
    return {
        "mode": options.mode,
        "dry_run": options.dry_run,
        "trigger": options.trigger,
        "parameters": options.as_parameters(),
    }


def opening_stage(entity_type: str) -> Document:
    """Return a stage as it is stored before it begins."""
    return StageRecord(entity_type=entity_type).model_dump()


def not_newer_than(at: datetime, comparison: str) -> Document:
    """Match runs whose state is not from later than `at`, by Prefect's clock."""
    return {"$or": [{"mirrored_at": None}, {"mirrored_at": {comparison: at}}]}


def _recounted(
    run: RunRecord, stages: Sequence[StageRecord], errors: Sequence[RunErrorRecord]
) -> Document:
    """Return the change that makes a run count what `stages` say; of them, only what differs.

    `counted_at`, by MongoDB's clock, tells those who keep sums of runs to look again.
    """
    changed = {
        f"stages.{index}.{name}": value
        for index, (before, after) in enumerate(zip(run.stages, stages, strict=True))
        for name, value in after
        if value != getattr(before, name)
    }
    counts = {
        "totals": sum_of(stages).model_dump(),
        "errors": [error.model_dump() for error in errors],
        **changed,
    }
    change: Document = {
        "$set": counts,
        "$currentDate": {"counted_at": True},
    }
    for index, stage in enumerate(stages):
        change.setdefault("$max", {}).update(most_of(stage, index))
    return change
