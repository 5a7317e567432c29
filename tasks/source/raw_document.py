"""Source documents as MongoDB holds them, those included that PyMongo can't read as they stand."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

import bson
from bson import Int64, ObjectId
from bson.errors import BSONError

from tasks.mongo import CODEC, Document, identity

LENIENT_CODEC: Final = CODEC.with_options(unicode_decode_error_handler="surrogateescape")
"""Reads bytes that are not UTF-8 as lone surrogates."""

_ID_BYTES: Final = 2_048
"""Most bytes of an `_id` that a range can start at and a step can hold."""
_SURE_LENGTH: Final = 1_024
"""An ASCII text or bytes of this length are well within `_ID_BYTES`."""
_SURE_TYPES: Final = frozenset({ObjectId, int, Int64, float, datetime})
_LENGTH_BYTES: Final = 4
"""A BSON document begins with its length, and ends with a zero."""
_ID_NAME: Final = b"_id\0"
"""The name of an element comes after the byte of its type."""


@dataclass(frozen=True)
class UnreadableDocument:
    """A source document that PyMongo can't read, or whose `_id` it can't hand back unchanged.

    `source_id` stands in for the `_id`: a hash of the document. `legible` is what can be read.
    """

    source_id: str
    legible: Document
    fault: str


SourceDocument: TypeAlias = Document | UnreadableDocument


def legible(document: SourceDocument) -> Document:
    """Return a document as far as it can be read."""
    return document.legible if isinstance(document, UnreadableDocument) else document


def source_id_of(document: SourceDocument) -> Any:
    """Return the `_id` of a document, or what stands in for it."""
    return document.source_id if isinstance(document, UnreadableDocument) else document["_id"]


def survives_reading(source_id: Any) -> bool:
    """Return whether PyMongo surely hands this `_id` back unchanged; a quick look.

    False means only that the raw document has to be looked at.
    """
    match source_id:
        case str() if type(source_id) is str:
            return len(source_id) <= _SURE_LENGTH and source_id.isascii()
        case bytes():
            return len(source_id) <= _SURE_LENGTH
        case _:
            return type(source_id) in _SURE_TYPES


def document_from(raw: bytes) -> SourceDocument:
    """Read a document from its BSON, as far as that is possible."""
    try:
        document: Document = bson.decode(raw, CODEC)
    except BSONError:
        fault = "it has text that is not UTF-8, or is no sound BSON"
        return _unreadable(raw, _read_leniently(raw), fault)
    # A view may leave it out, and make it what no range can begin with.
    if "_id" not in document or isinstance(document["_id"], list):
        return _unreadable(raw, document, "_id: missing, or a list")
    source_id = identity(document["_id"])
    if len(source_id) > _ID_BYTES:
        return _unreadable(raw, document, f"_id: longer than {_ID_BYTES} bytes")
    if not _holds(raw, source_id[_LENGTH_BYTES:-1]):
        return _unreadable(raw, document, "_id: has a name twice, or an old type")
    return document


def _holds(raw: bytes, source_id: bytes) -> bool:
    """Return whether a document holds this `_id`; but for a view, that comes first."""
    if raw.startswith(_ID_NAME, _LENGTH_BYTES + 1):
        return raw.startswith(source_id, _LENGTH_BYTES)
    return source_id in raw


def _read_leniently(raw: bytes) -> Document:
    try:
        return bson.decode(raw, LENIENT_CODEC)
    except BSONError:
        return {}


def _unreadable(raw: bytes, legible: Document, fault: str) -> UnreadableDocument:
    return UnreadableDocument(f"sha256:{hashlib.sha256(raw).hexdigest()}", legible, fault)
