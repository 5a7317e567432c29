"""Bulk writes: what collides is told by its position, and all else that goes wrong is raised."""

from typing import Any
from unittest.mock import Mock

import pytest
from pymongo import UpdateOne
from pymongo.errors import AutoReconnect, BulkWriteError, PyMongoError

from tasks.trail.bulk import write_all

COLLISION, REFUSAL = 11000, 121
WRITES = [UpdateOne({"key": number}, {"$set": {"a": 1}}, upsert=True) for number in range(3)]


def told(*codes: int, is_lost: bool = False) -> BulkWriteError:
    """Return what MongoDB says where the writes fail, the first with the first code."""
    lost = [{"code": 64, "errmsg": "timed out"}] if is_lost else []
    faults = [{"index": index, "code": code, "errmsg": ""} for index, code in enumerate(codes)]
    return BulkWriteError({"writeErrors": faults, "writeConcernErrors": lost})


def collection(error: PyMongoError | None) -> Any:
    return Mock(bulk_write=Mock(side_effect=error))


@pytest.mark.parametrize(
    ("error", "collided"),
    [(None, []), (told(COLLISION), [0]), (told(COLLISION, COLLISION), [0, 1])],
)
def test_positions_of_what_collides(error: PyMongoError | None, collided: list[int]) -> None:
    steps = collection(error)
    assert write_all(steps, WRITES) == collided
    steps.bulk_write.assert_called_once_with(WRITES, ordered=False)


@pytest.mark.parametrize(
    "error",
    [
        told(REFUSAL),
        told(COLLISION, REFUSAL),
        told(COLLISION, is_lost=True),
        told(is_lost=True),
        AutoReconnect("gone"),
    ],
    ids=["refused", "one refused", "collided, and not durable", "not durable", "away"],
)
def test_what_else_goes_wrong_is_raised(error: PyMongoError) -> None:
    with pytest.raises(PyMongoError) as raised:
        write_all(collection(error), WRITES)
    assert raised.value is error


def test_nothing_is_written_where_there_is_nothing_to_write() -> None:
    steps = collection(None)
    assert write_all(steps, []) == []
    steps.bulk_write.assert_not_called()
