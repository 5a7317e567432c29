"""StepCursor: a place in the list of a run's steps, as text that a client hands back."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Self

from bson import ObjectId

CURSOR_PATTERN: Final = "^[0-9]{1,13}-[0-9a-f]{24}$"
_MILLISECOND: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class StepCursor(NamedTuple):
    """The step after which a page begins: when it was made, and its `_id`."""

    created_at: datetime
    step_id: ObjectId

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self | None:
        """Return the place of a document of `sync_steps`; None where it is none of ours."""
        created_at, step_id = document.get("created_at"), document["_id"]
        if isinstance(created_at, datetime) and isinstance(step_id, ObjectId):
            return cls(created_at, step_id)
        return None

    @classmethod
    def parsed(cls, text: str) -> Self:
        """Return the place that a text of `CURSOR_PATTERN` names."""
        milliseconds, _, step_id = text.partition("-")
        return cls(_EPOCH + int(milliseconds) * _MILLISECOND, ObjectId(step_id))

    def __str__(self) -> str:
        return f"{(self.created_at - _EPOCH) // _MILLISECOND}-{self.step_id}"

    def as_document(self) -> dict[str, Any]:
        """Return what the order of the list needs of the step."""
        return {"created_at": self.created_at, "_id": self.step_id}
