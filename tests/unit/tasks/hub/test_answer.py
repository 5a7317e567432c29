"""From an answer of Stage 1 to an outcome: the item is in, it is refused, or it is no answer."""

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.hub.answer import Answer, UpsertOutcome, answer_from, outcome_of, retry_after_seconds
from tasks.hub.redaction import spellings_of

TOKEN = "marked-unit-token"
MIB = 1 << 20
OVER_1_MIB = b'{"ok": true}' + b" " * MIB
YEAR = 365 * 86_400


def outcome(body: Any = b"", status: int = 200, retry_after: str | None = None) -> UpsertOutcome:
    """Return the outcome of an answer with this body: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return outcome_of(Answer(status, retry_after, content), 1.5, spellings_of(TOKEN))


def refusal(code: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": {"code": code, "message": message, "details": {}}}


def test_success() -> None:
    confirmed = outcome({"ok": True, "sync_id": "s-1", "id": "ñ"})
    assert confirmed == UpsertOutcome(None, 200, "s-1", 1.5)


@pytest.mark.parametrize("sync_id", [None, "", 5, ["s"]])
def test_a_success_without_a_sync_id_is_one(sync_id: Any) -> None:
    assert outcome({"ok": True, "sync_id": sync_id}) == UpsertOutcome(None, 200, None, 1.5)


@pytest.mark.parametrize(
    ("status", "body", "code", "error_class"),
    [
        (200, b"<html>", "UNEXPECTED_RESPONSE", "permanent"),
        (200, b"\xff\xfe", "UNEXPECTED_RESPONSE", "permanent"),
        (200, b"[" * 100_000, "UNEXPECTED_RESPONSE", "permanent"),
        (200, OVER_1_MIB, "UNEXPECTED_RESPONSE", "permanent"),
        (400, OVER_1_MIB, "HTTP_400", "permanent"),
        (503, OVER_1_MIB, "SERVER_ERROR", "transient"),
        (403, OVER_1_MIB, "HTTP_403", "run_stopping"),
        (200, [], "UNEXPECTED_RESPONSE", "permanent"),
        (200, {}, "UNEXPECTED_RESPONSE", "permanent"),
        (200, {"ok": "true"}, "UNEXPECTED_RESPONSE", "permanent"),
        (200, {"ok": 1}, "UNEXPECTED_RESPONSE", "permanent"),
        (201, {"ok": True}, "UNEXPECTED_RESPONSE", "permanent"),
        (302, b"", "UNEXPECTED_RESPONSE", "permanent"),
        (200, {"ok": False}, "UNEXPECTED_RESPONSE", "permanent"),
        (200, {"ok": False, "error": "x"}, "UNEXPECTED_RESPONSE", "permanent"),
        (200, {"ok": False, "error": {"code": ["x"]}}, "UNEXPECTED_RESPONSE", "permanent"),
        (500, b"<html>", "SERVER_ERROR", "transient"),
        (500, {"ok": True}, "SERVER_ERROR", "transient"),
        (404, b"", "HTTP_404", "permanent"),
        (401, b"", "HTTP_401", "run_stopping"),
    ],
)
def test_other_answers(status: int, body: Any, code: str, error_class: str) -> None:
    came_of = outcome(body, status)
    assert (came_of.http_status, came_of.sync_id) == (status, None)
    assert came_of.error is not None
    assert (came_of.error.code, came_of.error.error_class.value) == (code, error_class)
    assert came_of.error.message


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"<html>", "HTTP 500 with a body that is no JSON object"),
        (200, [], "HTTP 200 with a body that is no JSON object"),
        (200, OVER_1_MIB, "HTTP 200 with a body over 1 MiB"),
        (404, {"Message": "Forbidden"}, "HTTP 404 without an error message"),
        (200, refusal("NEW", "\n"), "HTTP 200 without an error message"),
    ],
)
def test_an_answer_that_does_not_say_what_is_wrong(status: int, body: Any, message: str) -> None:
    error = outcome(body, status).error
    assert error is not None
    assert error.message == message


def test_a_body_of_1_mib_counts() -> None:
    assert outcome(OVER_1_MIB[:MIB]).error is None


def test_a_refusal_with_http_200() -> None:
    refused = outcome(refusal("NOT_FOUND", "no tenant"))
    assert refused.error is not None
    assert (refused.error.code, refused.error.message) == ("NOT_FOUND", "no tenant")
    assert refused.http_status == 200


@pytest.mark.parametrize(
    ("status", "body", "is_refusal"),
    [
        (200, refusal("NOT_FOUND", "no"), True),
        (404, refusal("NOT_FOUND", "no"), True),
        (500, refusal("VALIDATION_ERROR", "no"), True),
        (200, refusal("INVALID_TOKEN", "no"), True),
        (400, refusal("NEW", "no"), True),
        (200, refusal("TIMEOUT", "no"), False),
        (503, refusal("NEW", "no"), False),
        (200, {"ok": False}, False),
        (404, b"<html>", False),
        (403, {"Message": "Forbidden"}, False),
        (200, b"", False),
        (200, {"ok": True}, False),
    ],
)
def test_stage_1_surely_has_not_taken_what_it_says_no_to_for_good(
    status: int, body: Any, is_refusal: bool
) -> None:
    assert outcome(body, status).is_refusal is is_refusal


def test_texts_from_outside_are_cleaned() -> None:
    dirty = f"bad Bearer {TOKEN}\x1b[31m\n" + "x" * 2000
    error = outcome(refusal(f"NOPE\x00{TOKEN}", dirty)).error
    sync_id = outcome({"ok": True, "sync_id": dirty}).sync_id
    assert error is not None
    assert error.code == "NOPE [redacted]"
    assert sync_id == error.message
    assert error.message.startswith("bad Bearer [redacted] [31m xxx")
    assert len(error.message) == 500


def test_a_code_that_is_nothing_once_it_is_cleaned() -> None:
    error = outcome(refusal("\n", "no")).error
    assert error is not None
    assert error.code == "UNEXPECTED_RESPONSE"


def test_retry_after_comes_with_a_transient_failure_only() -> None:
    assert outcome(status=429, retry_after="7").retry_after_seconds == 7
    assert outcome(status=503, retry_after="7").retry_after_seconds == 7
    assert outcome(status=503).retry_after_seconds is None
    assert outcome(status=404, retry_after="7").retry_after_seconds is None
    assert outcome({"ok": True}, retry_after="7").retry_after_seconds is None


@pytest.mark.parametrize(
    ("headers", "retry_after"),
    [
        ([], None),
        ([(b"X-Retry-After", b"7")], None),
        ([(b"Server", b"x"), (b"retry-AFTER", b" 7 ")], " 7 "),
        ([(b"Retry-After", b"7"), (b"Retry-After", b"8")], "7, 8"),
        ([(b"Retry-After", b"\xff")], "ÿ"),
    ],
)
def test_the_retry_after_of_a_response(
    headers: list[tuple[bytes, bytes]], retry_after: str | None
) -> None:
    assert answer_from(503, headers, [b"bo", b"dy"]) == Answer(503, retry_after, b"body")


def test_no_more_of_a_body_is_read_than_is_needed_to_see_that_it_is_too_long() -> None:
    parts = itertools.repeat(b"x" * 1000)
    body = answer_from(200, [], parts).body
    assert MIB < len(body) <= MIB + 1000


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        (" 12 ", 12),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("soon", 0),
        ("7, 8", 0),
        ("-5", 0),
        ("", 0),
        ("1e999", 0),
        ("٣", 0),
        ("7\x00", 0),
        ("9" * 400, YEAR),
        ("9" * 5000, YEAR),
        ("Wed, 21 Oct 9999 07:28:10 GMT", YEAR),
        ("Wed, 21 Oct 2015 07:28:10 +" + "9" * 40, 0),
        ("Wed, 21 Oct 99999999999 07:28:10 GMT", 0),
    ],
)
def test_retry_after_header(header: str | None, seconds: float | None) -> None:
    now = datetime(2015, 10, 21, 7, 28, 0, tzinfo=UTC)
    assert retry_after_seconds(header, now) == seconds


_pieces = st.sampled_from(
    ["Wed, ", "21 ", "Oct ", "2015 ", "07:28:10 ", "GMT", "+0100", "-9999", ":", "-", ",", "\x00"]
)


@given(
    st.one_of(
        st.text(),
        st.integers().map(str),
        st.floats().map(str),
        st.lists(_pieces, max_size=12).map("".join),
        st.builds("Wed, {} Oct {} {}:{}:{} {}".format, *[st.integers().map(str) | st.text()] * 6),
    )
)
def test_any_retry_after_header_is_a_time_to_wait(header: str) -> None:
    seconds = retry_after_seconds(header)
    assert seconds is not None
    assert 0 <= seconds <= YEAR
