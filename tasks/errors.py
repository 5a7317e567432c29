"""Error codes and their classes: what is retried, what fails one item, what stops the run."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated_dataclass


class ErrorClass(StrEnum):
    """Meaning of a failure for the item and for the run (the table of the Stage 1 contract)."""

    TRANSIENT = "transient"
    """Tried again, at most `ADMIN_RETRY_MAX` times."""
    PERMANENT = "permanent"
    """Never tried again: this item is failed and the stage goes on."""
    RUN_STOPPING = "run_stopping"
    """True of every item: nothing more is sent in this run."""
    SKIPPED = "skipped"
    """Not sent at all, for a reason that lies outside the item."""


@validated_dataclass(frozen=True, config=ConfigDict(populate_by_name=True))
class ItemError:
    """Reason why an item is not in Stage 1; `message` is free of secrets."""

    code: str
    message: str
    error_class: ErrorClass = Field(alias="class")


_MOST_URGENT_FIRST: Final = (
    ErrorClass.RUN_STOPPING,
    ErrorClass.PERMANENT,
    ErrorClass.TRANSIENT,
    ErrorClass.SKIPPED,
)


def urgency(error: ItemError | None) -> int:
    """Return the rank of an error in lists: the lower, the more it needs a person.

    The next run may mend what is transient or was skipped. What is not known comes first.
    """
    return _MOST_URGENT_FIRST.index(error.error_class) if error else 0


TIMEOUT: Final = "TIMEOUT"
CONNECTION_ERROR: Final = "CONNECTION_ERROR"
SERVER_ERROR: Final = "SERVER_ERROR"
TEMPORARY_UNAVAILABLE: Final = "TEMPORARY_UNAVAILABLE"
NOT_FOUND: Final = "NOT_FOUND"
VALIDATION_ERROR: Final = "VALIDATION_ERROR"
UNEXPECTED_RESPONSE: Final = "UNEXPECTED_RESPONSE"
INVALID_TOKEN: Final = "INVALID_TOKEN"
MISSING_AUTH: Final = "MISSING_AUTH"

DUPLICATE_KEY: Final = "DUPLICATE_KEY"
"""Another document of the same natural key has a higher version."""
SUPERSEDED: Final = "SUPERSEDED"
"""Not sent, because the document is deleted and another one has its natural key."""
VERSION_NOT_RAISED: Final = "VERSION_NOT_RAISED"
"""Sent, but Stage 1 has other content under the same request id, and takes it for a repeat."""
VERSION_REUSED: Final = "VERSION_REUSED"
"""Sent, but under a request id that Stage 1 had before its last one: it takes it for a repeat."""
GONE_TOO_MANY: Final = "GONE_TOO_MANY"
"""So many items are gone from the source that none of them was disabled."""
WOULD_SEND: Final = "WOULD_SEND"
"""Not sent, because it is a dry run."""
INTERNAL_ERROR: Final = "INTERNAL_ERROR"
"""Our own code failed before the item's outcome was known."""
PARENT_FAILED: Final = "PARENT_FAILED"
"""Not sent, because the item that it refers to failed in this run."""
RUN_STOPPED: Final = "RUN_STOPPED"
"""Not sent, because the run had been stopped."""
HUB_UNAVAILABLE: Final = "HUB_UNAVAILABLE"
"""Not sent, because the endpoint of its type stayed down."""


@dataclass(frozen=True)
class StopReason:
    """Why a run or a stage sends nothing more; `code` is that of the items that it skips."""

    message: str
    code: str = RUN_STOPPED


class LeaveReason(StopReason):
    """Why a process has to leave a run as it is: it goes on, or has ended, elsewhere or later."""


RUN_FORGOTTEN: Final = StopReason("its document in sync_runs is gone")
RUN_CANCELLED: Final = StopReason("the run was cancelled")
FLOW_RUN_DELETED: Final = LeaveReason("its flow run was deleted in Prefect")
RUN_SUSPENDED: Final = LeaveReason("the run is suspended")
RUN_TAKEN_OVER: Final = LeaveReason("the run has begun anew in another process")
RUN_ENDED: Final = LeaveReason("the run has ended elsewhere")


CLASS_BY_CODE: Final[dict[str, ErrorClass]] = {
    TIMEOUT: ErrorClass.TRANSIENT,
    CONNECTION_ERROR: ErrorClass.TRANSIENT,
    SERVER_ERROR: ErrorClass.TRANSIENT,
    TEMPORARY_UNAVAILABLE: ErrorClass.TRANSIENT,
    NOT_FOUND: ErrorClass.PERMANENT,
    VALIDATION_ERROR: ErrorClass.PERMANENT,
    UNEXPECTED_RESPONSE: ErrorClass.PERMANENT,
    INVALID_TOKEN: ErrorClass.RUN_STOPPING,
    MISSING_AUTH: ErrorClass.RUN_STOPPING,
}
"""The codes that Stage 1 and the HTTP client are known to give."""

_ABOUT_THE_CALLER: Final = frozenset({401, 403})
_NOT_NOW: Final = frozenset({408, 425, 429})


def classify(http_status: int, body_code: str | None) -> tuple[str, ErrorClass]:
    """Name and class a refusal by Stage 1, as far as one answer tells.

    A known code in the body wins over the HTTP status; an unknown one counts only where
    the status itself is no error. Source: the table "Which errors are what" of the contract.

    Args:
        http_status: status of the response.
        body_code: `error.code` of the body, None where the body carries none.
    """
    if body_code in CLASS_BY_CODE:
        return body_code, CLASS_BY_CODE[body_code]
    if http_status >= 500:
        return SERVER_ERROR, ErrorClass.TRANSIENT
    if http_status in _ABOUT_THE_CALLER:
        return f"HTTP_{http_status}", ErrorClass.RUN_STOPPING
    if http_status in _NOT_NOW:
        return f"HTTP_{http_status}", ErrorClass.TRANSIENT
    if http_status >= 400:
        return f"HTTP_{http_status}", ErrorClass.PERMANENT
    return body_code or UNEXPECTED_RESPONSE, ErrorClass.PERMANENT
