"""Figures: what all runs together have come to, and how far those that go on are."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from pymongo.collection import Collection
from pymongo.database import Database

from tasks.mongo import Document, trail_database
from tasks.mongo_errors import mongo_errors
from tasks.settings import MongoSettings
from tasks.trail.fields import readable
from tasks.trail.rollups import Rollups
from tasks.trail.run_sums import RunSums
from tasks.trail.runs import NEWEST_FIRST
from tasks.trail.stages import RunStatus, StageRecord

_NEWEST_RUNS: Final = 200
"""In how many of the newest runs the last one of each mode is looked for."""
_HAS_COME_TO_ITS_END: Final = {
    "status": {"$in": [RunStatus.SUCCESS, RunStatus.PARTIAL, RunStatus.FAILED]},
    "dry_run": {"$ne": True},
    "mode": {"$type": "string"},
    "started_at": {"$type": "date"},
    "finished_at": {"$type": "date"},
}


class Figures:
    """Sums up the runs of one database; no method waits for a MongoDB that is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._runs: Collection[Document] = database["sync_runs"]
        self._rollups = Rollups(self._runs, database["sync_rollups"])

    def sum(self) -> RunSums:
        """Sum up all runs.

        Raises:
            MongoError: MongoDB is away, or does not let us.
        """
        with mongo_errors():
            return self._rollups.sum()

    def running_stages(self) -> list[StageRecord]:
        """Return the stages of the runs that are running, also those that have not begun or ended.

        Raises:
            MongoError: MongoDB is away, or does not let us.
        """
        of_running: list[Document] = [
            {"$match": {"status": RunStatus.RUNNING}},
            {"$unwind": "$stages"},
            {"$project": {"stages": True}},
        ]
        with mongo_errors():
            found = list(self._runs.aggregate(of_running))
        return [stage for each in found if (stage := readable(StageRecord, each["stages"]))]

    def paces(self) -> dict[str, float]:
        """Return to how many requests a second running stages are held, by entity type.

        Raises:
            MongoError: MongoDB is away, or does not let us.
        """
        return paces_of(self.running_stages())

    def last_durations(self) -> dict[str, float]:
        """Return how many seconds the last run of each mode took that has come to its end.

        Dry runs do not count, nor do runs that were cancelled or have crashed. A mode without a
        run among the newest `_NEWEST_RUNS` is missing.

        Raises:
            MongoError: MongoDB is away, or does not let us.
        """
        first = {name: {"$first": f"${name}"} for name in ("started_at", "finished_at")}
        last_of_each_mode: list[Document] = [
            {"$sort": NEWEST_FIRST},
            {"$limit": _NEWEST_RUNS},
            {"$match": _HAS_COME_TO_ITS_END},
            {"$group": {"_id": "$mode", **first}},
        ]
        with mongo_errors():
            found = list(self._runs.aggregate(last_of_each_mode))
        return {
            run["_id"]: (run["finished_at"] - run["started_at"]).total_seconds() for run in found
        }


def paces_of(stages: Iterable[StageRecord]) -> dict[str, float]:
    """Return to how many requests a second stages that run are held, by entity type.

    0 is for one that waits; of several of a type, the slowest counts.
    """
    held: dict[str, float] = {}
    for stage in stages:
        if stage.is_open and stage.pace is not None:
            held[stage.entity_type] = min(stage.pace, held.get(stage.entity_type, stage.pace))
    return held


@lru_cache(maxsize=8)
def figures(settings: MongoSettings) -> Figures:
    """Return the figures of the database that the settings name."""
    return Figures(trail_database(settings))
