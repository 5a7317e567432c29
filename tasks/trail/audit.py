"""AuditTrail: the only module that writes `sync_runs` and `sync_steps`."""

import logging
import math
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, cast

from bson import MaxKey, ObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument, UpdateOne
from pymongo.database import Database
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.write_concern import WriteConcern

from tasks.errors import DUPLICATE_KEY, PARENT_FAILED, ErrorClass, ItemError, StopReason
from tasks.mongo import (
    Document,
    MongoUnavailable,
    Patience,
    database,
    identity,
    patience_with,
    patiently,
    translating_errors,
)
from tasks.settings import MongoSettings

_logger = logging.getLogger(__name__)

STEPS_BEHIND: Final = 50
"""At most this many steps of the process wait to be written, beside those being written."""
SECONDS_BEHIND: Final = 1.0
"""At most this long does a step wait to be written."""
ERRORS_SHOWN: Final = 100
"""How many errors a run's own document carries; all of them are in the steps."""


RunId = ObjectId
"""Key of a run in `sync_runs`."""


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
        return self not in (RunStatus.PENDING, RunStatus.RUNNING)


class SyncMode(StrEnum):
    """Which items a run sends."""

    FULL = "full"
    """All of them."""
    CHANGED = "changed"
    """Those whose request id no run has a successful step for."""


@dataclass(frozen=True)
class RunOptions:
    """What was asked of a run."""

    trigger: str
    entities: tuple[str, ...]
    mode: SyncMode = SyncMode.FULL
    dry_run: bool = False
    skip_orphans: bool = False

    def as_parameters(self) -> dict[str, Any]:
        """Return the parameters of the flow that ask for the same."""
        return {**asdict(self), "entities": list(self.entities)}


class StepState(StrEnum):
    """Prefect's name for the state of an item, as if it had a task run to itself."""

    COMPLETED = "Completed"
    FAILED = "Failed"
    AWAITING_RETRY = "AwaitingRetry"
    SKIPPED = "Skipped"


@dataclass(frozen=True)
class Step:
    """What became of one item in one run; without `error` it is in Stage 1."""

    entity_type: str
    source_id: Any
    natural_key: str | None
    version: int | str | None
    request_id: str | None
    run_attempt: int
    state: StepState
    error: ItemError | None = None
    http_status: int | None = None
    sync_id: str | None = None
    attempts: int = 0
    duration_ms: float | None = None
    task_run_id: str | None = None


@dataclass(frozen=True)
class Totals:
    """Items of a run or of a stage: `total` is the sum of the first three.

    `unchanged` of the skipped items are in already: an earlier run has sent them.
    """

    success: int = 0
    failed: int = 0
    skipped: int = 0
    unchanged: int = 0

    @property
    def total(self) -> int:
        return self.success + self.failed + self.skipped

    @property
    def items_in(self) -> int:
        return self.success + self.unchanged

    @property
    def status(self) -> RunStatus:
        """What the counts alone say; nothing to do is a success."""
        if self.items_in == self.total:
            return RunStatus.SUCCESS
        return RunStatus.PARTIAL if self.items_in else RunStatus.FAILED

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.success + other.success,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.unchanged + other.unchanged,
        )


@dataclass(frozen=True)
class Decisions:
    """What a stage left alone: such items are counted, and have no step.

    `would_send` is a dry run's; `first` is the natural key of the first of those.
    """

    unchanged: int = 0
    would_send: int = 0
    first: str | None = None

    def __add__(self, other: "Decisions") -> "Decisions":
        return Decisions(
            self.unchanged + other.unchanged,
            self.would_send + other.would_send,
            self.first or other.first,
        )


REQUEST_BOUNDS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, math.inf)
"""Upper bounds of the buckets that requests are counted in, in milliseconds."""
REQUEST_BUCKETS: Final = tuple(f"{bound:g}" for bound in REQUEST_BOUNDS_MS)
"""What the buckets are called in `sync_runs`."""


@dataclass(frozen=True)
class RequestTimes:
    """How long requests to Stage 1 took: how many, seconds in all, and how many a bucket.

    Each request is counted in one of `buckets`, the first of `REQUEST_BOUNDS_MS` that holds it.
    """

    count: int = 0
    seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * len(REQUEST_BOUNDS_MS)

    @classmethod
    def of(cls, durations_ms: Sequence[float]) -> "RequestTimes":
        """Return what requests of that many milliseconds come to."""
        filled = Counter(bisect_left(REQUEST_BOUNDS_MS, duration) for duration in durations_ms)
        buckets = tuple(filled[index] for index in range(len(REQUEST_BOUNDS_MS)))
        return cls(len(durations_ms), sum(durations_ms) / 1000, buckets)


@dataclass(frozen=True)
class RunAttempt:
    """One execution of a run: a flow run that is retried goes on in the same run, as its next."""

    run_id: RunId
    number: int


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that has no terminal status, and for how long nothing was heard of its process."""

    run_id: RunId
    flow_run_id: str
    silent_seconds: float


@dataclass(frozen=True)
class PriorStep:
    """What the trail already holds of an item in this run; `attempts` counts its requests."""

    attempts: int
    error: ItemError | None
    run_attempt: int

    def is_settled_in(self, run_attempt: int) -> bool:
        """Whether nothing is left to be done for the item in that attempt of the run."""
        if self.error is None:
            return True
        is_of_this = self.run_attempt == run_attempt
        return is_of_this and self.error.error_class is not ErrorClass.TRANSIENT


class AuditTrail:
    """The audit trail of one database.

    Steps are buffered and written in bulk, for the whole process together: never more than
    `STEPS_BEHIND` steps or `SECONDS_BEHIND` seconds late, and at once by `flush`. While they can't
    be written, who records one waits: beside those being written, each thread adds one at most.

    Every method waits for a MongoDB that is away, and raises `MongoUnavailable` when it stays away.
    """

    def __init__(
        self,
        database: Database[Document],
        patience: Patience,
        steps_retention_days: int | None = None,
    ) -> None:
        self._patience = patience
        self._retention_days = steps_retention_days
        self._runs = database.get_collection("sync_runs", write_concern=_DURABLE)
        self._steps = database.get_collection("sync_steps", write_concern=_DURABLE)
        self._waiting: list[UpdateOne] = []
        self._waiting_lock = threading.Lock()
        self._writing_lock = threading.Lock()
        self._timer: threading.Timer | None = None

    @translating_errors
    @patiently
    def prepare(self) -> None:
        """Make the indexes; idempotent.

        Raises:
            MongoUnavailable: MongoDB doesn't answer or doesn't let us in.
        """
        self._runs.create_indexes(
            [
                IndexModel([("flow_run_id", ASCENDING)], unique=True),
                IndexModel([("started_at", DESCENDING), ("_id", DESCENDING)]),
            ]
        )
        self._steps.create_indexes(
            [
                IndexModel(_STEP_IDENTITY, unique=True),
                IndexModel([("run_id", ASCENDING), *_OLDEST_FIRST]),
                IndexModel(
                    [("run_id", ASCENDING), ("ok", ASCENDING), *_OLDEST_FIRST],
                    partialFilterExpression={"ok": False},
                ),
                IndexModel([("request_id", ASCENDING), ("ok", ASCENDING)]),
                IndexModel(
                    [("run_id", ASCENDING), ("task_run_id", ASCENDING)],
                    partialFilterExpression=_AWAITING_RETRY,
                ),
            ]
        )
        self._keep_steps_for(self._retention_days)

    @translating_errors
    @patiently
    def open_run(self, flow_run_id: str, flow_run_name: str, options: RunOptions) -> RunId:
        """Find or create the run of a Prefect flow run and return its `run_id`.

        Raises:
            MongoUnavailable: MongoDB doesn't answer or doesn't let us in.
        """
        self.prepare()
        opening = {
            "flow_run_name": flow_run_name,
            "status": RunStatus.PENDING.value,
            "mode": options.mode.value,
            "dry_run": options.dry_run,
            "trigger": options.trigger,
            "parameters": options.as_parameters(),
            "started_at": datetime.now(UTC),
            "finished_at": None,
            "totals": _counts(Totals()),
            "stages": [_pending_stage(entity_type) for entity_type in options.entities],
            "errors": [],
            "message": None,
            "attempt": 0,
        }
        run = self._runs.find_one_and_update(
            {"flow_run_id": flow_run_id},
            {"$setOnInsert": opening},
            projection={"_id": True},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        return cast(RunId, cast(Document, run)["_id"])

    @translating_errors
    @patiently
    def begin_attempt(self, run_id: RunId) -> RunAttempt:
        """Begin the next execution of a run; what an earlier one may still do counts no more.

        Raises:
            MongoUnavailable: MongoDB doesn't answer or doesn't let us in.
        """
        run = self._runs.find_one_and_update(
            {"_id": run_id},
            {"$inc": {"attempt": 1}, **_ALIVE_NOW},
            projection={"attempt": True},
            return_document=ReturnDocument.AFTER,
        )
        return RunAttempt(run_id, cast(Document, run)["attempt"])

    @translating_errors
    @patiently
    def show_alive(self, attempt: RunAttempt) -> None:
        """Note that the process of an attempt lives, by MongoDB's clock."""
        undurable = self._runs.with_options(write_concern=WriteConcern(w=1))
        undurable.update_one({"_id": attempt.run_id, "attempt": attempt.number}, _ALIVE_NOW)

    @translating_errors
    @patiently
    def unfinished(self) -> list[UnfinishedRun]:
        """Return the runs without a terminal status, oldest first."""
        heard_of = {"$max": ["$alive_at", "$started_at"]}
        runs = self._runs.aggregate(
            [
                {"$match": {"status": {"$in": _UNFINISHED}}},
                {"$sort": {"started_at": ASCENDING}},
                {"$addFields": {"silent_ms": {"$subtract": ["$$NOW", heard_of]}}},
                {"$project": {"flow_run_id": True, "silent_ms": True}},
            ]
        )
        return [
            UnfinishedRun(run["_id"], run["flow_run_id"], run["silent_ms"] / 1000) for run in runs
        ]

    @patiently
    def mirror_run(self, flow_run_id: str, status: RunStatus, message: str, at: datetime) -> None:
        """Take over the state that the flow run entered at `at`; an older event changes nothing.

        With a terminal status come the totals and the first errors, counted from the steps.
        """
        run = self._runs.find_one({"flow_run_id": flow_run_id}, {"_id": True})
        if run is None:
            return
        change: Document = {"status": status.value, "message": message, "mirrored_at": at}
        if status is RunStatus.RUNNING:
            self._begin(run["_id"], at)
            change |= {"stopped_because": None, "finished_at": None}
        if status.is_terminal:
            self.flush()
            self.fail_awaiting(run["_id"])
            totals, _ = self.tally(run["_id"])
            change |= {
                "finished_at": at,
                "totals": _counts(totals),
                "errors": self._first_errors(run["_id"]),
            }
        comparison = "$lte" if status.is_terminal else "$lt"
        not_newer = [{"mirrored_at": None}, {"mirrored_at": {comparison: at}}]
        mirrored = self._runs.update_one({"_id": run["_id"], "$or": not_newer}, {"$set": change})
        if status.is_terminal and mirrored.matched_count:
            self._end_stages(run["_id"], status, at)
            if status in _CUT_SHORT:
                self.recount(run["_id"])

    @patiently
    def recount(self, run_id: RunId) -> None:
        """Count a run anew if it has ended: another process may have recorded steps since.

        Where batches run elsewhere, those under way outlive a flow run that is killed or cut off.
        Several processes may do so at once: each looks again after it has written.
        """
        while change := self._miscounted(run_id):
            self._runs.update_one({"_id": run_id}, {"$set": change})

    @patiently
    def mirror_stage(
        self, run_id: RunId, entity_type: str, status: RunStatus, at: datetime
    ) -> None:
        """Take over the state that a stage's flow run entered at `at`."""
        change: Document = {"status": status.value}
        if status.is_terminal:
            self.flush()
            totals, _ = self.tally(run_id, entity_type)
            change |= {"finished_at": at, **_counts(totals)}
        else:
            change |= {"started_at": at, "finished_at": None}
        self._change_stage(run_id, entity_type, change)

    def expect(self, run_id: RunId, entity_type: str, items: int) -> None:
        """Say how many items a stage is going to have, before it has them."""
        self._change_stage(run_id, entity_type, {"total": items})

    def decide(self, run_id: RunId, entity_type: str, decisions: Decisions) -> None:
        """Say what a stage has left alone."""
        self._change_stage(run_id, entity_type, asdict(decisions))

    def count_requests(self, run_id: RunId, entity_type: str, times: RequestTimes) -> None:
        """Add requests to those of a stage: a measure, not worth waiting for nor failing for."""
        if not times.count:
            return
        filled = {
            f"buckets.{name}": requests
            for name, requests in zip(REQUEST_BUCKETS, times.buckets, strict=True)
            if requests
        }
        added = {"count": times.count, "seconds": times.seconds, **filled}
        try:
            self._runs.with_options(write_concern=_SOON).update_one(
                {"_id": run_id, "stages.entity_type": entity_type},
                {"$inc": {f"stages.$.requests.{name}": value for name, value in added.items()}},
            )
        except PyMongoError as error:
            _logger.warning(
                "%d requests are missing in the metrics: %s", times.count, type(error).__name__
            )

    @translating_errors
    @patiently
    def stop(self, run_id: RunId, reason: StopReason) -> None:
        """Let no process send anything more for a run; the first reason stays."""
        going_on = {"_id": run_id, "stopped_because": None}
        self._runs.update_one(going_on, {"$set": {"stopped_because": asdict(reason)}})

    @patiently
    def stopped_because(self, attempt: RunAttempt) -> StopReason | None:
        """Return why nothing more is sent in an attempt of a run, None as long as it goes on."""
        run = self._runs.find_one({"_id": attempt.run_id}, _STOPPING_FIELDS)
        if run is None or run["attempt"] != attempt.number:
            return _SUPERSEDED
        if reason := run.get("stopped_because"):
            return StopReason(**reason)
        status = RunStatus(run["status"])
        if status is RunStatus.CANCELLED:
            return CANCELLED
        return _ENDED if status.is_terminal else None

    @patiently
    def confirmed(self, request_ids: Sequence[str]) -> set[str]:
        """Return those of the request ids that have a successful step in any run."""
        return set(
            self._steps.distinct("request_id", {"request_id": {"$in": request_ids}, "ok": True})
        )

    def await_mongodb(self) -> None:
        """Return once a step could be written; without asking MongoDB as long as all is well."""
        self._patience.await_mongodb()

    def record(self, run_id: RunId, flow_run_id: str, step: Step) -> None:
        """Note a step; it is written soon.

        Raises:
            MongoUnavailable: MongoDB stayed away; the waiting steps still wait.
            pymongo.errors.PyMongoError: MongoDB refuses them; they still wait.
        """
        with self._waiting_lock:
            self._waiting.append(_upsert_of(run_id, flow_run_id, step))
            is_full = len(self._waiting) >= STEPS_BEHIND
            if self._timer is None:
                self._timer = threading.Timer(SECONDS_BEHIND, self._flush_by_timer)
                self._timer.daemon = True
                self._timer.start()
        if is_full:
            self.flush()

    @patiently
    def flush(self) -> None:
        """Write all waiting steps, of every thread, and return when they are written.

        Raises:
            MongoUnavailable: MongoDB stayed away; the steps still wait.
            pymongo.errors.PyMongoError: MongoDB refuses them; they still wait.
        """
        with self._writing_lock:
            with self._waiting_lock:
                steps, self._waiting = self._waiting, []
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
            if not steps:
                return
            try:
                self._write(steps)
            except PyMongoError:
                with self._waiting_lock:
                    self._waiting[:0] = steps
                raise

    @patiently
    def prior_steps(
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
        steps = (
            self._steps.find({}, dict.fromkeys(_PRIOR_FIELDS, True))
            .hint(_STEP_IDENTITY)
            .min(low)
            .max(high)
        )
        return {
            identity(step["source_id"]): PriorStep(
                step["attempts"], _item_error(step["error"]), step["run_attempt"]
            )
            for step in steps
        }

    @patiently
    def failed_keys(self, run_id: RunId, entity_type: str) -> frozenset[str]:
        """Return the natural keys of a type that a run can't bring in, whatever it tries."""
        not_in = {"run_id": run_id, "ok": False, "entity_type": entity_type}
        for_good = [
            {"error.class": ErrorClass.PERMANENT.value, "error.code": {"$ne": DUPLICATE_KEY}},
            {"error.code": PARENT_FAILED},
        ]
        steps = self._steps.find({**not_in, "$or": for_good}, {"natural_key": True})
        return frozenset(step["natural_key"] for step in steps if step["natural_key"])

    @patiently
    def fail_awaiting(self, run_id: RunId, task_run_id: str | None = None) -> None:
        """Say of a run's items, or a task run's, that still await a retry that none will come."""
        of_task_run = {"task_run_id": task_run_id} if task_run_id else {}
        self._steps.update_many(
            {"run_id": run_id, **of_task_run, **_AWAITING_RETRY},
            {"$set": {"state": StepState.FAILED.value, "updated_at": datetime.now(UTC)}},
        )

    @patiently
    def tally(self, run_id: RunId, entity_type: str | None = None) -> tuple[Totals, dict[str, int]]:
        """Count the items of a run, or of one of its stages: its steps, and what was left alone.

        Returns the totals, and how many items are not in by error code, most frequent first.
        """
        match = {"run_id": run_id} | ({"entity_type": entity_type} if entity_type else {})
        group = {"code": "$error.code", "is_skipped": _IS_SKIPPED}
        groups = self._steps.aggregate(
            [
                {"$match": match},
                {"$group": {"_id": group, "count": {"$sum": 1}}},
                {"$sort": {"count": DESCENDING, "_id": ASCENDING}},
            ]
        )
        totals, failures = _tally(list(groups))
        left_alone = self.decisions(run_id, entity_type)
        return totals + _totals_of(left_alone), failures

    def decisions(self, run_id: RunId, entity_type: str | None = None) -> Decisions:
        """Return what a run, or one of its stages, has left alone so far."""
        run = self.run(run_id) or {"stages": []}
        return sum(
            (
                Decisions(stage["unchanged"], stage["would_send"], stage["first"])
                for stage in run["stages"]
                if entity_type in (None, stage["entity_type"])
            ),
            Decisions(),
        )

    @patiently
    def run(self, run_id: RunId) -> Document | None:
        """Return the document of a run, None where there is none."""
        return self._runs.find_one({"_id": run_id})

    def _keep_steps_for(self, days: int | None) -> None:
        """Let MongoDB delete steps when they are that old; None: never."""
        present = self._steps.index_information().get(_EXPIRY)
        wanted = None if days is None else days * 86_400
        if wanted == (present and present["expireAfterSeconds"]):
            return
        if present:
            self._steps.drop_index(_EXPIRY)
        if wanted is not None:
            self._steps.create_index("updated_at", name=_EXPIRY, expireAfterSeconds=wanted)

    def _begin(self, run_id: RunId, at: datetime) -> None:
        """Take `at` for the start of a run that somebody opened before it began."""
        self._runs.update_one({"_id": run_id, "attempt": 0}, {"$set": {"started_at": at}})

    @patiently
    def _change_stage(self, run_id: RunId, entity_type: str, change: Document) -> None:
        self._runs.update_one(
            {"_id": run_id, "stages.entity_type": entity_type},
            {"$set": {f"stages.$.{name}": value for name, value in change.items()}},
        )

    def _miscounted(self, run_id: RunId) -> Document:
        """Return what is to be set for an ended run to say what its steps say."""
        run = self.run(run_id)
        if run is None or not RunStatus(run["status"]).is_terminal:
            return {}
        tallies = [self.tally(run_id, stage["entity_type"])[0] for stage in run["stages"]]
        totals = _counts(sum(tallies, Totals()))
        change: Document = {}
        if run["totals"] != totals:
            change = {"totals": totals, "errors": self._first_errors(run_id)}
        for index, (stage, tally) in enumerate(zip(run["stages"], tallies, strict=True)):
            change |= {
                f"stages.{index}.{name}": count
                for name, count in _counts(tally).items()
                if stage[name] != count
            }
        return change

    def _end_stages(self, run_id: RunId, status: RunStatus, at: datetime) -> None:
        """Let the stages that a run has left open end with it."""
        run = self.run(run_id) or {"stages": []}
        for stage in run["stages"]:
            if stage["status"] == RunStatus.RUNNING:
                self.mirror_stage(run_id, stage["entity_type"], status, at)

    def _write(self, steps: Sequence[UpdateOne]) -> None:
        """Write steps; one that a later attempt of its run has written stays as it is.

        A step that collides gets a second try: another process may have been about to insert it.
        """
        self._collided(self._collided(steps))

    def _collided(self, steps: Sequence[UpdateOne]) -> list[UpdateOne]:
        if not steps:
            return []
        try:
            self._steps.bulk_write(steps, ordered=False)
        except BulkWriteError as error:
            faults = error.details["writeErrors"]
            is_lost = error.details["writeConcernErrors"]
            if is_lost or any(fault["code"] != _DUPLICATE_KEY for fault in faults):
                raise
            return [steps[fault["index"]] for fault in faults]
        return []

    def _first_errors(self, run_id: RunId) -> list[Document]:
        failed = self._steps.find({"run_id": run_id, "ok": False}).sort("created_at", ASCENDING)
        return [
            {
                "entity_type": step["entity_type"],
                "natural_key": step["natural_key"],
                "code": step["error"]["code"],
                "message": step["error"]["message"],
            }
            for step in failed.limit(ERRORS_SHOWN)
        ]

    def _flush_by_timer(self) -> None:
        try:
            self.flush()
        except (PyMongoError, MongoUnavailable) as error:
            _logger.warning(
                "The audit trail is behind, MongoDB does not take steps: %s", type(error).__name__
            )


@lru_cache(maxsize=8)
def audit_trail(settings: MongoSettings) -> AuditTrail:
    """Return this process's audit trail of the database that the settings name."""
    return AuditTrail(database(settings), patience_with(settings), settings.steps_retention_days)


_DURABLE: Final = WriteConcern(w="majority", j=True)
"""What is on record outlives a MongoDB that is killed, and a primary that is lost."""
_SOON: Final = WriteConcern(w=1, j=False)
_STEP_IDENTITY: Final = [
    ("run_id", ASCENDING),
    ("entity_type", ASCENDING),
    ("source_id", ASCENDING),
]
CANCELLED: Final = StopReason("the run was cancelled")
_ENDED: Final = StopReason("the run has ended")
_SUPERSEDED: Final = StopReason("the run has begun anew elsewhere")
_EXPIRY: Final = "steps_expire"
_DUPLICATE_KEY: Final = 11000
"""MongoDB's code for a document whose unique key another one has."""
_STOPPING_FIELDS: Final = ("stopped_because", "attempt", "status")
_PRIOR_FIELDS: Final = ("source_id", "attempts", "error", "run_attempt")
_ALIVE_NOW: Final = {"$currentDate": {"alive_at": True}}
_UNFINISHED: Final = [RunStatus.PENDING.value, RunStatus.RUNNING.value]
_CUT_SHORT: Final = (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.CRASHED)
_OLDEST_FIRST: Final = [("created_at", ASCENDING), ("_id", ASCENDING)]
_AWAITING_RETRY: Final = {"state": StepState.AWAITING_RETRY.value}
_IS_SKIPPED: Final = {"$eq": ["$error.class", ErrorClass.SKIPPED.value]}


def _tally(groups: list[Document]) -> tuple[Totals, dict[str, int]]:
    totals = Totals()
    failures: Counter[str] = Counter()
    for group in groups:
        code, is_skipped = group["_id"].get("code"), group["_id"]["is_skipped"]
        count = group["count"]
        if code is None:
            totals += Totals(success=count)
            continue
        totals += Totals(skipped=count) if is_skipped else Totals(failed=count)
        failures[code] += count
    return totals, dict(failures)


def _totals_of(decisions: Decisions) -> Totals:
    return Totals(skipped=decisions.unchanged + decisions.would_send, unchanged=decisions.unchanged)


def _counts(totals: Totals) -> Document:
    return {
        "total": totals.total,
        "success": totals.success,
        "failed": totals.failed,
        "skipped": totals.skipped,
    }


def _pending_stage(entity_type: str) -> Document:
    return {
        "entity_type": entity_type,
        "status": RunStatus.PENDING.value,
        **_counts(Totals()),
        **asdict(Decisions()),
        "started_at": None,
        "finished_at": None,
    }


def _upsert_of(run_id: RunId, flow_run_id: str, step: Step) -> UpdateOne:
    now = datetime.now(UTC)
    identifying = {"run_id": run_id, "entity_type": step.entity_type}
    found = {
        "flow_run_id": flow_run_id,
        "task_run_id": step.task_run_id,
        "natural_key": step.natural_key,
        "version": step.version,
        "request_id": step.request_id,
        "ok": step.error is None,
        "state": step.state.value,
        "http_status": step.http_status,
        "sync_id": step.sync_id,
        "error": _error_document(step.error),
        "attempts": step.attempts,
        "duration_ms": step.duration_ms,
        "run_attempt": step.run_attempt,
        "updated_at": now,
    }
    by_no_later_attempt = {"run_attempt": {"$not": {"$gt": step.run_attempt}}}
    return UpdateOne(
        {**identifying, "source_id": {"$eq": step.source_id}, **by_no_later_attempt},
        {"$set": found, "$setOnInsert": {"created_at": now}},
        upsert=True,
    )


def _error_document(error: ItemError | None) -> Document | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "class": error.error_class.value}


def _item_error(document: Document | None) -> ItemError | None:
    if document is None:
        return None
    return ItemError(document["code"], document["message"], ErrorClass(document["class"]))
