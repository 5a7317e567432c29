"""Figures: what all runs together have come to, for the metrics."""

from functools import lru_cache

from pymongo.collection import Collection
from pymongo.database import Database

from tasks.mongo import Document, trail_database
from tasks.mongo_errors import mongo_errors
from tasks.settings import MongoSettings
from tasks.trail.rollups import Rollups
from tasks.trail.run_sums import RunSums
from tasks.trail.stages import RunStatus


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

    def paces(self) -> dict[str, float]:
        """Return to how many requests a second running stages are held, by entity type.

        0 is for one that waits; of several of a type, the slowest counts.

        Raises:
            MongoError: MongoDB is away, or does not let us.
        """
        running = RunStatus.RUNNING.value
        held: list[Document] = [
            {"$match": {"status": running}},
            {"$unwind": "$stages"},
            {"$match": {"stages.status": running, "stages.pace": {"$ne": None}}},
            {"$group": {"_id": "$stages.entity_type", "pace": {"$min": "$stages.pace"}}},
        ]
        with mongo_errors():
            return {group["_id"]: group["pace"] for group in self._runs.aggregate(held)}


@lru_cache(maxsize=8)
def figures(settings: MongoSettings) -> Figures:
    """Return the figures of the database that the settings name."""
    return Figures(trail_database(settings))
