"""RunHistory: reads the audit trail, as its doors show it; never writes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final, Generic, TypeVar

from bson import ObjectId
from bson.errors import InvalidId
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    WithJsonSchema,
)
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database

from tasks.entities import label_of
from tasks.errors import ErrorClass
from tasks.mongo import Document, Patience, database, patience_with, patiently, translating_errors
from tasks.settings import MongoSettings
from tasks.trail.audit import (
    REQUEST_BUCKETS,
    RequestTimes,
    RunId,
    RunStatus,
    StepState,
    SyncMode,
    Totals,
)


def _in_milliseconds(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parsed_run_id(text: str) -> RunId:
    try:
        return ObjectId(text)
    except InvalidId:
        raise ValueError("not a run_id (24 hex digits)") from None


UtcTime = Annotated[datetime, PlainSerializer(_in_milliseconds, when_used="json")]
"""A time, in JSON as the seed document writes it: `2024-01-01T00:00:00.000Z`."""
Text = Annotated[str, BeforeValidator(str)]
"""A value of any BSON type, as text."""
RunKey = Annotated[
    InstanceOf[RunId],
    BeforeValidator(_parsed_run_id),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-fA-F]{24}$"}),
]
"""A `run_id` that came in as text."""
RecordType = TypeVar("RecordType", bound=BaseModel)


class _Record(BaseModel):
    """What a document of the trail says; fields that it has besides these are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Counts(_Record):
    """Items by outcome; `total` is the sum of the others once the run or stage has ended."""

    total: int
    success: int
    failed: int
    skipped: int


class StageRecord(Counts):
    """One stage of a run.

    `unchanged` items were skipped because an earlier run had sent them, `would_send` ones because
    it was a dry run; `first` is the natural key of the first of those.
    """

    entity_type: str
    status: RunStatus
    unchanged: int = 0
    would_send: int = 0
    first: str | None = None
    started_at: UtcTime | None
    finished_at: UtcTime | None

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it runs."""
        return _seconds_between(self.started_at, self.finished_at)


class RunErrorRecord(_Record):
    """An item that is not in, as the run's own document tells of it."""

    entity_type: str
    natural_key: str | None
    code: str
    message: str


class RunRecord(_Record):
    """A document of `sync_runs`. Counts of a run that goes on are not final."""

    id: Text = Field(validation_alias="_id")
    status: RunStatus
    started_at: UtcTime
    finished_at: UtcTime | None
    totals: Counts
    errors: list[RunErrorRecord]
    mode: SyncMode
    dry_run: bool = False
    trigger: str | None
    message: str | None
    flow_run_id: str
    flow_run_name: str
    stages: list[StageRecord]

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it runs."""
        return _seconds_between(self.started_at, self.finished_at)


class StepErrorRecord(_Record):
    """Why an item is not in."""

    code: str
    message: str
    error_class: ErrorClass = Field(alias="class")


class StepRecord(_Record):
    """A document of `sync_steps`: what became of one item in one run; times in milliseconds."""

    id: Text = Field(validation_alias="_id")
    run_id: Text
    entity_type: str
    natural_key: str | None
    source_id: Text
    version: int | str | None
    request_id: str | None
    ok: bool
    state: StepState
    http_status: int | None
    sync_id: str | None
    error: StepErrorRecord | None
    attempts: int
    duration_ms: float | None
    flow_run_id: str
    task_run_id: str | None
    created_at: UtcTime
    updated_at: UtcTime

    @property
    def key(self) -> str:
        """What to call the item: its natural key, or its `_id` where it has none."""
        return label_of(self.natural_key, self.source_id)


@dataclass(frozen=True)
class EntityFigures:
    """What all runs that were no dry runs have come to for one entity type.

    `last_success` is when a stage last ended with every item in; None if none ever did.
    """

    items: Totals = field(default_factory=Totals)
    requests: RequestTimes = field(default_factory=RequestTimes)
    last_success: datetime | None = None


class Page(BaseModel, Generic[RecordType]):
    """A page of a longer list: `total` is the length of the list."""

    model_config = ConfigDict(frozen=True)

    page: int
    limit: int
    total: int
    items: list[RecordType]


class RunHistory:
    """The audit trail of one database, for reading.

    Every method but `ping` waits for a MongoDB that is away; every one raises `MongoUnavailable`
    when it stays away.
    """

    def __init__(self, database: Database[Document], patience: Patience) -> None:
        self._patience = patience
        self._runs = database["sync_runs"]
        self._steps = database["sync_steps"]

    @translating_errors
    def ping(self) -> None:
        """Return if MongoDB answers now."""
        self._runs.database.client.admin.command("ping")

    @translating_errors
    @patiently
    def run(self, run_id: RunId) -> RunRecord | None:
        """Return a run, None where there is none."""
        return _run_record(self._runs.find_one({"_id": run_id}))

    @translating_errors
    @patiently
    def run_of(self, flow_run_id: str) -> RunRecord | None:
        """Return the run of a Prefect flow run, None where there is none."""
        return _run_record(self._runs.find_one({"flow_run_id": flow_run_id}))

    @translating_errors
    @patiently
    def runs(self, page: int, limit: int) -> Page[RunRecord]:
        """Return a page of the runs, newest first; pages count from 1."""
        return Page(
            page=page,
            limit=limit,
            total=self._runs.estimated_document_count(),
            items=self._run_records({}, limit, skip=(page - 1) * limit),
        )

    @translating_errors
    @patiently
    def unsuccessful_runs(self, limit: int) -> list[RunRecord]:
        """Return the latest runs that have ended without every item in, newest first."""
        return self._run_records({"status": {"$in": _UNSUCCESSFUL}}, limit)

    @translating_errors
    @patiently
    def steps(
        self,
        run_id: RunId,
        page: int,
        limit: int,
        *,
        ok: bool | None = None,
        entity_type: str | None = None,
    ) -> Page[StepRecord]:
        """Return a page of a run's steps, oldest first; pages count from 1.

        Args:
            run_id: the run.
            page: which page.
            limit: steps a page.
            ok: only items that are in, or only those that are not; None for both.
            entity_type: only items of that type; None for all.
        """
        wanted = {"ok": ok, "entity_type": entity_type}
        match = {"run_id": run_id} | {k: v for k, v in wanted.items() if v is not None}
        return Page(
            page=page,
            limit=limit,
            total=self._steps.count_documents(match),
            items=self._step_records(match, _OLDEST_FIRST, limit, skip=(page - 1) * limit),
        )

    @translating_errors
    @patiently
    def failures(
        self, run_id: RunId, limit: int | None = None, entity_type: str | None = None
    ) -> list[StepRecord]:
        """Return a run's failed steps, or one stage's, oldest first; none that was skipped."""
        match: Document = {
            "run_id": run_id,
            "ok": False,
            "error.class": {"$ne": ErrorClass.SKIPPED.value},
        }
        if entity_type is not None:
            match["entity_type"] = entity_type
        return self._step_records(match, _OLDEST_FIRST, limit)

    @translating_errors
    @patiently
    def slowest(self, run_id: RunId, limit: int) -> list[StepRecord]:
        """Return the steps of a run whose last request took longest, slowest first."""
        match = {"run_id": run_id, "duration_ms": {"$ne": None}}
        return self._step_records(match, {"duration_ms": DESCENDING, "_id": ASCENDING}, limit)

    @translating_errors
    @patiently
    def steps_done(self, run_id: RunId, entity_type: str) -> int:
        """Count the steps that a stage has by now."""
        return self._steps.count_documents({"run_id": run_id, "entity_type": entity_type})

    @translating_errors
    def figures(self) -> dict[str, EntityFigures]:
        """Sum up the stages of all runs by entity type; from `sync_runs`, which never expire."""
        groups = self._runs.aggregate(
            [
                {"$match": {"dry_run": {"$ne": True}}},
                {"$unwind": "$stages"},
                {"$group": _FIGURES_BY_TYPE},
            ]
        )
        return {group["_id"]: _entity_figures(group) for group in groups}

    @translating_errors
    def runs_by_status(self) -> dict[RunStatus, int]:
        """Count all runs, dry ones too; every status is there."""
        groups = self._runs.aggregate([{"$group": {"_id": "$status", "runs": {"$sum": 1}}}])
        found = {group["_id"]: group["runs"] for group in groups}
        return {status: found.get(status.value, 0) for status in RunStatus}

    def _run_records(self, match: Document, limit: int, skip: int = 0) -> list[RunRecord]:
        found = self._runs.find(match).sort(_NEWEST_FIRST).skip(skip).limit(limit)
        return [RunRecord.model_validate(document) for document in found]

    def _step_records(
        self, match: Document, order: Mapping[str, int], limit: int | None, skip: int = 0
    ) -> list[StepRecord]:
        found = self._steps.find(match).sort(order).skip(skip).limit(limit or _NO_LIMIT)
        return [StepRecord.model_validate(document) for document in found]


@lru_cache(maxsize=8)
def run_history(settings: MongoSettings) -> RunHistory:
    """Return this process's history of the database that the settings name."""
    return RunHistory(database(settings), patience_with(settings))


_NEWEST_FIRST: Final = {"started_at": DESCENDING, "_id": DESCENDING}
_OLDEST_FIRST: Final = {"created_at": ASCENDING, "_id": ASCENDING}
_NO_LIMIT: Final = 0
_UNSUCCESSFUL: Final = [
    status.value for status in RunStatus if status.is_terminal and status is not RunStatus.SUCCESS
]
_HAS_SUCCEEDED: Final = {"$eq": ["$stages.status", RunStatus.SUCCESS.value]}
_FIGURES_BY_TYPE: Final[Document] = {
    "_id": "$stages.entity_type",
    **{name: {"$sum": f"$stages.{name}"} for name in ("success", "failed", "skipped", "unchanged")},
    **{name: {"$sum": f"$stages.requests.{name}"} for name in ("count", "seconds")},
    **{name: {"$sum": f"$stages.requests.buckets.{name}"} for name in REQUEST_BUCKETS},
    "last_success": {"$max": {"$cond": [_HAS_SUCCEEDED, "$stages.finished_at", None]}},
}


def _entity_figures(group: Document) -> EntityFigures:
    buckets = tuple(group[name] for name in REQUEST_BUCKETS)
    return EntityFigures(
        Totals(group["success"], group["failed"], group["skipped"], group["unchanged"]),
        RequestTimes(group["count"], group["seconds"], buckets),
        group["last_success"],
    )


def _run_record(document: Document | None) -> RunRecord | None:
    return None if document is None else RunRecord.model_validate(document)


def _seconds_between(started: datetime | None, finished: datetime | None) -> float | None:
    return (finished - started).total_seconds() if started and finished else None
