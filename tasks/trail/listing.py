"""Listing: reads a long list in its order, by an index: a page of it, or all, piece by piece."""

from collections.abc import Iterator, Mapping
from typing import Final

from pymongo import ASCENDING
from pymongo.collection import Collection

from tasks.mongo import Document, MongoRetry, identity, mongo_operation

_AT_ONCE: Final = 200
"""How many documents are read at once of a list that is read as a whole."""


class Listing:
    """The documents of a collection by a field and, where that is the same, by their `_id`s."""

    def __init__(
        self, collection: Collection[Document], order: Mapping[str, int], retry: MongoRetry
    ) -> None:
        self._collection = collection
        self._order = order
        self._retry = retry

    @mongo_operation
    def page(self, match: Document, limit: int, skip: int = 0) -> list[Document]:
        """Return some documents; those that are skipped are passed over in the index alone."""
        keys = self._collection.find(match, {"_id": True}).sort(self._order)
        ids = [key["_id"] for key in keys.skip(skip).limit(limit)]
        found = {
            identity(each["_id"]): each for each in self._collection.find({"_id": {"$in": ids}})
        }
        return [found[key] for key in map(identity, ids) if key in found]

    def each(self, match: Document, limit: int | None = None) -> Iterator[Document]:
        """Yield documents, however many, and hold no more than a few hundred of them."""
        left, wanted = limit, match
        while left is None or left > 0:
            at_once = _AT_ONCE if left is None else min(_AT_ONCE, left)
            documents = self._first(wanted, at_once)
            yield from documents
            if len(documents) < at_once:
                return
            wanted = self.beyond(match, documents[-1])
            left = None if left is None else left - at_once

    @mongo_operation
    def _first(self, match: Document, limit: int) -> list[Document]:
        return list(self._collection.find(match).sort(self._order).limit(limit))

    def beyond(self, match: Document, last: Document) -> Document:
        """Match what comes after a document, of which only the fields of the order are needed."""
        (name, direction), _ = self._order.items()
        comparison = "$gt" if direction == ASCENDING else "$lt"
        place = last.get(name)
        comes_after = {
            name: {f"{comparison}e": place},
            "$or": [{name: {comparison: place}}, {"_id": {comparison: last["_id"]}}],
        }
        return {"$and": [match, comes_after]}
