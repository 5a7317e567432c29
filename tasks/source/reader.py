"""SourceReader: plans the batches of a source collection in MongoDB, and reads their items."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, Final, cast

import bson
from bson import CodecOptions, MaxKey
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from tasks.entities import EntityType, entity_type_named
from tasks.mongo import CODEC, Document, MongoRetry, mongo_operation
from tasks.source.batch import (
    LOWEST,
    NO_END,
    Batch,
    batch_sizes,
    batches_of_one,
    can_start_range,
    numbered_batches,
)
from tasks.source.item import (
    KEY_LENGTH,
    Found,
    InvalidItem,
    Item,
    Unchanged,
    is_natural_key,
    item_from,
    request_id_of,
    superseded,
)
from tasks.source.raw_document import (
    LENIENT_CODEC,
    SourceDocument,
    document_from,
    survives_reading,
)

_PAGE: Final = 1_000
"""Most documents of a query; MongoDB cuts a page at 16 MiB too."""
_KEYS_PER_QUERY: Final = 3_000
"""So many natural keys of the greatest length fit into a query."""
_BYTES_PER_CHARACTER: Final = 4
_RAW: Final = CodecOptions(RawBSONDocument)


class SourceReader:
    """Reads the source collections of one database; never writes.

    Every method waits for a MongoDB that is away, and raises `MongoError`.
    """

    def __init__(self, database: Database[Document], retry: MongoRetry) -> None:
        self._database = database
        self._retry = retry

    @mongo_operation
    def plan(self, entity_type: EntityType, concurrency: int, max_batches: int) -> list[Batch]:
        """Cut a collection into at most `max_batches` ranges of `_id`, without gap or overlap.

        Up to `max_batches` documents, each is a batch of its own, labelled with its natural key.
        More of them go in as many batches as keep `concurrency` of them busy to the end. The
        outer ranges are open, so a document that comes while the stage runs is read too.
        """
        first = self._first(entity_type, max_batches + 1)
        if len(first) <= max_batches:
            return batches_of_one(entity_type, first)
        count = self._database[entity_type.collection].count_documents({})
        starts, sizes = self._starts(entity_type, batch_sizes(count, concurrency, max_batches))
        return numbered_batches(entity_type, starts, sizes)

    def read(self, batch: Batch) -> Iterator[Item | InvalidItem]:
        """Read the items of a batch in `_id` order, each validated; none is left out."""
        entity_type = entity_type_named(batch.entity_type)
        for page in self._pages(entity_type, batch.start, batch.end):
            for document in page:
                yield item_from(entity_type, document)

    def read_unless(
        self, batch: Batch, confirmed: Callable[[Sequence[str]], Container[str]]
    ) -> Iterator[Found]:
        """Read the items of a batch in `_id` order; those already confirmed are not validated.

        `confirmed` is called with the request ids of a page, and returns those that Stage 1 has
        confirmed.
        """
        entity_type = entity_type_named(batch.entity_type)
        for page in self._pages(entity_type, batch.start, batch.end):
            request_ids = [request_id_of(entity_type, document) for document in page]
            unchanged = confirmed([identifier for identifier in request_ids if identifier])
            for document, identifier in zip(page, request_ids, strict=True):
                if identifier in unchanged and isinstance(document, dict):
                    yield Unchanged(document["_id"])
                else:
                    yield item_from(entity_type, document)

    def duplicates(self, entity_type: EntityType) -> Iterator[Item | InvalidItem]:
        """Find the items whose natural key another document of a higher version has too.

        Of equal versions the lowest `_id` wins.
        """
        keys = self._repeated_keys(entity_type)
        for offset in range(0, len(keys), _KEYS_PER_QUERY):
            for rivals in self._rivals(entity_type, keys[offset : offset + _KEYS_PER_QUERY]):
                yield from superseded(rivals)

    def _first(self, entity_type: EntityType, count: int) -> list[SourceDocument]:
        projection = {"_id": True, entity_type.natural_key: True}
        pages = self._pages(entity_type, LOWEST, NO_END, projection=projection)
        return list(islice(chain.from_iterable(pages), count))

    def _starts(self, entity_type: EntityType, sizes: Sequence[int]) -> tuple[list[Any], list[int]]:
        """Return the first `_id` of each of the batches of these sizes, and their sizes.

        A batch whose first document can't be its start, or that has none, is not among them.
        """
        starts, held = [LOWEST], [sizes[0]]
        for size in sizes[1:]:
            first = self._page(
                entity_type, starts[-1], skip=held[-1], limit=1, projection={"_id": True}
            )
            if not first:
                break
            if can_start_range(first[0]):
                starts.append(first[0]["_id"])
                held.append(size)
            else:
                held[-1] += size
        return starts, held

    def _pages(
        self,
        entity_type: EntityType,
        start: Any,
        end: Any,
        *,
        match: Document | None = None,
        projection: Mapping[str, bool] | None = None,
    ) -> Iterator[Sequence[SourceDocument]]:
        """Read documents in `_id` order, each page by a query of its own.

        So no cursor expires while a page is sent, and a MongoDB that was restarted goes on.
        """
        skip = 0
        while page := self._page(
            entity_type, start, end, skip=skip, match=match, projection=projection
        ):
            yield page
            for since, document in enumerate(reversed(page), 1):
                if can_start_range(document):
                    start, skip = document["_id"], since
                    break
            else:
                skip += len(page)
        if isinstance(end, MaxKey) and (
            last := self._page(entity_type, NO_END, skip=0, match=match, projection=projection)
        ):
            yield last

    @mongo_operation
    def _page(
        self,
        entity_type: EntityType,
        start: Any,
        end: Any = NO_END,
        *,
        skip: int,
        limit: int = _PAGE,
        match: Document | None = None,
        projection: Mapping[str, bool] | None = None,
    ) -> Sequence[SourceDocument]:
        """Read documents from `start` on, as many as MongoDB gives at once: `limit` or 16 MiB."""
        collection = self._database.get_collection(entity_type.collection, codec_options=CODEC)
        query: Document = {
            "projection": projection,
            "skip": skip,
            "limit": -limit,
            **_range_query(start, end, match or {}),
        }
        with suppress(BSONError):
            documents = list(collection.find(**query))
            if all(survives_reading(document["_id"]) for document in documents):
                return documents
        content = b"".join(cast(Iterable[bytes], collection.find_raw_batches(**query)))
        return [document_from(bytes(document.raw)) for document in bson.decode_all(content, _RAW)]

    @mongo_operation
    def _repeated_keys(self, entity_type: EntityType) -> list[str]:
        collection = self._database.get_collection(
            entity_type.collection, codec_options=LENIENT_CODEC
        )
        groups = collection.aggregate(
            [
                {"$group": {"_id": _key_expression(entity_type), "copies": {"$sum": 1}}},
                {"$match": {"copies": {"$gt": 1}, "_id": {"$ne": None}}},
            ],
            allowDiskUse=True,
        )
        return [group["_id"] for group in groups if is_natural_key(group["_id"])]

    def _rivals(
        self, entity_type: EntityType, keys: list[str]
    ) -> Iterable[list[Item | InvalidItem]]:
        """Return the items of these natural keys, those of one key together in `_id` order."""
        rivals: defaultdict[str, list[Item | InvalidItem]] = defaultdict(list)
        repeated = {"$expr": {"$in": [_key_expression(entity_type), {"$literal": keys}]}}
        for page in self._pages(entity_type, LOWEST, NO_END, match=repeated):
            for document in page:
                item = item_from(entity_type, document)
                if item.natural_key is not None:
                    rivals[item.natural_key].append(item)
        return rivals.values()


def _range_query(start: Any, end: Any, match: Document) -> Document:
    """Return what limits a query to the range from `start` to before `end`."""
    if isinstance(start, MaxKey):
        return {"filter": {**match, "_id": start}}
    # Index bounds, and not $gte and $lt, which match only values of the same BSON type.
    # They never reach MaxKey itself.
    upper = None if isinstance(end, MaxKey) else {"_id": end}
    return {"filter": match, "hint": [("_id", 1)], "min": {"_id": start}, "max": upper}


def _key_expression(entity_type: EntityType) -> Document:
    """Return the natural key as MongoDB works it out; null where it is none or too long."""
    field = f"${entity_type.natural_key}"
    value = {"$ifNull": ["$id", "$_id"]} if entity_type.natural_key == "id" else field
    text = {"$convert": {"input": value, "to": "string", "onError": None, "onNull": None}}
    length = {"$strLenBytes": {"$ifNull": ["$$key", ""]}}
    longest = KEY_LENGTH * _BYTES_PER_CHARACTER
    short = {"$cond": [{"$lte": [length, longest]}, "$$key", None]}
    return {"$let": {"vars": {"key": text}, "in": short}}
