"""Bookkeeping: what a source document says of itself - its key, version, last change, deletion."""

import math
from datetime import UTC, datetime
from typing import Any, Final

from bson import DatetimeMS, ObjectId

from tasks.entities import EntityType
from tasks.mongo import Document

DELETION_TIMES: Final = ("deleted_at", "deletedAt")
"""Fields that hold when a document was deleted."""
DELETION_FLAGS: Final = ("deleted", "isDeleted", "is_deleted")
"""Fields that are true of a deleted document."""
_DELETION: Final = frozenset({*DELETION_TIMES, *DELETION_FLAGS})
CHANGE_TIMES: Final = ("updated_at", "updatedAt")
"""Fields that hold when a document was changed last."""
BOOKKEEPING: Final = frozenset(
    {
        *("_id", "__v", "version", "created_at", "createdAt", "last_sync"),
        *CHANGE_TIMES,
        *DELETION_TIMES,
        *DELETION_FLAGS,
    }
)
"""Fields of a source document that are never sent."""
KEY_LENGTH: Final = 1_024
"""Most characters of a natural key."""

_INT64: Final = range(-(2**63), 2**63)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Unsendable(ValueError):
    """A value of a document can't be read, or has no place in a request."""


def natural_key_of(entity_type: EntityType, document: Document) -> str | None:
    """Return the natural key of a document; None where it has none."""
    value = document.get(entity_type.natural_key)
    if value is None and entity_type.natural_key == "id":
        source_id = document.get("_id")
        value = source_id if isinstance(source_id, ObjectId) else None
    if isinstance(value, ObjectId):
        return str(value)
    return value if type(value) is str and is_natural_key(value) else None


def is_natural_key(text: str) -> bool:
    """Return whether a text can be a natural key: not empty, not too long, and Unicode."""
    return 0 < len(text) <= KEY_LENGTH and _is_unicode(text)


def version_of(document: Document) -> int | None:
    """Return the version of a document: its `version`, else when it was changed last.

    None where it has neither.

    Raises:
        Unsendable: `version` is no integer.
    """
    version = stated_version(document)
    return changed_at(document) if version is None else version


def stated_version(document: Document) -> int | None:
    """Return the `version` of a document; None where it has none.

    Raises:
        Unsendable: it is no integer.
    """
    version = document.get("version")
    if version is None:
        return None
    is_whole = isinstance(version, int) or (isinstance(version, float) and version.is_integer())
    if not is_whole or isinstance(version, bool) or int(version) not in _INT64:
        raise Unsendable("version: not an integer")
    return int(version)


def changed_at(document: Document) -> int | None:
    """Return when a document was changed last, in epoch milliseconds; None where it says nothing.

    A date, a number of milliseconds and ISO 8601 text count; a text without an offset is UTC.
    """
    for name in CHANGE_TIMES:
        if (value := document.get(name)) and (moment := _epoch_milliseconds(value)) is not None:
            return moment
    return None


def is_deleted(document: Document, now: int) -> bool:
    """Return whether a document is deleted at `now`, in epoch milliseconds.

    Source of the rules: "Source collections" of the Stage 1 contract.

    Raises:
        Unsendable: a field about it says neither yes nor no.
    """
    if _DELETION.isdisjoint(document):
        return False
    return any(_is_set(document, name) for name in DELETION_FLAGS) or any(
        _is_past(document, name, now) for name in DELETION_TIMES
    )


def _is_set(document: Document, flag: str) -> bool:
    value = document.get(flag)
    if value is True or _is_blank(value):
        return value is True
    raise Unsendable(f"{flag}: neither true nor false")


def _is_past(document: Document, name: str, now: int) -> bool:
    value = document.get(name)
    if _is_blank(value):
        return False
    moment = _epoch_milliseconds(value)
    if moment is None:
        raise Unsendable(f"{name}: not a time")
    return moment <= now


def _is_blank(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | int | float) and not value)


def _epoch_milliseconds(value: Any) -> int | None:
    match value:
        case bool():
            return None
        case int() | DatetimeMS():
            return int(value) if int(value) in _INT64 else None
        case float():
            return _epoch_milliseconds(int(value)) if math.isfinite(value) else None
        case datetime():
            return _milliseconds_since_epoch(value)
        case str():
            try:
                return _milliseconds_since_epoch(datetime.fromisoformat(value))
            except ValueError:
                return None
        case _:
            return None


def _milliseconds_since_epoch(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since_epoch = aware - _EPOCH
    return (
        since_epoch.days * 86_400_000
        + since_epoch.seconds * 1000
        + since_epoch.microseconds // 1000
    )


def _is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates: it was UTF-8 in MongoDB."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
