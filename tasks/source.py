"""The source collections: plan a stage's batches, read and validate the items of a batch."""

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

from bson import Decimal128, MaxKey, MinKey, ObjectId
from pydantic import ValidationError
from pymongo.cursor import Cursor
from pymongo.database import Database

from tasks.entities import EntityType, entity_type_named
from tasks.mongo import Document, Patience, patiently
from tasks.request_id import effective_version, request_id

BOOKKEEPING: Final = frozenset(
    {
        "_id",
        "__v",
        "version",
        "created_at",
        "updated_at",
        "createdAt",
        "updatedAt",
        "deleted_at",
        "last_sync",
    }
)
"""Fields of a source document that are never sent."""

_PAGE = 1_000
"""Most documents of a query; MongoDB cuts a page at 16 MiB too."""
_LEAST_IN_BATCH = 250
"""Items that a task run is worth, once an item no longer has one to itself."""
_KEYS_PER_QUERY = 10_000
_FAULTS_TOLD = 5


@dataclass(frozen=True)
class Batch:
    """The documents of a source collection with `start <= _id < end`, in BSON order.

    `size` is how many there were when the stage was planned.
    """

    entity_type: str
    label: str
    start: Any
    end: Any
    size: int

    @property
    def name(self) -> str:
        """Name of the task run, such as `tenant regnum-christi`."""
        return f"{self.entity_type} {self.label}"


@dataclass(frozen=True)
class Item:
    """A source document that can be sent; `body` is what Stage 1 gets of it."""

    entity_type: EntityType
    source_id: Any
    natural_key: str
    version: int | str
    request_id: str
    body: dict[str, Any]


@dataclass(frozen=True)
class InvalidItem:
    """A source document that can't be sent; `fault` says why without quoting its values."""

    entity_type: EntityType
    source_id: Any
    natural_key: str | None
    version: int | None
    fault: str


@dataclass(frozen=True)
class Known:
    """A source document whose request id is known: an earlier run has sent it."""

    source_id: Any


class _Unsendable(ValueError):
    """A value of the document has no place in a request."""


class Source:
    """Reads the source collections of one database; never writes.

    Every method waits for a MongoDB that is away, and raises `MongoUnavailable` when it stays away.
    """

    def __init__(self, database: Database[Document], patience: Patience) -> None:
        self._database = database
        self._patience = patience

    @patiently
    def plan(self, entity_type: EntityType, concurrency: int, max_batches: int) -> list[Batch]:
        """Cut a collection into at most `max_batches` ranges of `_id`, without gap or overlap.

        Up to `max_batches` documents, each is a batch of its own, labelled with its natural key.
        More of them go in as many batches as keep `concurrency` of them busy to the end. The
        outer ranges are open, so a document that comes while the stage runs is read too.
        """
        key_field = entity_type.natural_key
        projection = {"_id": True, key_field: True}
        first = list(
            self._in_id_order(entity_type, MinKey(), projection=projection).limit(max_batches + 1)
        )
        if len(first) <= max_batches:
            labels = [_label(entity_type, document) for document in first]
            starts = [document["_id"] for document in first]
            return _ranges(entity_type, starts, labels, [1] * len(starts))
        count = self._database[entity_type.collection].count_documents({})
        sizes = _sizes(count, _number_of_batches(count, concurrency, max_batches))
        starts = self._starts(entity_type, sizes)
        labels = [f"batch {number} of {len(starts)}" for number in range(1, len(starts) + 1)]
        return _ranges(entity_type, starts, labels, sizes)

    def read(self, batch: Batch) -> Iterator[Item | InvalidItem]:
        """Read the items of a batch in `_id` order, each validated; none is left out."""
        entity_type = entity_type_named(batch.entity_type)
        for page in self._pages(entity_type, batch.start, batch.end):
            for document in page:
                yield item_from(entity_type, document)

    def read_unless(
        self, batch: Batch, are_known: Callable[[Sequence[str]], Container[str]]
    ) -> Iterator[Item | InvalidItem | Known]:
        """Read the items of a batch in `_id` order; those whose request id is known unvalidated.

        `are_known` is asked for a page of request ids, and returns those that are.
        """
        entity_type = entity_type_named(batch.entity_type)
        for page in self._pages(entity_type, batch.start, batch.end):
            request_ids = [request_id_of(entity_type, document) for document in page]
            known = are_known([identifier for identifier in request_ids if identifier])
            for document, identifier in zip(page, request_ids, strict=True):
                if identifier in known:
                    yield Known(document["_id"])
                else:
                    yield item_from(entity_type, document)

    def duplicates(self, entity_type: EntityType) -> Iterator[Item | InvalidItem]:
        """Find the items whose natural key another document of a higher version has too.

        Of equal versions the lowest `_id` wins.
        """
        keys = self._repeated_keys(entity_type)
        for offset in range(0, len(keys), _KEYS_PER_QUERY):
            yield from self._losers(entity_type, keys[offset : offset + _KEYS_PER_QUERY])

    def _pages(
        self, entity_type: EntityType, start: Any, end: Any = None, match: Document | None = None
    ) -> Iterator[list[Document]]:
        """Read documents in `_id` order, each page by a query of its own.

        So no cursor expires while a page is sent, and a MongoDB that was restarted goes on.
        """
        page = self._page(entity_type, start, end, match, skip=0)
        while page:
            yield page
            page = self._page(entity_type, page[-1]["_id"], end, match, skip=1)

    @patiently
    def _page(
        self, entity_type: EntityType, start: Any, end: Any, match: Document | None, *, skip: int
    ) -> list[Document]:
        documents = self._in_id_order(entity_type, start, end, match=match)
        return list(documents.skip(skip).limit(-_PAGE))

    def _in_id_order(
        self,
        entity_type: EntityType,
        start: Any,
        end: Any = None,
        *,
        match: Document | None = None,
        projection: dict[str, bool] | None = None,
    ) -> Cursor[Document]:
        # Index bounds, and not $gte and $lt, which match only values of the same BSON type.
        cursor = self._database[entity_type.collection].find(match or {}, projection)
        cursor = cursor.hint([("_id", 1)]).min([("_id", start)])
        return cursor if end is None else cursor.max([("_id", end)])

    def _starts(self, entity_type: EntityType, sizes: Sequence[int]) -> list[Any]:
        """Return the first `_id` of each of the batches of these sizes that has a document."""
        starts: list[Any] = [MinKey()]
        for size in sizes[:-1]:
            following = self._in_id_order(entity_type, starts[-1], projection={"_id": True})
            next_start = list(following.skip(size).limit(1))
            if not next_start:
                break
            starts.append(next_start[0]["_id"])
        return starts

    @patiently
    def _repeated_keys(self, entity_type: EntityType) -> list[str]:
        groups = self._database[entity_type.collection].aggregate(
            [
                {"$group": {"_id": _key_expression(entity_type), "copies": {"$sum": 1}}},
                {"$match": {"copies": {"$gt": 1}, "_id": {"$ne": None}}},
            ],
            allowDiskUse=True,
        )
        return [group["_id"] for group in groups]

    def _losers(self, entity_type: EntityType, keys: list[str]) -> Iterator[Item | InvalidItem]:
        rivals: defaultdict[str, list[Item | InvalidItem]] = defaultdict(list)
        repeated = {"$expr": {"$in": [_key_expression(entity_type), keys]}}
        for page in self._pages(entity_type, MinKey(), match=repeated):
            for document in page:
                item = item_from(entity_type, document)
                if item.natural_key is not None:
                    rivals[item.natural_key].append(item)
        for items in rivals.values():
            winner = max(items, key=_version_rank)
            yield from (item for item in items if item is not winner)


def item_from(entity_type: EntityType, document: Document) -> Item | InvalidItem:
    """Turn a source document into what is sent of it, or into the reason why it can't be."""
    natural_key = _natural_key(entity_type, document)
    version: int | None = None
    try:
        if natural_key is None:
            raise _Unsendable(f"{entity_type.natural_key}: the natural key is missing")
        version = _version(document.get("version"))
        body = entity_type.body(_business_fields(entity_type, document, natural_key))
    except ValidationError as error:
        fault = _faults_in_words(error)
    except _Unsendable as error:
        fault = str(error)
    else:
        told = effective_version(version, _moment(document.get("updated_at")), body)
        identifier = request_id(entity_type.name, natural_key, told)
        return Item(entity_type, document["_id"], natural_key, told, identifier, body)
    return InvalidItem(entity_type, document["_id"], natural_key, version, fault)


def request_id_of(entity_type: EntityType, document: Document) -> str | None:
    """Return the request id of a document; None where it can't be sent.

    Cheap where the document has a version or a time: the rest of it is then not looked at.
    """
    natural_key = _natural_key(entity_type, document)
    if natural_key is None:
        return None
    version, updated_at = document.get("version"), _moment(document.get("updated_at"))
    if type(version) is int or (version is None and updated_at is not None):
        told = effective_version(version, updated_at, {})
        return request_id(entity_type.name, natural_key, told)
    item = item_from(entity_type, document)
    return item.request_id if isinstance(item, Item) else None


def _number_of_batches(count: int, concurrency: int, max_batches: int) -> int:
    """Return a multiple of `concurrency` where that fits, so that all of it is busy to the end."""
    wanted = min(max_batches, max(concurrency, count // _LEAST_IN_BATCH))
    return wanted - wanted % concurrency if wanted >= concurrency else wanted


def _sizes(count: int, parts: int) -> list[int]:
    """Cut a number of documents into parts that differ by one at most."""
    bounds = [count * part // parts for part in range(parts + 1)]
    return [end - start for start, end in pairwise(bounds)]


def _ranges(
    entity_type: EntityType, starts: list[Any], labels: list[str], sizes: Sequence[int]
) -> list[Batch]:
    bounds = [MinKey(), *starts[1:], MaxKey()]
    return [
        Batch(entity_type.name, label, start, end, size)
        for label, start, end, size in zip(labels, bounds, bounds[1:], sizes, strict=False)
    ]


def _label(entity_type: EntityType, document: Document) -> str:
    return _natural_key(entity_type, document) or f"_id {document['_id']}"


def _key_expression(entity_type: EntityType) -> Document:
    field = f"${entity_type.natural_key}"
    value = {"$ifNull": ["$id", "$_id"]} if entity_type.natural_key == "id" else field
    return {"$convert": {"input": value, "to": "string", "onError": None, "onNull": None}}


def _natural_key(entity_type: EntityType, document: Document) -> str | None:
    value = document.get(entity_type.natural_key)
    if value is None and entity_type.natural_key == "id":
        value = document["_id"] if isinstance(document["_id"], ObjectId) else None
    if isinstance(value, ObjectId):
        return str(value)
    return value if isinstance(value, str) and value else None


def _version(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    raise _Unsendable("version: not an integer")


def _moment(value: Any) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _version_rank(item: Item | InvalidItem) -> tuple[int, int]:
    if isinstance(item.version, int):
        return 2, item.version
    return (0, 0) if item.version is None else (1, 0)


def _business_fields(
    entity_type: EntityType, document: Document, natural_key: str
) -> dict[str, Any]:
    fields = {
        name: _as_json(value, name) for name, value in document.items() if name not in BOOKKEEPING
    }
    fields[entity_type.natural_key] = natural_key
    if document.get("deleted_at") is not None:
        fields["enabled"] = False
    return fields


def _as_json(value: Any, path: str) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float() if math.isfinite(value):
            return value
        case ObjectId() | Decimal128():
            return str(value)
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case dict():
            return {name: _as_json(inner, f"{path}.{name}") for name, inner in value.items()}
        case list():
            return [_as_json(inner, f"{path}.{index}") for index, inner in enumerate(value)]
        case _:
            raise _Unsendable(f"{path}: a {type(value).__name__} can't be sent as JSON")


def _faults_in_words(error: ValidationError) -> str:
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    more = f"; and {len(faults) - _FAULTS_TOLD} more" if len(faults) > _FAULTS_TOLD else ""
    return "; ".join(faults[:_FAULTS_TOLD]) + more
