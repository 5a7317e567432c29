"""RunHistory: reads the audit trail, as its doors show it; never writes."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pymongo.database import Database

from tasks.errors import WOULD_SEND
from tasks.mongo import Document, MongoRetry, mongo_operation, mongo_retry, trail_database
from tasks.mongo_errors import mongo_errors
from tasks.settings import MongoSettings
from tasks.trail.fields import ForeignDocument, RunId, readable, shown
from tasks.trail.listing import Listing
from tasks.trail.runs import NEWEST_FIRST, RunRecord, run_record
from tasks.trail.stages import RunStatus, StageRecord
from tasks.trail.step_cursor import StepCursor
from tasks.trail.steps import (
    FAILED,
    NOT_IN,
    OLDEST_FIRST,
    SENT,
    SLOWEST_FIRST,
    WITH_CHANGES,
    StepRecord,
    steps_with,
)

EntryType = TypeVar("EntryType", bound=BaseModel)
RunEntry: TypeAlias = RunRecord | ForeignDocument
StepEntry: TypeAlias = StepRecord | ForeignDocument


class Page(BaseModel, Generic[EntryType]):
    """A page of a longer list: `total` is the length of the list."""

    model_config = ConfigDict(frozen=True)

    page: int
    limit: int
    total: int
    items: list[EntryType]


class StepPage(Page[StepEntry]):
    """A page of a run's steps.

    `total` is exact up to 10,000. Of a longer list it is what the stages of the run have counted,
    at most two seconds late.
    """

    next: str | None = Field(None, examples=["1704067207000-507f1f77bcf86cd799439012"])
    """Where the page after this one begins, as `after`; None where this one is the last."""


class RunHistory:
    """The audit trail of one database, for reading.

    Pages and lists of runs show documents of another shape, too.
    Every method but `ping` waits for a MongoDB that is away; every one raises `MongoError`.
    """

    def __init__(self, database: Database[Document], retry: MongoRetry) -> None:
        self._retry = retry
        self._runs = database["sync_runs"]
        self._steps = database["sync_steps"]
        self._newest_runs = Listing(self._runs, NEWEST_FIRST, retry)
        self._oldest_steps = Listing(self._steps, OLDEST_FIRST, retry)
        self._slowest_steps = Listing(self._steps, SLOWEST_FIRST, retry)

    def ping(self) -> None:
        """Return if MongoDB answers now."""
        with mongo_errors():
            self._runs.database.client.admin.command("ping")

    @mongo_operation
    def run(self, run_id: RunId) -> RunRecord | None:
        """Return a run, None where there is none."""
        return run_record(self._runs.find_one({"_id": run_id}))

    @mongo_operation
    def named(self, name: str) -> RunEntry | None:
        """Return the run of that `run_id`, or of the flow run of that id; None for none."""
        match = {"_id": RunId(name)} if RunId.is_valid(name) else {"flow_run_id": name}
        document = self._runs.find_one(match)
        return shown(RunRecord, document) if document else None

    @mongo_operation
    def run_of(self, flow_run_id: str) -> RunRecord | None:
        """Return the run of a Prefect flow run, None where there is none."""
        return run_record(self._runs.find_one({"flow_run_id": flow_run_id}))

    def runs(self, page: int, limit: int) -> Page[RunEntry]:
        """Return a page of the runs, newest first; pages count from 1."""
        found = self._newest_runs.page({}, limit, skip=(page - 1) * limit)
        total = self._runs_on_record()
        return Page(page=page, limit=limit, total=total, items=list(_run_entries(found)))

    def latest_runs(self, limit: int) -> Iterator[RunEntry]:
        """Yield the latest runs, newest first."""
        return _run_entries(self._newest_runs.each({}, limit))

    def unsuccessful_runs(self, limit: int) -> Iterator[RunEntry]:
        """Yield the latest runs that have ended without every item in, newest first."""
        return _run_entries(self._newest_runs.each({"status": {"$in": _UNSUCCESSFUL}}, limit))

    def steps(
        self,
        run_id: RunId,
        page: int,
        limit: int,
        *,
        ok: bool | None = None,
        entity_type: str | None = None,
        after: StepCursor | None = None,
    ) -> StepPage:
        """Return a page of a run's steps, oldest first; pages count from 1.

        However long the list, a page costs the same when `after` leads to it.

        Args:
            run_id: the run.
            page: which page.
            limit: steps a page.
            ok: only items that are in, or only those that are not; None for both.
            entity_type: only items of that type; None for all.
            after: pages count from there; None for from the start.
        """
        match = _steps(run_id, ok, entity_type)
        wanted = self._oldest_steps.beyond(match, after.as_document()) if after else match
        found = self._oldest_steps.page(wanted, limit + 1, skip=(page - 1) * limit)
        on_page = found[:limit]
        return StepPage(
            page=page,
            limit=limit,
            total=self._total(match, run_id, ok, entity_type),
            items=[shown(StepRecord, document) for document in on_page],
            next=_place_of(on_page[-1]) if len(found) > limit else None,
        )

    def failures(
        self, run_id: RunId, limit: int | None = None, entity_type: str | None = None
    ) -> Iterator[StepRecord]:
        """Yield a run's failed steps, or one stage's, oldest first; none that was skipped."""
        failed = steps_with(run_id, FAILED, entity_type)
        return _step_records(self._oldest_steps.each(failed, limit))

    def changes(self, run_id: RunId, limit: int | None = None) -> Iterator[StepRecord]:
        """Yield the steps of a dry run that tell what would change of an item, oldest first."""
        would_change = {"run_id": run_id, "error.code": WOULD_SEND, **WITH_CHANGES}
        return _step_records(self._oldest_steps.each(would_change, limit))

    def slowest(self, run_id: RunId, limit: int) -> list[StepRecord]:
        """Return the steps of a run whose last request took longest, slowest first."""
        return list(_step_records(self._slowest_steps.page({"run_id": run_id, **SENT}, limit)))

    @mongo_operation
    def _runs_on_record(self) -> int:
        return self._runs.estimated_document_count()

    def _total(
        self, match: Document, run_id: RunId, ok: bool | None, entity_type: str | None
    ) -> int:
        counted = self._steps_counted(match)
        if counted <= _COUNTED_AT_MOST:
            return counted
        run = self.run(run_id)
        stages = [
            stage
            for stage in (run.stages if run else ())
            if entity_type in (None, stage.entity_type)
        ]
        return max(counted, sum(_steps_of(stage, ok) for stage in stages))

    @mongo_operation
    def _steps_counted(self, match: Document) -> int:
        return self._steps.count_documents(match, limit=_COUNTED_AT_MOST + 1)


@lru_cache(maxsize=8)
def run_history(settings: MongoSettings) -> RunHistory:
    """Return this process's history of the database that the settings name."""
    return RunHistory(trail_database(settings), mongo_retry(settings))


def _run_entries(documents: Iterable[Document]) -> Iterator[RunEntry]:
    return (shown(RunRecord, document) for document in documents)


def _step_records(documents: Iterable[Document]) -> Iterator[StepRecord]:
    return (step for each in documents if (step := readable(StepRecord, each)))


def _steps(run_id: RunId, ok: bool | None, entity_type: str | None) -> Document:
    """Match a run's steps; where all are wanted, those of another shape, too."""
    if ok is not None:
        return {"ok": ok, **steps_with(run_id, (None,) if ok else NOT_IN, entity_type)}
    if entity_type is not None:
        return steps_with(run_id, (None, *NOT_IN), entity_type)
    return {"run_id": run_id}


def _place_of(step: Document) -> str | None:
    place = StepCursor.of(step)
    return str(place) if place else None


def _steps_of(stage: StageRecord, ok: bool | None) -> int:
    """Return how many steps a stage has counted; items that it left alone have none."""
    not_in = stage.failed + stage.skipped - stage.unchanged
    if ok is None:
        return stage.success + not_in
    return stage.success if ok else not_in


_COUNTED_AT_MOST: Final = 10_000
"""Up to how many steps are counted one by one."""
_UNSUCCESSFUL: Final = [
    status.value for status in RunStatus if status.is_terminal and status is not RunStatus.SUCCESS
]
