"""The source collections: plan a stage's batches, read and validate the items of a batch."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice, pairwise
from typing import Any, Final, TypeAlias, TypeGuard, cast

import bson
from bson import Code, CodecOptions, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pydantic import ValidationError
from pymongo.database import Database

from tasks.entities import EntityType, entity_type_named, in_one_line, label_of
from tasks.mongo import CODEC, Document, Patience, identity, patiently
from tasks.source.request_id import effective_version, request_id

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
_KEY_LENGTH = 1_024
"""Most characters of a natural key."""
_ID_BYTES = 2_048
"""Most bytes of an `_id`."""
_KEYS_PER_QUERY = 3_000
"""So many natural keys of the greatest length fit into a query."""
_FAULTS_TOLD = 5
_FAULT_LENGTH = 500
_INT64: Final = range(-(2**63), 2**63)
_FIRST: Final = MinKey()
_NO_END: Final = MaxKey()
_PLAIN: Final = frozenset({ObjectId, int, Int64, float, datetime})
_RAW: Final = CodecOptions(RawBSONDocument)
_LENIENT: Final = CODEC.with_options(unicode_decode_error_handler="surrogateescape")
"""Reads bytes that are not UTF-8 as lone surrogates."""


@dataclass(frozen=True)
class Batch:
    """The documents of a source collection with `start <= _id < end`, in BSON order.

    Where `end` is `MaxKey` there is no end: a document may have even that for its `_id`.
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


@dataclass(frozen=True)
class _Unsound:
    """A source document that PyMongo can't read, or whose `_id` it can't hand back as it is.

    `source_id` stands in for the `_id`; `legible` is what can be read of the document.
    """

    source_id: str
    legible: Document
    fault: str


_Read: TypeAlias = Document | _Unsound


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
        first = self._first(entity_type, max_batches + 1)
        if len(first) <= max_batches:
            return _batches_of_one(entity_type, first)
        count = self._database[entity_type.collection].count_documents({})
        sizes = _sizes(count, _number_of_batches(count, concurrency, max_batches))
        starts, sizes = self._starts(entity_type, sizes)
        labels = [f"batch {number} of {len(starts)}" for number in range(1, len(starts) + 1)]
        return _ranges(entity_type, starts, labels, sizes)

    def read(self, batch: Batch) -> Iterator[Item | InvalidItem]:
        """Read the items of a batch in `_id` order, each validated; none is left out."""
        entity_type = entity_type_named(batch.entity_type)
        for page in self._pages(entity_type, batch.start, batch.end):
            for read in page:
                yield _item_of(entity_type, read)

    def read_unless(
        self, batch: Batch, are_known: Callable[[Sequence[str]], Container[str]]
    ) -> Iterator[Item | InvalidItem | Known]:
        """Read the items of a batch in `_id` order; those whose request id is known unvalidated.

        `are_known` is asked for a page of request ids, and returns those that are.
        """
        entity_type = entity_type_named(batch.entity_type)
        for page in self._pages(entity_type, batch.start, batch.end):
            request_ids = [_request_id_of(entity_type, read) for read in page]
            known = are_known([identifier for identifier in request_ids if identifier])
            for read, identifier in zip(page, request_ids, strict=True):
                if identifier in known and isinstance(read, dict):
                    yield Known(read["_id"])
                else:
                    yield _item_of(entity_type, read)

    def duplicates(self, entity_type: EntityType) -> Iterator[Item | InvalidItem]:
        """Find the items whose natural key another document of a higher version has too.

        Of equal versions the lowest `_id` wins.
        """
        keys = self._repeated_keys(entity_type)
        for offset in range(0, len(keys), _KEYS_PER_QUERY):
            yield from self._losers(entity_type, keys[offset : offset + _KEYS_PER_QUERY])

    def _first(self, entity_type: EntityType, count: int) -> list[_Read]:
        projection = {"_id": True, entity_type.natural_key: True}
        pages = self._pages(entity_type, _FIRST, _NO_END, projection=projection)
        return list(islice(chain.from_iterable(pages), count))

    def _starts(self, entity_type: EntityType, sizes: Sequence[int]) -> tuple[list[Any], list[int]]:
        """Return the first `_id` of each of the batches of these sizes, and their sizes.

        A batch whose first document can't be its start, or that has none, is not among them.
        """
        starts, held = [_FIRST], [sizes[0]]
        for size in sizes[1:]:
            first = self._page(
                entity_type, starts[-1], skip=held[-1], limit=1, projection={"_id": True}
            )
            if not first:
                break
            if _is_place(first[0]):
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
    ) -> Iterator[Sequence[_Read]]:
        """Read documents in `_id` order, each page by a query of its own.

        So no cursor expires while a page is sent, and a MongoDB that was restarted goes on.
        """
        skip = 0
        while page := self._page(
            entity_type, start, end, skip=skip, match=match, projection=projection
        ):
            yield page
            for since, read in enumerate(reversed(page), 1):
                if _is_place(read):
                    start, skip = read["_id"], since
                    break
            else:
                skip += len(page)
        if isinstance(end, MaxKey) and (
            last := self._page(entity_type, _NO_END, skip=0, match=match, projection=projection)
        ):
            yield last

    @patiently
    def _page(
        self,
        entity_type: EntityType,
        start: Any,
        end: Any = _NO_END,
        *,
        skip: int,
        limit: int = _PAGE,
        match: Document | None = None,
        projection: Mapping[str, bool] | None = None,
    ) -> Sequence[_Read]:
        """Read documents from `start` on, as many as MongoDB gives at once: `limit` or 16 MiB."""
        collection = self._database.get_collection(entity_type.collection, codec_options=CODEC)
        query: Document = {"projection": projection, "skip": skip, "limit": -limit}
        if isinstance(start, MaxKey):
            query["filter"] = {**(match or {}), "_id": start}
        else:
            # Index bounds, and not $gte and $lt, which match only values of the same BSON type.
            # They never reach MaxKey itself.
            upper = None if isinstance(end, MaxKey) else {"_id": end}
            query |= {
                "filter": match or {},
                "hint": [("_id", 1)],
                "min": {"_id": start},
                "max": upper,
            }
        with suppress(BSONError):
            documents = list(collection.find(**query))
            if all(_is_plain(document["_id"]) for document in documents):
                return documents
        content = b"".join(cast(Iterable[bytes], collection.find_raw_batches(**query)))
        return [_read(bytes(document.raw)) for document in bson.decode_all(content, _RAW)]

    @patiently
    def _repeated_keys(self, entity_type: EntityType) -> list[str]:
        collection = self._database.get_collection(entity_type.collection, codec_options=_LENIENT)
        groups = collection.aggregate(
            [
                {"$group": {"_id": _key_expression(entity_type), "copies": {"$sum": 1}}},
                {"$match": {"copies": {"$gt": 1}, "_id": {"$ne": None}}},
            ],
            allowDiskUse=True,
        )
        return [group["_id"] for group in groups if _is_key(group["_id"])]

    def _losers(self, entity_type: EntityType, keys: list[str]) -> Iterator[Item | InvalidItem]:
        rivals: defaultdict[str, list[Item | InvalidItem]] = defaultdict(list)
        repeated = {"$expr": {"$in": [_key_expression(entity_type), {"$literal": keys}]}}
        for page in self._pages(entity_type, _FIRST, _NO_END, match=repeated):
            for read in page:
                item = _item_of(entity_type, read)
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
            raise _Unsendable(f"{entity_type.natural_key}: {_NO_KEY}")
        version = _version(document.get("version"))
        body = entity_type.body(_business_fields(entity_type, document, natural_key))
    except ValidationError as error:
        fault = _faults_in_words(error)
    except _Unsendable as error:
        fault = in_one_line(str(error), _FAULT_LENGTH)
    else:
        told = _effective_version(version, document.get("updated_at"), body)
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
    version, updated_at = document.get("version"), document.get("updated_at")
    if type(version) is int or (version is None and isinstance(updated_at, datetime | DatetimeMS)):
        told = _effective_version(version, updated_at, {})
        return request_id(entity_type.name, natural_key, told)
    item = item_from(entity_type, document)
    return item.request_id if isinstance(item, Item) else None


def _is_plain(source_id: Any) -> bool:
    """Whether an `_id` is surely handed back as it is; a quick look."""
    match source_id:
        case str() if type(source_id) is str:
            return len(source_id) <= _KEY_LENGTH and source_id.isascii()
        case bytes():
            return len(source_id) <= _KEY_LENGTH
        case _:
            return type(source_id) in _PLAIN


def _read(raw: bytes) -> _Read:
    """Read a document from its BSON."""
    try:
        document: Document = bson.decode(raw, CODEC)
    except BSONError:
        return _unsound(raw, _legible(raw), "it has text that is not UTF-8, or is no sound BSON")
    source_id = identity(document["_id"])
    if len(source_id) > _ID_BYTES:
        return _unsound(raw, document, f"_id: longer than {_ID_BYTES} bytes")
    # The `_id` comes first in what MongoDB stores and returns.
    if not raw.startswith(source_id[_LENGTH_BYTES:-1], _LENGTH_BYTES):
        return _unsound(raw, document, "_id: has a name twice, or an old type")
    return document


def _legible(raw: bytes) -> Document:
    try:
        return bson.decode(raw, _LENIENT)
    except BSONError:
        return {}


def _unsound(raw: bytes, legible: Document, fault: str) -> _Unsound:
    return _Unsound(f"sha256:{hashlib.sha256(raw).hexdigest()}", legible, fault)


def _is_place(read: _Read) -> TypeGuard[Document]:
    """Whether MongoDB can be asked for what comes from this document on."""
    return isinstance(read, dict) and not isinstance(read["_id"], MaxKey)


def _item_of(entity_type: EntityType, read: _Read) -> Item | InvalidItem:
    if isinstance(read, dict):
        return item_from(entity_type, read)
    natural_key = _natural_key(entity_type, read.legible)
    return InvalidItem(entity_type, read.source_id, natural_key, None, read.fault)


def _request_id_of(entity_type: EntityType, read: _Read) -> str | None:
    return request_id_of(entity_type, read) if isinstance(read, dict) else None


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
    bounds = [_FIRST, *starts[1:], _NO_END]
    return [
        Batch(entity_type.name, label, start, end, size)
        for label, start, end, size in zip(labels, bounds, bounds[1:], sizes, strict=False)
    ]


def _batches_of_one(entity_type: EntityType, first: Sequence[_Read]) -> list[Batch]:
    """Make each document a batch; one that can't be the start of a batch goes with that before."""
    starts: list[Any] = []
    labels: list[str] = []
    sizes: list[int] = []
    for read in first:
        if starts and not _is_place(read):
            sizes[-1] += 1
            continue
        item = _item_of(entity_type, read)
        starts.append(item.source_id)
        labels.append(label_of(item.natural_key, item.source_id))
        sizes.append(1)
    return _ranges(entity_type, starts, labels, sizes)


def _key_expression(entity_type: EntityType) -> Document:
    field = f"${entity_type.natural_key}"
    value = {"$ifNull": ["$id", "$_id"]} if entity_type.natural_key == "id" else field
    text = {"$convert": {"input": value, "to": "string", "onError": None, "onNull": None}}
    length = {"$strLenBytes": {"$ifNull": ["$$key", ""]}}
    longest = _KEY_LENGTH * _BYTES_PER_CHARACTER
    short = {"$cond": [{"$lte": [length, longest]}, "$$key", None]}
    return {"$let": {"vars": {"key": text}, "in": short}}


def _natural_key(entity_type: EntityType, document: Document) -> str | None:
    value = document.get(entity_type.natural_key)
    if value is None and entity_type.natural_key == "id":
        source_id = document.get("_id")
        value = source_id if isinstance(source_id, ObjectId) else None
    if isinstance(value, ObjectId):
        return str(value)
    return value if type(value) is str and _is_key(value) else None


def _is_key(text: str) -> bool:
    return 0 < len(text) <= _KEY_LENGTH and _is_unicode(text)


def _is_unicode(text: str) -> bool:
    """Whether a string has no lone surrogates: it was UTF-8 in MongoDB."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _version(value: Any) -> int | None:
    if value is None:
        return None
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not is_whole or isinstance(value, bool) or int(value) not in _INT64:
        raise _Unsendable("version: not an integer")
    return int(value)


def _effective_version(version: int | None, updated_at: Any, body: Mapping[str, Any]) -> int | str:
    if version is None and isinstance(updated_at, DatetimeMS):
        return int(updated_at)
    moment = updated_at if isinstance(updated_at, datetime) else None
    return effective_version(version, moment, body)


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
        case None | bool():
            return value
        case str() if not isinstance(value, Code):
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
    return in_one_line("; ".join(faults[:_FAULTS_TOLD]), _FAULT_LENGTH) + more


_NO_KEY: Final = f"the natural key is missing, or not a text of at most {_KEY_LENGTH} characters"
_BYTES_PER_CHARACTER: Final = 4
_LENGTH_BYTES: Final = 4
"""A BSON document begins with its length, and ends with a zero."""
