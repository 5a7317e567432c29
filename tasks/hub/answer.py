"""From an answer of Stage 1 to the outcome of the upsert."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

from tasks.errors import UNEXPECTED_RESPONSE, ErrorClass, ItemError, classify
from tasks.hub.body import LONGEST_BODY, UnknownCoding, body_of
from tasks.hub.reason import json_object, reason_in
from tasks.redaction import Redaction

_LONGEST_PAUSE_SECONDS: Final = 365 * 86_400.0
_SECONDS: Final = re.compile(r"[0-9]+(?:[ \t]*,[ \t]*[0-9]+)*")
"""A `Retry-After` in seconds; a proxy joins several of them with commas."""
_THROTTLING: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True)
class Answer:
    """An HTTP response of Stage 1; `body` is cut a bit beyond 1 MiB if it is longer.

    `location` is where a redirect points. `coding` is the content coding of a body that can't be
    decompressed; such a body is left out.
    """

    status: int
    body: bytes
    retry_after: tuple[str, ...] = ()
    location: str | None = None
    coding: str | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True)
class UpsertOutcome:
    """The result of one request: no `error` means that Stage 1 confirmed the item.

    `http_status` is None where no response came. `retry_after_seconds` is what Stage 1 asked for.
    `is_refusal` tells that Stage 1 itself said no for good: it surely has not taken the item.
    `was_resent` tells that the request went twice, because its first connection was stale.
    """

    error: ItemError | None
    http_status: int | None
    sync_id: str | None
    duration_ms: float
    retry_after_seconds: float | None = None
    is_refusal: bool = False
    was_resent: bool = False

    @property
    def is_transient(self) -> bool:
        return self.error is not None and self.error.error_class is ErrorClass.TRANSIENT

    @property
    def is_throttled(self) -> bool:
        """Whether requests come faster than the endpoint takes them."""
        is_asked_to_wait = self.retry_after_seconds is not None
        return self.is_transient and (is_asked_to_wait or self.http_status in _THROTTLING)


def answer_from(
    status: int, headers: Sequence[tuple[bytes, bytes]], parts: Iterable[bytes]
) -> Answer:
    """Read the answer from an HTTP response; of its body no more than the limit and a bit."""
    location = _values(headers, b"location") if 300 <= status < 400 else ()
    retry_after = _values(headers, b"retry-after")
    coding = ", ".join(_values(headers, b"content-encoding"))
    try:
        body = body_of(parts, coding)
    except UnknownCoding:
        return Answer(status, b"", retry_after, next(iter(location), None), coding)
    return Answer(status, body, retry_after, next(iter(location), None))


def outcome_of(answer: Answer, duration_ms: float, redaction: Redaction) -> UpsertOutcome:
    """Classify an answer; the texts of the outcome are cleaned."""
    content = json_object(answer.body) if len(answer.body) <= LONGEST_BODY else {}
    if answer.is_success and content.get("ok") is True:
        sync_id = redaction.cleaned(content.get("sync_id")) or None
        return UpsertOutcome(None, answer.status, sync_id, duration_ms)
    error = _error_in(answer, content, redaction)
    is_transient = error.error_class is ErrorClass.TRANSIENT
    pause = retry_after_seconds(answer.retry_after) if is_transient else None
    is_refusal = bool(_refusal(content)) and not is_transient
    return UpsertOutcome(error, answer.status, None, duration_ms, pause, is_refusal)


def retry_after_seconds(headers: Sequence[str], now: datetime | None = None) -> float | None:
    """Read `Retry-After` headers, seconds or HTTP dates (RFC 9110, section 10.2.3).

    Returns seconds from `now`, at least 0 and at most a year, of several the most; 0 for what can't
    be read, None for no header.
    """
    if not headers:
        return None
    seconds = max(_seconds_in(header.strip(), now or datetime.now(UTC)) for header in headers)
    return min(max(0.0, seconds), _LONGEST_PAUSE_SECONDS)


def _seconds_in(header: str, now: datetime) -> float:
    if _SECONDS.fullmatch(header):
        return max(float(seconds) for seconds in header.split(","))
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - now).total_seconds()


def _values(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> tuple[str, ...]:
    return tuple(value.decode("latin-1") for each, value in headers if each.lower() == name)


def _error_in(answer: Answer, content: dict[str, Any], redaction: Redaction) -> ItemError:
    body_code = _refusal(content).get("code")
    code, error_class = classify(answer.status, body_code if isinstance(body_code, str) else None)
    message = _message_of(answer, content, redaction)
    return ItemError(redaction.cleaned(code) or UNEXPECTED_RESPONSE, message, error_class)


def _refusal(content: dict[str, Any]) -> dict[str, Any]:
    error = content.get("error")
    return error if content.get("ok") is False and isinstance(error, dict) else {}


def _message_of(answer: Answer, content: dict[str, Any], redaction: Redaction) -> str:
    said = f"HTTP {answer.status}"
    if answer.coding is not None:
        coding = redaction.cleaned(answer.coding)
        return f"{said} with a body that can't be decompressed ({coding})"
    if len(answer.body) > LONGEST_BODY:
        return f"{said} with a body over 1 MiB"
    reason = reason_in(content, answer.body, answer.location)
    if refusal := redaction.cleaned(reason.refusal):
        return refusal
    text = redaction.cleaned(reason.text)
    if content or not answer.is_success:
        return f"{said}: {text}" if text else f"{said} without an error message"
    no_json = f"{said} with a body that is no JSON object"
    return f"{no_json}: {text}" if text else no_json
