"""SourceCollection: a source collection in MongoDB, read page by page in `_id` order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, TypeAlias, cast

import bson
from bson import CodecOptions, MaxKey
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo.collation import Collation
from pymongo.collection import Collection

from tasks.entities import EntityType
from tasks.mongo import CODEC, Document, MongoRetry, identity, mongo_operation
from tasks.source.batch import LOWEST, NO_END, can_start_range
from tasks.source.bookkeeping import natural_key_of
from tasks.source.natural_keys import key_expression
from tasks.source.raw_document import (
    LENIENT_CODEC,
    SourceDocument,
    UnreadableDocument,
    document_from,
    legible,
    survives_reading,
)

PAGE: Final = 1_000
"""Most documents of a page; MongoDB cuts it at 16 MiB too."""
EXACT: Final = Collation(locale="simple")
"""Compares texts byte by byte, whatever the collection does."""
IN_ORDER: Final = [("_id", 1)]
RAW: Final = CodecOptions(RawBSONDocument)
Projection: TypeAlias = Mapping[str, bool]


class SourceCollection:
    """A collection of any kind that has an index on `_id`, clustered, capped and collated ones too.

    A collation of its own orders its `_id`s, and it alone: natural keys are compared exactly.
    """

    def __init__(self, collection: Collection[Document], retry: MongoRetry) -> None:
        self._collection = collection
        self._retry = retry

    def compares_exactly(self) -> bool:
        """Return whether an aggregation may compare its texts exactly."""
        return True

    @mongo_operation
    def count(self) -> int:
        """Return the number of documents."""
        return self._collection.count_documents({})

    def pages(
        self, start: Any = LOWEST, end: Any = NO_END, projection: Projection | None = None
    ) -> Iterator[list[SourceDocument]]:
        """Read the documents with `start <= _id < end`, each page by a query of its own.

        So no cursor expires while a page is sent, and a MongoDB that was restarted goes on.
        An `end` of `MaxKey` is none.
        """
        match: Document = {}
        skip = 0
        while page := self._page(start, end, skip=skip, match=match, projection=projection):
            yield page
            for since, document in enumerate(reversed(page)):
                if can_start_range(document):
                    start, skip = document["_id"], since
                    # Not skipped: it may be deleted by then.
                    match = {"_id": {"$ne": start}}
                    break
            else:
                skip += len(page)
        yield from self._last_page(end, projection)

    def starts(self, sizes: Sequence[int]) -> tuple[list[Any], list[int]]:
        """Return the first `_id` of each of the batches of these sizes, and their sizes.

        A batch whose first document can't be its start, or that has none, is not among them.
        """
        starts, held = [LOWEST], [sizes[0]]
        for size in sizes[1:]:
            skip, only_id = held[-1], {"_id": True}
            first = self._page(starts[-1], NO_END, skip=skip, limit=1, projection=only_id)
            if not first:
                break
            if can_start_range(first[0]):
                starts.append(first[0]["_id"])
                held.append(size)
            else:
                held[-1] += size
        return starts, held

    @mongo_operation
    def matching(self, match: Document, projection: Projection | None) -> list[SourceDocument]:
        """Read all documents that match, in `_id` order."""
        cursor = self._collection.find_raw_batches(
            match, projection, sort=IN_ORDER, allow_disk_use=True
        )
        with cursor:
            documents = _documents_in(b"".join(cast(Iterator[bytes], cursor)))
        return self.matching(match, None) if _misnames(documents, projection) else documents

    @mongo_operation
    def stand_ins(self, source_ids: Sequence[Any]) -> dict[bytes, str]:
        """Return what stands in for the `_id`s of documents that can't be read, by `identity`.

        They are read in full: a part of them may well be legible. The `_id`s come in order, so
        that no more is looked at than lies between the first and the last, even without an index.
        """
        match = {"_id": {"$in": source_ids}}
        cursor = self._collection.find_raw_batches(match, **self._bounds_of(source_ids))
        with cursor:
            batches = cast(Iterator[bytes], cursor)
            return {
                identity(document.legible["_id"]): document.source_id
                for document in chain.from_iterable(map(_documents_in, batches))
                if isinstance(document, UnreadableDocument) and "_id" in document.legible
            }

    def keys(self, entity_type: EntityType) -> Iterator[list[str]]:
        """Read the natural keys of all documents that have one, a list a page."""
        for page in self.pages(projection={"_id": True, entity_type.natural_key: True}):
            keys = (natural_key_of(entity_type, legible(document)) for document in page)
            yield [key for key in keys if key is not None]

    @mongo_operation
    def repeated_keys(self, entity_type: EntityType) -> set[str]:
        """Return the natural keys that several documents have."""
        groups = self._collection.with_options(codec_options=LENIENT_CODEC).aggregate(
            [
                {"$group": {"_id": key_expression(entity_type), "copies": {"$sum": 1}}},
                {"$match": {"copies": {"$gt": 1}, "_id": {"$ne": None}}},
            ],
            allowDiskUse=True,
            collation=EXACT,
        )
        with groups:
            return {group["_id"] for group in groups}

    def _page(
        self,
        start: Any,
        end: Any,
        *,
        skip: int,
        limit: int = PAGE,
        match: Document | None = None,
        projection: Projection | None,
    ) -> list[SourceDocument]:
        # Index bounds, and not $gte and $lt, which match only values of the same BSON type.
        bounds: Document = {"min": {"_id": start}, "max": {"_id": end}, "hint": IN_ORDER}
        query = {"filter": match, **bounds}
        return self._first_batch(query, skip=skip, limit=limit, projection=projection)

    def _bounds_of(self, source_ids: Sequence[Any]) -> Document:
        return {"min": {"_id": source_ids[0]}, "hint": IN_ORDER, "limit": len(source_ids)}

    def _last_page(self, end: Any, projection: Projection | None) -> Iterator[list[SourceDocument]]:
        """Read what no range reaches, if there is no end: what has `MaxKey` for its `_id`."""
        if isinstance(end, MaxKey) and (last := self.matching({"_id": NO_END}, projection)):
            yield last

    @mongo_operation
    def _first_batch(
        self, query: Document, *, skip: int, limit: int, projection: Projection | None
    ) -> list[SourceDocument]:
        """Read as many documents as MongoDB gives at once: `limit`, or 16 MiB of them."""
        # One more than the limit, so that MongoDB holds no cursor open for what is not there.
        cursor = self._collection.find_raw_batches(
            **query, skip=skip, limit=limit, batch_size=limit + 1, projection=projection
        )
        with cursor:
            documents = _documents_in(next(cast(Iterator[bytes], cursor), b""))
        if _misnames(documents, projection):
            return self._first_batch(query, skip=skip, limit=limit, projection=None)
        return documents


def _misnames(documents: Sequence[SourceDocument], projection: Projection | None) -> bool:
    """Return whether documents that can't be read are named by a hash of a part of them."""
    return projection is not None and any(
        isinstance(document, UnreadableDocument) for document in documents
    )


def _documents_in(content: bytes) -> list[SourceDocument]:
    with suppress(BSONError):
        documents = bson.decode_all(content, CODEC)
        if all(survives_reading(document.get("_id")) for document in documents):
            return [*documents]
    return [document_from(bytes(document.raw)) for document in bson.decode_all(content, RAW)]
