"""From a source document to what is sent of it, or to the reason why it can't be sent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, TypeAlias

from bson import Code, Decimal128, ObjectId
from pydantic import ValidationError

from tasks.entities import EntityType, in_one_line
from tasks.mongo import Document
from tasks.source.bookkeeping import (
    BOOKKEEPING,
    KEY_LENGTH,
    Unsendable,
    changed_at,
    is_deleted,
    natural_key_of,
    version_of,
)
from tasks.source.raw_document import SourceDocument, UnreadableDocument
from tasks.source.request_id import digest_of

_FAULTS_TOLD: Final = 5
_FAULT_LENGTH: Final = 500
_NO_KEY: Final = f"the natural key is missing, or not a text of at most {KEY_LENGTH} characters"


@dataclass(frozen=True)
class Item:
    """A source document that can be sent; `body` is what Stage 1 gets of it.

    `version` is its version, or the time of its last change; None where its content decides. The
    document of one that `is_gone` is there no more.
    """

    entity_type: EntityType
    source_id: Any
    natural_key: str
    version: int | str | None
    body: dict[str, Any]
    is_gone: bool = False

    @cached_property
    def digest(self) -> str:
        """Digest of the body."""
        return digest_of(self.body)


@dataclass(frozen=True)
class InvalidItem:
    """A source document that can't be sent; `fault` says why without quoting its values."""

    entity_type: EntityType
    source_id: Any
    natural_key: str | None
    version: int | None
    fault: str


@dataclass(frozen=True)
class DeletedRemnant:
    """A deleted source document whose other fields don't fit its model; `fields` are those that do.

    What Stage 1 has confirmed of it makes up for the rest.
    """

    entity_type: EntityType
    source_id: Any
    natural_key: str
    version: int | None
    fields: dict[str, Any]

    def completed(self, confirmed: Mapping[str, Any]) -> Item:
        """Return the item to send, given the body that Stage 1 has confirmed; {} for none."""
        key = {self.entity_type.natural_key: self.natural_key, "enabled": False}
        body = {**confirmed, **self.fields, **key}
        return Item(self.entity_type, self.source_id, self.natural_key, self.version, body)


Found: TypeAlias = Item | InvalidItem | DeletedRemnant
"""A source document as a batch reads it."""


def item_from(entity_type: EntityType, document: SourceDocument, now: int) -> Found:
    """Turn a source document into what is sent of it at `now`, or into the reason why it can't be.

    Args:
        entity_type: the type that the document is of.
        document: the document.
        now: the time, in epoch milliseconds; a deletion to come is none.
    """
    if isinstance(document, UnreadableDocument):
        natural_key = natural_key_of(entity_type, document.legible)
        return InvalidItem(entity_type, document.source_id, natural_key, None, document.fault)
    natural_key = natural_key_of(entity_type, document)
    source_id = document["_id"]
    version: int | None = None
    try:
        if natural_key is None:
            raise Unsendable(f"{entity_type.natural_key}: {_NO_KEY}")
        if is_deleted(document, now):
            return _deleted(entity_type, document, natural_key)
        version = version_of(document)
        fields = _business_fields(document)
        fields[entity_type.natural_key] = natural_key
        body = entity_type.body(fields)
    except ValidationError as error:
        fault = _faults_in_words(error)
    except Unsendable as error:
        fault = in_one_line(str(error), _FAULT_LENGTH)
    else:
        return Item(entity_type, source_id, natural_key, version, body)
    return InvalidItem(entity_type, source_id, natural_key, version, fault)


def _deleted(
    entity_type: EntityType, document: Document, natural_key: str
) -> Item | DeletedRemnant:
    """Return what is sent of a deleted document; whatever else it holds, it can be."""
    try:
        version = version_of(document)
    except Unsendable:
        version = changed_at(document)
    fields, unfit = _sendable_fields(document)
    fields |= {entity_type.natural_key: natural_key, "enabled": False}
    unfit -= fields.keys()
    try:
        body = entity_type.body(fields)
    except ValidationError as error:
        unfit |= {str(fault["loc"][0]) for fault in error.errors()}
    if unfit:
        fit = {name: value for name, value in fields.items() if name not in unfit}
        return DeletedRemnant(entity_type, document["_id"], natural_key, version, fit)
    return Item(entity_type, document["_id"], natural_key, version, body)


def _business_fields(document: Document) -> dict[str, Any]:
    return {
        name: _as_json(value, name) for name, value in document.items() if name not in BOOKKEEPING
    }


def _sendable_fields(document: Document) -> tuple[dict[str, Any], set[str]]:
    """Return the business fields that have a place in a request, and the names of the others."""
    fields: dict[str, Any] = {}
    unfit: set[str] = set()
    for name, value in document.items():
        if name not in BOOKKEEPING:
            try:
                fields[name] = _as_json(value, name)
            except Unsendable:
                unfit.add(name)
    return fields, unfit


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
            raise Unsendable(f"{path}: a {type(value).__name__} can't be sent as JSON")


def _faults_in_words(error: ValidationError) -> str:
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    more = f"; and {len(faults) - _FAULTS_TOLD} more" if len(faults) > _FAULTS_TOLD else ""
    return in_one_line("; ".join(faults[:_FAULTS_TOLD]), _FAULT_LENGTH) + more
