"""The entries of `sync_runs.stages`: one for each entity type of a run."""

import logging
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Self

from pydantic import Field
from pymongo.collection import Collection
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from tasks.errors import StopReason
from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.trail.fields import Record, RunAttempt, UtcTime

_logger = logging.getLogger(__name__)

REQUEST_BOUNDS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, math.inf)
"""Upper bounds of the buckets that requests are counted in, in milliseconds."""
REQUEST_BUCKETS: Final = tuple(f"{bound:g}" for bound in REQUEST_BOUNDS_MS)
"""Names of the buckets in `sync_runs`."""
OUTCOMES: Final = ("success", "failed", "skipped", "unchanged")
"""What becomes of an item, as `StageTotals.by_outcome` counts it."""
_SOON: Final = WriteConcern(w=1, j=False)


class RunStatus(StrEnum):
    """Status of a run and of each of its stages."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    """Everything is in."""
    PARTIAL = "partial"
    """Some items are in and some are not."""
    FAILED = "failed"
    """Nothing is in, or the run was stopped, or our own code failed."""
    CANCELLED = "cancelled"
    CRASHED = "crashed"

    @property
    def is_terminal(self) -> bool:
        return self not in UNFINISHED

    @property
    def state_name(self) -> str:
        """Name of the Prefect state that says no more than the status."""
        return _STATE_NAMES.get(self, self.capitalize())


_STATE_NAMES: Final = {RunStatus.SUCCESS: "Completed"}
UNFINISHED: Final = (RunStatus.PENDING, RunStatus.RUNNING)


class Totals(Record):
    """Items by outcome.

    `total` is the sum of the others once the run or stage has ended, and the number of items that
    are expected before.
    """

    total: int = Field(0, examples=[1])
    success: int = Field(0, examples=[0])
    failed: int = Field(0, examples=[1])
    skipped: int = Field(0, examples=[0])


_OF_A_RUN: Final = tuple(Totals.model_fields)
"""Counts that a run has, too."""


class StageTotals(Totals):
    """Items of a stage, or of several.

    Of the skipped ones, `unchanged` are those that Stage 1 holds as they are, `superseded` deleted
    documents beside others of their natural key, and `would_send` those that only a dry run did not
    send; `first` is the natural key of the first of those. `gone` items are counted nowhere else:
    Stage 1 holds them enabled, and their documents are gone from the source.
    """

    unchanged: int = 0
    superseded: int = 0
    would_send: int = 0
    first: str | None = None
    gone: int = 0

    @property
    def items_in(self) -> int:
        return self.success + self.unchanged

    @property
    def wanted(self) -> int:
        """How many items Stage 1 should hold."""
        return self.total - self.superseded

    @property
    def by_outcome(self) -> dict[str, int]:
        """Items by outcome, each counted once: those that are unchanged are not skipped, too."""
        return {
            "success": self.success,
            "failed": self.failed,
            "skipped": self.skipped - self.unchanged,
            "unchanged": self.unchanged,
        }

    @property
    def outcome(self) -> RunStatus:
        """Status that the counts alone say; nothing to do is a success."""
        if self.items_in == self.wanted:
            return RunStatus.SUCCESS
        return RunStatus.PARTIAL if self.items_in else RunStatus.FAILED

    @property
    def left_alone(self) -> "StageTotals":
        """Those of the items that have no step, and what no step tells."""
        return StageTotals(
            total=self.unchanged,
            skipped=self.unchanged,
            unchanged=self.unchanged,
            first=self.first,
            gone=self.gone,
        )

    def __add__(self, other: "StageTotals") -> "StageTotals":
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in StageTotals.model_fields
            if name != "first"
        }
        return StageTotals(**sums, first=self.first or other.first)


@dataclass(frozen=True)
class Tally:
    """Items of a stage, or of several; `codes` counts those that are not in by error code."""

    totals: StageTotals = field(default_factory=StageTotals)
    codes: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.totals + other.totals, Counter(self.codes) + Counter(other.codes))


@dataclass(frozen=True)
class RequestTimes:
    """How long requests to Stage 1 took: how many, seconds in all, and how many a bucket.

    Each request is counted in one of `buckets`, the first of `REQUEST_BUCKETS` that holds it.
    """

    count: int = 0
    seconds: float = 0.0
    buckets: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, durations_ms: Sequence[float]) -> "RequestTimes":
        """Return the times of requests that took so many milliseconds."""
        buckets = Counter(
            REQUEST_BUCKETS[bisect_left(REQUEST_BOUNDS_MS, duration)] for duration in durations_ms
        )
        return cls(len(durations_ms), sum(durations_ms) / 1000, buckets)

    def __add__(self, other: "RequestTimes") -> "RequestTimes":
        return RequestTimes(
            self.count + other.count,
            self.seconds + other.seconds,
            Counter(self.buckets) + Counter(other.buckets),
        )


class StageRecord(StageTotals):
    """One stage of a run."""

    entity_type: str = Field(examples=["domain"])
    retrying: int = 0
    """Items that await a retry; they are in no other count but `total`."""
    hub: str | None = Field(None, exclude=True)
    """The Stage 1 that the stage sends to, as `sync_items` names it."""
    status: RunStatus = Field(RunStatus.PENDING, examples=["failed"])
    started_at: UtcTime | None = Field(None, examples=["2024-01-01T00:00:06.000Z"])
    finished_at: UtcTime | None = Field(None, examples=["2024-01-01T00:00:08.000Z"])
    requests: RequestTimes | None = Field(None, exclude=True)
    pace: float | None = Field(None, exclude=True)
    """Requests a second that the stage is held to, 0 while it waits; None where it is not held."""
    stopped_because: StopReason | None = Field(None, exclude=True)
    """Why nothing more of it was sent, while the run went on."""

    @property
    def seconds(self) -> float | None:
        """Seconds that it took; None while it runs."""
        return seconds_between(self.started_at, self.finished_at)

    @property
    def is_open(self) -> bool:
        return self.status is RunStatus.RUNNING

    @property
    def done(self) -> int:
        """How many items have come to their end."""
        return self.success + self.failed + self.skipped

    def ended(self, status: RunStatus, at: datetime) -> Self:
        """Return the stage as it is once it has ended at `at`."""
        return self.model_copy(update={"status": status, "finished_at": at, "retrying": 0})


class Stages:
    """Writes the stages of runs; what an earlier attempt writes changes nothing."""

    def __init__(self, runs: Collection[Document], retry: MongoRetry) -> None:
        self._runs = runs
        self._retry = retry

    def begin(
        self, attempt: RunAttempt, entity_type: str, hub: str, at: datetime, items_in: int = 0
    ) -> None:
        """Note that a stage runs since `at`, and which Stage 1 it sends to.

        Of what earlier attempts have recorded, `items_in` are in; this one tries all others anew.
        """
        began = {"status": RunStatus.RUNNING, "started_at": at, "finished_at": None, "hub": hub}
        anew = {"pace": None, "stopped_because": None, "retrying": 0}
        counts = StageTotals(total=items_in, success=items_in).model_dump()
        self._change(attempt, entity_type, {**began, **anew, **counts})

    def expect(self, attempt: RunAttempt, entity_type: str, items: int) -> None:
        """Note how many items a stage is going to have."""
        self._change(attempt, entity_type, {"total": items})

    def count(self, attempt: RunAttempt, entity_type: str, changes: Mapping[str, int]) -> bool:
        """Change counts of a stage that goes on, and of its run; False where that failed."""
        added = {f"stages.$.{name}": change for name, change in changes.items() if change}
        if not added:
            return True
        of_run = {f"totals.{name}": changes[name] for name in _OF_A_RUN if changes.get(name)}
        goes_on = {"entity_type": entity_type, "status": RunStatus.RUNNING.value}
        return self._measure(
            {**attempt.as_match(), "stages": {"$elemMatch": goes_on}},
            {"$inc": {**added, **of_run}},
        )

    def end(
        self,
        attempt: RunAttempt,
        entity_type: str,
        status: RunStatus,
        totals: StageTotals,
        at: datetime,
    ) -> None:
        """Note how a stage ended at `at`, and with how many items."""
        ended = {"status": status, "finished_at": at, "pace": None, "retrying": 0}
        ended |= totals.model_dump()
        self._change(attempt, entity_type, ended, most_of(totals, "$"))

    def count_requests(self, attempt: RunAttempt, entity_type: str, times: RequestTimes) -> None:
        """Add requests to those of a stage: a measure, not worth waiting for nor failing for."""
        if not times.count:
            return
        filled = {f"buckets.{name}": requests for name, requests in times.buckets.items()}
        added = {"count": times.count, "seconds": times.seconds, **filled}
        self._measure(
            {**attempt.as_match(), "stages.entity_type": entity_type},
            {"$inc": {f"stages.$.requests.{name}": value for name, value in added.items()}},
        )

    def note_pace(self, attempt: RunAttempt, entity_type: str, pace: float | None) -> None:
        """Note to how many requests a second a stage is held: a measure, too."""
        self._measure(
            {**attempt.as_match(), "stages.entity_type": entity_type},
            {"$set": {"stages.$.pace": pace}},
        )

    def _measure(self, stage: Document, change: Document) -> bool:
        try:
            self._runs.with_options(write_concern=_SOON).update_one(stage, change)
        except PyMongoError as error:
            _logger.warning("A measure is missing in the metrics: %s", type(error).__name__)
            return False
        return True

    @mongo_operation
    def _change(
        self,
        attempt: RunAttempt,
        entity_type: str,
        change: Document,
        most: Document | None = None,
    ) -> None:
        changed = {f"stages.$.{name}": value for name, value in change.items()}
        run = self._runs.find_one(attempt.as_match(), {"stages": True})
        if run is None:
            return
        changed["totals"] = _totals_after(run["stages"], entity_type, change)
        self._runs.update_one(
            {**attempt.as_match(), "stages.entity_type": entity_type},
            {"$set": changed, **({"$max": most} if most else {})},
        )


def _totals_after(stages: Sequence[Document], entity_type: str, change: Document) -> Document:
    """Return the totals of a run once one of its stages, as they are stored, has changed."""
    after = [{**each, **change} if each["entity_type"] == entity_type else each for each in stages]
    return {name: sum(stage.get(name, 0) for stage in after) for name in _OF_A_RUN}


def most_of(totals: StageTotals, position: int | str) -> Document:
    """Return what `$max` keeps of a stage: the most that each outcome has ever come to.

    Counts fall when a run that is retried brings in what had failed; counters of Prometheus must
    not. Stages of older versions lack these fields.
    """
    return {
        f"stages.{position}.most_{outcome}": count for outcome, count in totals.by_outcome.items()
    }


def seconds_between(started: datetime | None, finished: datetime | None) -> float | None:
    """Return the seconds from one time to another; None where one is not known yet."""
    return (finished - started).total_seconds() if started and finished else None


def pace_in_words(pace: float) -> str:
    """Return to how many requests a second a stage is held, in words."""
    return f"paced at {pace:.0f} requests/s" if pace else "waiting for Stage 1"
