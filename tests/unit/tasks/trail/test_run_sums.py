"""RunSums: sums of runs add up, and are read again as they were written."""

from typing import Any

import pytest
from pymongo.database import Database

from tasks.trail.run_sums import EntityFigures, RunSums, sum_of_sums
from tasks.trail.stages import RequestTimes
from tests.trail_documents import at

Document = dict[str, Any]
TENANTS = EntityFigures(
    {"success": 5, "failed": 1, "skipped": 2, "unchanged": 3},
    RequestTimes.of([4.0, 300.0]),
    at(7),
)
CLIENTS = EntityFigures({"success": 0, "failed": 2, "skipped": 0, "unchanged": 0})
ONE = RunSums({"tenant": TENANTS, "client": CLIENTS}, {"partial": 2, "crashed": 1}, at(9))
TWO = RunSums({"tenant": TENANTS}, {"partial": 1, "success": 4}, at(3))
BOTH = RunSums(
    {
        "tenant": EntityFigures(
            {"success": 10, "failed": 2, "skipped": 4, "unchanged": 6},
            RequestTimes.of([4.0, 300.0, 4.0, 300.0]),
            at(7),
        ),
        "client": CLIENTS,
    },
    {"partial": 3, "crashed": 1, "success": 4},
    at(9),
)
NOTHING = RunSums({}, {})


def test_sums_add_up() -> None:
    assert ONE + TWO == TWO + ONE == BOTH
    assert ONE + NOTHING == NOTHING + ONE == ONE


@pytest.mark.parametrize(
    ("sums", "together"),
    [([], NOTHING), ([ONE], ONE), ([ONE, NOTHING], ONE), ([ONE, TWO], BOTH)],
)
def test_sums_are_summed_up_as_they_were_written(
    database: Database[Document], sums: list[RunSums], together: RunSums
) -> None:
    for each in sums:
        database.sync_rollups.insert_one(each.as_document())
    assert sum_of_sums(database.sync_rollups, {}) == together
