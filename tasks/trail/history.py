"""RunHistory: reads the audit trail, as its doors show it; never writes."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database

from tasks.errors import WOULD_SEND, ErrorClass
from tasks.mongo import Document, MongoRetry, mongo_operation, mongo_retry, trail_database
from tasks.mongo_errors import mongo_errors
from tasks.settings import MongoSettings
from tasks.trail.fields import RunId
from tasks.trail.runs import NEWEST_FIRST, RunRecord, run_record
from tasks.trail.stages import RunStatus
from tasks.trail.steps import OLDEST_FIRST, StepRecord

RecordType = TypeVar("RecordType", bound=BaseModel)


class Page(BaseModel, Generic[RecordType]):
    """A page of a longer list: `total` is the length of the list."""

    model_config = ConfigDict(frozen=True)

    page: int
    limit: int
    total: int
    items: list[RecordType]


class RunHistory:
    """The audit trail of one database, for reading.

    Every method but `ping` waits for a MongoDB that is away; every one raises `MongoError`.
    """

    def __init__(self, database: Database[Document], retry: MongoRetry) -> None:
        self._retry = retry
        self._runs = database["sync_runs"]
        self._steps = database["sync_steps"]

    def ping(self) -> None:
        """Return if MongoDB answers now."""
        with mongo_errors():
            self._runs.database.client.admin.command("ping")

    @mongo_operation
    def run(self, run_id: RunId) -> RunRecord | None:
        """Return a run, None where there is none."""
        return run_record(self._runs.find_one({"_id": run_id}))

    @mongo_operation
    def run_of(self, flow_run_id: str) -> RunRecord | None:
        """Return the run of a Prefect flow run, None where there is none."""
        return run_record(self._runs.find_one({"flow_run_id": flow_run_id}))

    @mongo_operation
    def runs(self, page: int, limit: int) -> Page[RunRecord]:
        """Return a page of the runs, newest first; pages count from 1."""
        return Page(
            page=page,
            limit=limit,
            total=self._runs.estimated_document_count(),
            items=self._run_records({}, limit, skip=(page - 1) * limit),
        )

    @mongo_operation
    def unsuccessful_runs(self, limit: int) -> list[RunRecord]:
        """Return the latest runs that have ended without every item in, newest first."""
        return self._run_records({"status": {"$in": _UNSUCCESSFUL}}, limit)

    @mongo_operation
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
            items=self._step_records(match, OLDEST_FIRST, limit, skip=(page - 1) * limit),
        )

    @mongo_operation
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
        return self._step_records(match, OLDEST_FIRST, limit)

    @mongo_operation
    def changes(self, run_id: RunId, limit: int | None = None) -> list[StepRecord]:
        """Return the steps of a dry run that tell what would change of an item, oldest first."""
        match: Document = {
            "run_id": run_id,
            "ok": False,
            "error.code": WOULD_SEND,
            "changes.0": {"$exists": True},
        }
        return self._step_records(match, OLDEST_FIRST, limit)

    @mongo_operation
    def slowest(self, run_id: RunId, limit: int) -> list[StepRecord]:
        """Return the steps of a run whose last request took longest, slowest first."""
        match = {"run_id": run_id, "duration_ms": {"$ne": None}}
        return self._step_records(match, {"duration_ms": DESCENDING, "_id": ASCENDING}, limit)

    @mongo_operation
    def steps_done(self, run_id: RunId, entity_type: str) -> int:
        """Count the steps that a stage has by now."""
        return self._steps.count_documents({"run_id": run_id, "entity_type": entity_type})

    def _run_records(self, match: Document, limit: int, skip: int = 0) -> list[RunRecord]:
        found = self._runs.find(match).sort(NEWEST_FIRST).skip(skip).limit(limit)
        return [RunRecord.model_validate(document) for document in found]

    def _step_records(
        self, match: Document, order: Mapping[str, int], limit: int | None, skip: int = 0
    ) -> list[StepRecord]:
        found = self._steps.find(match).sort(order).skip(skip).limit(limit or _NO_LIMIT)
        return [StepRecord.model_validate(document) for document in found]


@lru_cache(maxsize=8)
def run_history(settings: MongoSettings) -> RunHistory:
    """Return this process's history of the database that the settings name."""
    return RunHistory(trail_database(settings), mongo_retry(settings))


_NO_LIMIT: Final = 0
_UNSUCCESSFUL: Final = [
    status.value for status in RunStatus if status.is_terminal and status is not RunStatus.SUCCESS
]
