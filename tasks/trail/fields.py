"""Types that the parts of the trail share."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, TypeVar

from bson import ObjectId, json_util
from bson.errors import InvalidId
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

from tasks.errors import ItemError


class Record(BaseModel):
    """A document of the trail, or a part of one; fields that it has besides these are left out.

    Fields with `exclude=True` are stored, and not shown.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


RecordType = TypeVar("RecordType", bound=Record)


class ForeignDocument(Record):
    """A document of another shape than ours, shown as it is."""

    id: "Text" = Field(validation_alias="_id", examples=["507f1f77bcf86cd799439014"])
    document: str = Field(examples=['{"note": "somebody was here"}'])
    """All of it, as MongoDB's extended JSON."""


def readable(record_type: type[RecordType], document: dict[str, Any]) -> RecordType | None:
    """Return a document as a record; None for one of another shape."""
    try:
        return record_type.model_validate(document)
    except ValidationError:
        return None


def shown(record_type: type[RecordType], document: dict[str, Any]) -> RecordType | ForeignDocument:
    """Return a document as a record, or as what it is."""
    return readable(record_type, document) or ForeignDocument.model_validate(
        {"_id": document["_id"], "document": json_util.dumps(document)}
    )


def stored(record: Record) -> dict[str, Any]:
    """Return a record as it is stored: with the fields that are not shown."""
    document = record.model_dump(by_alias=True)
    for name in _hidden_fields(type(record)):
        document[name] = getattr(record, name)
    return document


def stored_error(error: ItemError | None) -> dict[str, str] | None:
    """Return an error as it is stored; None for none."""
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "class": error.error_class}


@cache
def _hidden_fields(record_type: type[Record]) -> tuple[str, ...]:
    return tuple(name for name, field in record_type.model_fields.items() if field.exclude)


def _object_id(text: object) -> ObjectId:
    if isinstance(text, ObjectId):
        return text
    try:
        return ObjectId(text)  # type: ignore[arg-type]
    except (InvalidId, TypeError):
        raise ValueError("not a run_id (24 hex digits)") from None


def _in_milliseconds(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


RunId = ObjectId
"""Key of a run in `sync_runs`."""
RunKey = Annotated[
    InstanceOf[RunId],
    BeforeValidator(_object_id),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-fA-F]{24}$"}, mode="validation"),
]
"""A `run_id`; as text, 24 hex digits."""
UtcTime = Annotated[datetime, PlainSerializer(_in_milliseconds, when_used="json")]
"""A time, in JSON as the seed document writes it: `2024-01-01T00:00:00.000Z`."""
Text = Annotated[Any, PlainSerializer(str, return_type=str, when_used="json")]
"""A value of any BSON type, shown as text."""


@dataclass(frozen=True)
class RunAttempt:
    """One execution of a run: a flow run that is retried goes on in the same run, as its next."""

    run_id: RunId
    number: int

    def as_match(self) -> dict[str, Any]:
        """Match the run as long as no later attempt has begun."""
        return {"_id": self.run_id, "attempt": self.number}
