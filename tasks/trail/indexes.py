"""The indexes of a collection: made once a process, as far as its documents let it."""

from collections.abc import Collection as Names
from collections.abc import Sequence
from contextlib import suppress

from pymongo import IndexModel
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError, OperationFailure

from tasks.mongo import Document
from tasks.mongo_errors import INDEX_CONFLICTS


def make_indexes(
    collection: Collection[Document], indexes: Sequence[IndexModel], used_no_more: Names[str] = ()
) -> list[str]:
    """Make indexes, and drop those of earlier versions; return why one could not be made.

    Nothing depends on those that are missing but speed, and that no document is there twice.

    Args:
        collection: the collection.
        indexes: what it is to have.
        used_no_more: names of indexes that it had.

    Raises:
        pymongo.errors.PyMongoError: MongoDB is away, or does not let us.
    """
    present = collection.index_information() if used_no_more else {}
    for name in set(used_no_more) & present.keys():
        collection.drop_index(name)
    with suppress(OperationFailure):
        collection.create_indexes(indexes)
        return []
    hindrances = (_hindrance(collection, index) for index in indexes)
    return [hindrance for hindrance in hindrances if hindrance]


def _hindrance(collection: Collection[Document], index: IndexModel) -> str | None:
    try:
        collection.create_indexes([index])
    except DuplicateKeyError as error:
        key = (error.details or {}).get("keyValue", {})
        return (
            f"{collection.full_name} goes without its unique index {_name_of(index)}: several "
            f"documents have the key {key}. Delete all but one of them, or correct them; "
            "the next process makes the index"
        )
    except OperationFailure as error:
        if error.code not in INDEX_CONFLICTS:
            raise
        return (
            f"{collection.full_name} goes without its index {_name_of(index)}: one of that name or "
            "key is there with other options. Drop it; the next process makes ours"
        )
    return None


def _name_of(index: IndexModel) -> str:
    name: str = index.document["name"]
    return name
