"""From an answer of Stage 1 to the outcome of the upsert."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from tasks.errors import HTTP_OK, UNEXPECTED_RESPONSE, ErrorClass, ItemError, classify
from tasks.hub.redaction import cleaned

_LONGEST_BODY: Final = 1 << 20
_LONGEST_PAUSE_SECONDS: Final = 365 * 86_400.0


@dataclass(frozen=True)
class Answer:
    """An HTTP response of Stage 1; `body` is cut a bit beyond 1 MiB if it is longer."""

    status: int
    retry_after: str | None
    body: bytes


@dataclass(frozen=True)
class UpsertOutcome:
    """The result of one request: no `error` means that Stage 1 confirmed the item.

    `http_status` is None where no response came. `retry_after_seconds` is what Stage 1 asked for.
    `is_refusal` tells that Stage 1 itself said no for good: it surely has not taken the item.
    """

    error: ItemError | None
    http_status: int | None
    sync_id: str | None
    duration_ms: float
    retry_after_seconds: float | None = None
    is_refusal: bool = False


def answer_from(
    status: int, headers: Sequence[tuple[bytes, bytes]], body: Iterable[bytes]
) -> Answer:
    """Read the answer from an HTTP response; of its body no more than the limit and a bit."""
    retry_after = [value for name, value in headers if name.lower() == b"retry-after"]
    return Answer(
        status,
        b", ".join(retry_after).decode("latin-1") if retry_after else None,
        _start_of(body),
    )


def outcome_of(answer: Answer, duration_ms: float, secrets: Sequence[str]) -> UpsertOutcome:
    """Classify an answer; no text of the outcome holds one of the secrets."""
    content = _json_object(answer.body)
    if answer.status == HTTP_OK and content.get("ok") is True:
        sync_id = cleaned(content.get("sync_id"), secrets) or None
        return UpsertOutcome(None, HTTP_OK, sync_id, duration_ms)
    error = _error_in(answer, content, secrets)
    is_transient = error.error_class is ErrorClass.TRANSIENT
    pause = retry_after_seconds(answer.retry_after) if is_transient else None
    is_refusal = bool(_refusal(content)) and not is_transient
    return UpsertOutcome(error, answer.status, None, duration_ms, pause, is_refusal)


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header, seconds or an HTTP date (RFC 9110, section 10.2.3).

    Returns seconds from `now`, at least 0 and at most a year; 0 for a header that can't be read,
    None for none.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdecimal():
        seconds = float(text)
    else:
        seconds = _seconds_until(text, now or datetime.now(UTC))
    return min(max(0.0, seconds), _LONGEST_PAUSE_SECONDS)


def _seconds_until(http_date: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(http_date)
    except (ValueError, OverflowError):
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - now).total_seconds()


def _start_of(body: Iterable[bytes]) -> bytes:
    received = bytearray()
    for part in body:
        received += part
        if len(received) > _LONGEST_BODY:
            break
    return bytes(received)


def _json_object(body: bytes) -> dict[str, Any]:
    if len(body) > _LONGEST_BODY:
        return {}
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _error_in(answer: Answer, content: dict[str, Any], secrets: Sequence[str]) -> ItemError:
    refusal = _refusal(content)
    body_code = refusal.get("code")
    code, error_class = classify(
        answer.status,
        body_code if isinstance(body_code, str) else None,
        has_retry_after=answer.retry_after is not None,
    )
    message = cleaned(refusal.get("message"), secrets) or _what_is_wrong(answer, content)
    return ItemError(cleaned(code, secrets) or UNEXPECTED_RESPONSE, message, error_class)


def _refusal(content: dict[str, Any]) -> dict[str, Any]:
    error = content.get("error")
    return error if content.get("ok") is False and isinstance(error, dict) else {}


def _what_is_wrong(answer: Answer, content: dict[str, Any]) -> str:
    if content:
        return f"HTTP {answer.status} without an error message"
    if len(answer.body) > _LONGEST_BODY:
        return f"HTTP {answer.status} with a body over 1 MiB"
    return f"HTTP {answer.status} with a body that is no JSON object"
