"""From a source document to what is sent of it, or to the reason why it can't be sent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from bson import Code, DatetimeMS, Decimal128, ObjectId
from pydantic import ValidationError

from tasks.entities import EntityType, in_one_line
from tasks.mongo import Document
from tasks.source.raw_document import SourceDocument, UnreadableDocument
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
KEY_LENGTH: Final = 1_024
"""Most characters of a natural key."""

_INT64: Final = range(-(2**63), 2**63)
_FAULTS_TOLD: Final = 5
_FAULT_LENGTH: Final = 500
_NO_KEY: Final = f"the natural key is missing, or not a text of at most {KEY_LENGTH} characters"


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
class Unchanged:
    """A source document whose request id Stage 1 has confirmed: nothing is new in it."""

    source_id: Any


Found: TypeAlias = Item | InvalidItem | Unchanged
"""A source document as a batch reads it."""


class _Unsendable(ValueError):
    """A value of the document has no place in a request."""


def item_from(entity_type: EntityType, document: SourceDocument) -> Item | InvalidItem:
    """Turn a source document into what is sent of it, or into the reason why it can't be."""
    if isinstance(document, UnreadableDocument):
        natural_key = _natural_key(entity_type, document.legible)
        return InvalidItem(entity_type, document.source_id, natural_key, None, document.fault)
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


def request_id_of(entity_type: EntityType, document: SourceDocument) -> str | None:
    """Return the request id of a document; None where it can't be sent.

    Cheap where the document has a version or a time: the rest of it is then not looked at.
    """
    if isinstance(document, UnreadableDocument):
        return None
    natural_key = _natural_key(entity_type, document)
    if natural_key is None:
        return None
    version, updated_at = document.get("version"), document.get("updated_at")
    if type(version) is int or (version is None and isinstance(updated_at, datetime | DatetimeMS)):
        told = _effective_version(version, updated_at, {})
        return request_id(entity_type.name, natural_key, told)
    item = item_from(entity_type, document)
    return item.request_id if isinstance(item, Item) else None


def superseded(rivals: Sequence[Item | InvalidItem]) -> list[Item | InvalidItem]:
    """Return which of the items of one natural key are not sent: all but the highest version.

    A number counts as higher than a hash, and that as higher than no version. Of equal versions
    the first item is sent.
    """
    winner = max(rivals, key=_version_rank)
    return [item for item in rivals if item is not winner]


def is_natural_key(text: str) -> bool:
    """Return whether a text can be a natural key: not empty, not too long, and Unicode."""
    return 0 < len(text) <= KEY_LENGTH and _is_unicode(text)


def _version_rank(item: Item | InvalidItem) -> tuple[int, int]:
    if isinstance(item.version, int):
        return 2, item.version
    return (0, 0) if item.version is None else (1, 0)


def _natural_key(entity_type: EntityType, document: Document) -> str | None:
    value = document.get(entity_type.natural_key)
    if value is None and entity_type.natural_key == "id":
        source_id = document.get("_id")
        value = source_id if isinstance(source_id, ObjectId) else None
    if isinstance(value, ObjectId):
        return str(value)
    return value if type(value) is str and is_natural_key(value) else None


def _is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates: it was UTF-8 in MongoDB."""
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
