"""SourceView: a view in MongoDB, read as if it were a collection."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, Final, cast

import bson
from pymongo.errors import OperationFailure

from tasks.entities import EntityType
from tasks.mongo import Document, identity, mongo_operation
from tasks.source.batch import LOWEST, NO_END, can_start_range
from tasks.source.collection import EXACT, IN_ORDER, PAGE, RAW, Projection, SourceCollection
from tasks.source.raw_document import SourceDocument, UnreadableDocument, document_from

_HAS_COLLATION: Final = 167
"""MongoDB's code for a view whose collation can't be overridden."""


class SourceView(SourceCollection):
    """A view: it has no index to start at, and several of its documents may have one `_id`.

    So may those whose `_id`s the collation of the view takes for equal.
    """

    @mongo_operation
    def compares_exactly(self) -> bool:
        """Return whether an aggregation may compare its texts exactly: a collation forbids it."""
        try:
            first = self._collection.find_raw_batches({}, {"_id": True}, limit=1, collation=EXACT)
            with first:
                next(first, None)
        except OperationFailure as error:
            if error.code != _HAS_COLLATION:
                raise
            return False
        return True

    def pages(
        self, start: Any = LOWEST, end: Any = NO_END, projection: Projection | None = None
    ) -> Iterator[list[SourceDocument]]:
        """Read the documents with `start <= _id < end`, each page by a query of its own.

        Documents of equal `_id`s are in one page: MongoDB gives them in any order, and so they
        are nothing to go on from.
        """
        first, skip = {"$gte": ["$_id", {"$literal": start}]}, 0
        before = {"$lt": ["$_id", {"$literal": end}]}
        while page := self._ranged({"$and": [first, before]}, skip, projection):
            place, last = _last_start(page)
            if not place:
                skip += len(page)
                yield page
                continue
            equal = {"$expr": {"$eq": ["$_id", {"$literal": last}]}}
            yield _completed(page[:place], self.matching(equal, projection))
            first, skip = {"$gt": ["$_id", {"$literal": last}]}, 0
        yield from self._last_page(end, projection)

    @mongo_operation
    def starts(self, sizes: Sequence[int]) -> tuple[list[Any], list[int]]:
        """Return the first `_id` of each of the batches of these sizes, and their sizes.

        All `_id`s are read at once: for each query, MongoDB may have to make the whole view.
        """
        wanted = set(accumulate(sizes[:-1]))
        starts, places = [LOWEST], [0]
        for place, raw in enumerate(self._ids()):
            document = document_from(raw) if place in wanted else None
            if document is not None and can_start_range(document):
                starts.append(document["_id"])
                places.append(place)
        return starts, [end - start for start, end in pairwise([*places, sum(sizes)])]

    def repeated_keys(self, entity_type: EntityType) -> set[str]:
        """Return the natural keys that several documents have."""
        if self.compares_exactly():
            return super().repeated_keys(entity_type)
        seen: set[str] = set()
        repeated: set[str] = set()
        for key in chain.from_iterable(self.keys(entity_type)):
            (repeated if key in seen else seen).add(key)
        return repeated

    def _ranged(
        self, bounds: Document, skip: int, projection: Projection | None
    ) -> list[SourceDocument]:
        # Comparisons by $expr, and not $gte and $lt, which match only values of the same BSON type.
        query: Document = {"filter": {"$expr": bounds}, "sort": IN_ORDER, "allow_disk_use": True}
        return self._first_batch(query, skip=skip, limit=PAGE, projection=projection)

    def _bounds_of(self, _source_ids: Sequence[Any]) -> Document:
        return {}

    def _ids(self) -> Iterator[bytes]:
        """Read the documents in `_id` order, as BSON of which only the `_id` is left."""
        batches = self._collection.find_raw_batches(
            {}, {"_id": True}, sort=IN_ORDER, allow_disk_use=True
        )
        with batches:
            for content in cast(Iterator[bytes], batches):
                yield from (bytes(document.raw) for document in bson.decode_all(content, RAW))


def _last_start(page: Sequence[SourceDocument]) -> tuple[int, Any]:
    """Return the last `_id` that a range can start at, and how many documents come up to it."""
    for place in range(len(page), 0, -1):
        if can_start_range(document := page[place - 1]):
            return place, document["_id"]
    return 0, None


def _completed(page: Sequence[SourceDocument], last: list[SourceDocument]) -> list[SourceDocument]:
    """Return a page that ends with these documents of equal `_id`s, all of them."""
    names = {_name(document) for document in last}
    return [*(document for document in page if _name(document) not in names), *last]


def _name(document: SourceDocument) -> bytes | str:
    if isinstance(document, UnreadableDocument):
        return document.source_id
    return identity(document["_id"])
