"""Bulk writes: many documents at once, each on its own."""

from collections.abc import Sequence

from bson import Timestamp
from pymongo import InsertOne, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from tasks.mongo import Document
from tasks.mongo_errors import UNIQUE_INDEX


def is_inserted_as_it_is(value: object) -> bool:
    """Return whether MongoDB inserts a field as it is: an empty Timestamp becomes the time."""
    return not isinstance(value, Timestamp)


def write_all(
    collection: Collection[Document], writes: Sequence[InsertOne[Document] | UpdateOne]
) -> list[int]:
    """Write documents; return the positions of those that collided with one that is there.

    Raises:
        pymongo.errors.PyMongoError: MongoDB is away, or refuses a write for another reason.
    """
    if not writes:
        return []
    try:
        collection.bulk_write(writes, ordered=False)
    except BulkWriteError as error:
        faults = error.details["writeErrors"]
        is_lost = error.details["writeConcernErrors"]
        if is_lost or any(fault["code"] != UNIQUE_INDEX for fault in faults):
            raise
        return [fault["index"] for fault in faults]
    return []
