"""`sync_rollups`: the sums of ranges of runs, so that nobody has to read all runs again.

They are derived from `sync_runs`, and are made anew where they are missing.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from bson import ObjectId
from pymongo import ASCENDING
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from tasks.mongo import Document
from tasks.trail.run_sums import RunSums, sum_of_runs, sum_of_sums
from tasks.trail.stages import UNFINISHED

RUNS_A_ROLLUP: Final = 500
RUNS_WITHOUT: Final = 1_000
"""At most so many of the newest runs are in no rollup: they are summed up each time."""
_BEFORE_ALL: Final = ObjectId("0" * 24)
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCKS_APART: Final = timedelta(days=1)
"""How far the clocks of the machines that MongoDB moves between may be apart."""
_MAJORITY: Final = WriteConcern(w="majority")


@dataclass(frozen=True)
class _Range:
    """The runs behind one `_id`, up to another, and when one of them was last counted."""

    after: ObjectId
    last: ObjectId
    counted_at: datetime = _NEVER

    def as_match(self) -> Document:
        return {"_id": {"$gt": self.after, "$lte": self.last}}


class Rollups:
    """Sums up all runs: rollups for the older ones, and the newest as they are.

    A range is summed up again while one of its runs goes on, and once it has been counted anew. A
    run that goes on or is counted is never missed, whoever dies in between: `counted_at` is in the
    run itself. Several processes may sum up at once; what an older reading writes over a newer one
    is found by its `counted_at`.
    """

    def __init__(self, runs: Collection[Document], rollups: Collection[Document]) -> None:
        self._runs = runs
        self._rollups = rollups.with_options(write_concern=_MAJORITY)

    def sum(self) -> RunSums:
        """Return the sum of all runs.

        Raises:
            pymongo.errors.PyMongoError: MongoDB is away, or does not let us.
        """
        ranges = self._ranges()
        for stale in self._stale(ranges):
            self._roll_up(stale)
        in_ranges = {"_id": {"$in": [each.after for each in ranges]}}
        beyond = {"_id": {"$gt": _end_of(ranges)}}
        return sum_of_sums(self._rollups, in_ranges) + sum_of_runs(self._runs, beyond)

    def _ranges(self) -> list[_Range]:
        """Return the ranges that have a rollup, in order, without a gap; make those that lack."""
        while True:
            ranges = list(self._chain())
            end = _end_of(ranges)
            last = self._run_at(RUNS_A_ROLLUP - 1, end)
            if last is None or self._run_at(RUNS_WITHOUT, end) is None:
                return ranges
            with suppress(DuplicateKeyError):  # another process has made one from here
                self._roll_up(_Range(end, last))

    def _chain(self) -> Iterator[_Range]:
        found = self._rollups.find({}, {"last": True, "counted_at": True})
        ranges = {
            each["_id"]: _Range(each["_id"], each["last"], each["counted_at"] or _NEVER)
            for each in found
        }
        end = _BEFORE_ALL
        while following := ranges.pop(end, None):
            yield following
            end = following.last

    def _run_at(self, position: int, after: ObjectId) -> ObjectId | None:
        found = self._runs.find({"_id": {"$gt": after}}, {"_id": True}).sort("_id", ASCENDING)
        return next((run["_id"] for run in found.skip(position).limit(1)), None)

    def _roll_up(self, runs: _Range) -> None:
        summed = sum_of_runs(self._runs, runs.as_match()).as_document()
        key = {"_id": runs.after, "last": runs.last}
        self._rollups.update_one(key, {"$set": summed}, upsert=True)

    def _stale(self, ranges: Sequence[_Range]) -> set[_Range]:
        if not ranges:
            return set()
        lasts = [each.last for each in ranges]
        return {
            ranges[bisect_left(lasts, run_id)]
            for run_id, counted_at in self._changed(ranges)
            if counted_at is None or counted_at > ranges[bisect_left(lasts, run_id)].counted_at
        }

    def _changed(self, ranges: Sequence[_Range]) -> Iterator[tuple[ObjectId, datetime | None]]:
        """Yield runs in rollups that go on, and those that were counted of late, and when."""
        rolled_up = {"_id": {"$lte": _end_of(ranges)}}
        for run in self._runs.find({"status": {"$in": list(UNFINISHED)}, **rolled_up}, {"_id": 1}):
            yield run["_id"], None
        of_late = {"$gt": max(each.counted_at for each in ranges) - _CLOCKS_APART}
        counted = self._runs.find({"counted_at": of_late, **rolled_up}, {"counted_at": True})
        for run in counted:
            yield run["_id"], run["counted_at"]


def _end_of(ranges: Sequence[_Range]) -> ObjectId:
    return ranges[-1].last if ranges else _BEFORE_ALL
