"""SourceReader: plans the batches of a source collection in MongoDB, and reads their items."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice

from pymongo.database import Database

from tasks.entities import EntityType, entity_type_named
from tasks.mongo import Document, MongoRetry, identity, mongo_operation
from tasks.mongo_errors import MongoForbidden
from tasks.source.batch import Batch, batch_sizes, batches_of_one, can_start_range, numbered_batches
from tasks.source.bookkeeping import (
    CHANGE_TIMES,
    DELETION_FLAGS,
    DELETION_TIMES,
    natural_key_of,
)
from tasks.source.collection import Projection, SourceCollection
from tasks.source.item import Found, item_from
from tasks.source.natural_keys import key_expression, key_match
from tasks.source.raw_document import SourceDocument, legible
from tasks.source.twins import Twin, losers, twin_from
from tasks.source.view import SourceView


class SourceReader:
    """Reads the source collections of one database; never writes.

    Every method waits for a MongoDB that is away, and raises `MongoError`. Views, and collections
    of any kind, are read alike.
    """

    def __init__(self, database: Database[Document], retry: MongoRetry) -> None:
        self._database = database
        self._retry = retry
        self._collections: dict[str, SourceCollection] = {}

    @mongo_operation
    def existing(self, entity_types: Sequence[EntityType]) -> list[str]:
        """Return which of the collections of these entity types exist, views included.

        A user that may read nothing but these may ask.
        """
        there = self._database.list_collection_names(authorizedCollections=True, nameOnly=True)
        return [each.collection for each in entity_types if each.collection in there]

    @mongo_operation
    def plan(self, entity_type: EntityType, concurrency: int, max_batches: int) -> list[Batch]:
        """Cut a collection into at most `max_batches` ranges of `_id`, without gap or overlap.

        Up to `max_batches` documents, each is a batch of its own, labelled with its natural key.
        More of them go in as many batches as keep `concurrency` of them busy to the end. The
        outer ranges are open, so a document that comes while the stage runs is read too.
        """
        collection = self._collection_of(entity_type)
        pages = collection.pages(projection={"_id": True, entity_type.natural_key: True})
        first = list(islice(chain.from_iterable(pages), max_batches + 1))
        if len(first) <= max_batches:
            return batches_of_one(entity_type, first)
        sizes = batch_sizes(collection.count(), concurrency, max_batches)
        return numbered_batches(entity_type, *collection.starts(sizes))

    def pages(self, batch: Batch) -> Iterator[list[Found]]:
        """Read the items of a batch in `_id` order, a list a page; none is left out.

        What is deleted is so at the moment when its page was read.
        """
        entity_type = entity_type_named(batch.entity_type)
        for page in self._collection_of(entity_type).pages(batch.start, batch.end):
            now = _now()
            yield [item_from(entity_type, document, now) for document in page]

    def duplicates(self, entity_type: EntityType) -> Iterator[Twin]:
        """Find the documents that are not sent, as another one of their natural key is."""
        if repeated := self._collection_of(entity_type).repeated_keys(entity_type):
            yield from losers(self._twins_of(entity_type, repeated))

    @mongo_operation
    def twins(self, entity_type: EntityType, natural_keys: Collection[str]) -> list[Twin]:
        """Return all documents of these natural keys in `_id` order, those that are sent too.

        Meant for a thousand keys or so: they go in one query.
        """
        if not natural_keys:
            return []
        match = key_match(entity_type, natural_keys)
        # In full: what can't be read is named by a hash of all of it.
        documents = self._collection_of(entity_type).matching(match, projection=None)
        now = _now()
        return [
            twin_from(entity_type, key, document, now)
            for key, document in _keyed(entity_type, documents, frozenset(natural_keys))
        ]

    def present(self, entity_type: EntityType) -> Document | frozenset[str]:
        """Return the natural keys that are there, as a `$unionWith` that yields each as `key`.

        Of a view that has a collation of its own, which allows no exact comparison, they are read.
        """
        collection = self._collection_of(entity_type)
        if not collection.compares_exactly():
            return frozenset(chain.from_iterable(collection.keys(entity_type)))
        key = {"_id": False, "key": key_expression(entity_type)}
        return {"coll": entity_type.collection, "pipeline": [{"$project": key}]}

    def _twins_of(self, entity_type: EntityType, natural_keys: Collection[str]) -> Iterator[Twin]:
        """Read the documents of these natural keys in `_id` order, going through all once."""
        now = _now()
        collection = self._collection_of(entity_type)
        for page in collection.pages(projection=_ranking_fields(entity_type)):
            found = _keyed(entity_type, page, natural_keys)
            source_ids = [document["_id"] for _, document in found if can_start_range(document)]
            stand_ins = collection.stand_ins(source_ids) if source_ids else {}
            for key, document in found:
                yield _named(twin_from(entity_type, key, document, now), stand_ins)

    def _collection_of(self, entity_type: EntityType) -> SourceCollection:
        """Return the collection of an entity type; what kind it is of is asked once."""
        name = entity_type.collection
        if name not in self._collections:
            kind = SourceView if self._is_view(name) else SourceCollection
            self._collections[name] = kind(self._database[name], self._retry)
        return self._collections[name]

    def _is_view(self, collection: str) -> bool:
        """Return whether a collection is a view, or the like; no, where that may not be asked."""
        try:
            return self._type_of(collection) not in (None, "collection")
        except MongoForbidden:
            return False

    @mongo_operation
    def _type_of(self, collection: str) -> str | None:
        """Return what MongoDB calls the type of a collection; None where it does not exist."""
        listed = self._database.list_collections(authorizedCollections=True, nameOnly=True)
        return {each["name"]: each.get("type") for each in listed}.get(collection)


def _keyed(
    entity_type: EntityType, documents: Sequence[SourceDocument], natural_keys: Collection[str]
) -> list[tuple[str, SourceDocument]]:
    """Return those of the documents that have one of these natural keys, each with its key."""
    keyed = ((natural_key_of(entity_type, legible(each)), each) for each in documents)
    return [(key, each) for key, each in keyed if key is not None and key in natural_keys]


def _named(twin: Twin, stand_ins: Mapping[bytes, str]) -> Twin:
    """Return a twin, of which a part was read, under the `source_id` that a batch has for it."""
    stand_in = stand_ins.get(identity(twin.source_id)) if stand_ins else None
    return replace(twin, source_id=stand_in) if stand_in else twin


def _ranking_fields(entity_type: EntityType) -> Projection:
    """Return the fields that say which of several twins is sent."""
    fields = (entity_type.natural_key, "version", *CHANGE_TIMES, *DELETION_TIMES, *DELETION_FLAGS)
    return dict.fromkeys(("_id", *fields), True)


def _now() -> int:
    """Return the time in epoch milliseconds."""
    return time.time_ns() // 1_000_000
