"""From an answer of Stage 1 to an outcome: the item is in, it is refused, or it is no answer."""

import base64
import gzip
import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.hub.answer import Answer, UpsertOutcome, answer_from, outcome_of, retry_after_seconds
from tasks.redaction import Redaction

TOKEN = "marked-unit-token"
MIB = 1 << 20
OVER_1_MIB = b'{"ok": true}' + b" " * MIB
YEAR = 365 * 86_400


def outcome(
    body: Any = b"", status: int = 200, retry_after: Sequence[str] = (), **parts: str
) -> UpsertOutcome:
    """Return the outcome of an answer with this body: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answer(status, content, tuple(retry_after), **parts)
    return outcome_of(answer, 1.5, Redaction([TOKEN]))


def message(body: Any = b"", status: int = 200, **parts: str) -> str:
    error = outcome(body, status, **parts).error
    assert error is not None
    return error.message


def refusal(code: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": {"code": code, "message": message, "details": {}}}


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_success(status: int) -> None:
    confirmed = outcome({"ok": True, "sync_id": "s-1", "id": "ñ"}, status)
    assert confirmed == UpsertOutcome(None, status, "s-1", 1.5)


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
        (201, {}, "UNEXPECTED_RESPONSE", "permanent"),
        (204, b"", "UNEXPECTED_RESPONSE", "permanent"),
        (302, b"", "UNEXPECTED_RESPONSE", "permanent"),
        (300, {"ok": True}, "UNEXPECTED_RESPONSE", "permanent"),
        (200, {"ok": False}, "UNEXPECTED_RESPONSE", "permanent"),
        (200, {"ok": False, "error": "x"}, "UNEXPECTED_RESPONSE", "permanent"),
        (200, {"ok": False, "error": {"code": ["x"]}}, "UNEXPECTED_RESPONSE", "permanent"),
        (500, b"<html>", "SERVER_ERROR", "transient"),
        (500, {"ok": True}, "SERVER_ERROR", "transient"),
        (404, b"", "HTTP_404", "permanent"),
        (408, b"", "HTTP_408", "transient"),
        (425, b"", "HTTP_425", "transient"),
        (429, {"message": "Too Many Requests"}, "HTTP_429", "transient"),
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
    ("status", "body", "told"),
    [
        (403, {"Message": "Forbidden. See x"}, "HTTP 403: Forbidden. See x"),
        (502, {"errorMessage": "Task timed out"}, "HTTP 502: Task timed out"),
        (200, {"ok": False, "error": "no tenant"}, "HTTP 200: no tenant"),
        (200, {"message": "why"}, "HTTP 200: why"),
        (200, refusal("X", "no tenant"), "no tenant"),
        (404, {"error": {"message": "no tenant"}}, "no tenant"),
        (404, {"error": {"code": "X"}, "message": "why"}, "HTTP 404: why"),
        (503, b"<title>503 &laquo;Busy&raquo;</title>", "HTTP 503: 503 «Busy»"),
        (404, b"no such\nroute", "HTTP 404: no such route"),
        (200, b"<h1>Log in</h1>", "HTTP 200 with a body that is no JSON object: Log in"),
        (500, b"<html>", "HTTP 500 without an error message"),
        (500, b'{"message": "cut o', "HTTP 500 without an error message"),
        (200, b'{"message": "cut o', "HTTP 200 with a body that is no JSON object"),
        (200, [], "HTTP 200 with a body that is no JSON object"),
        (204, b"", "HTTP 204 with a body that is no JSON object"),
        (200, OVER_1_MIB, "HTTP 200 with a body over 1 MiB"),
        (502, b"<title>x</title>" + OVER_1_MIB, "HTTP 502 with a body over 1 MiB"),
        (404, {"title": "Forbidden"}, "HTTP 404 without an error message"),
        (404, b"", "HTTP 404 without an error message"),
        (200, refusal("NEW", "\n"), "HTTP 200 without an error message"),
        (200, refusal("NEW", "\x00"), "HTTP 200 without an error message"),
    ],
)
def test_what_an_answer_says(status: int, body: Any, told: str) -> None:
    assert message(body, status) == told


def test_where_a_redirect_points() -> None:
    location = "https://user:pass@hub.example/a?key=secret"
    told = message(b"<title>Moved</title>", 301, location=location)
    assert told == "HTTP 301: redirects to https://hub.example/a"


def test_a_body_that_can_not_be_decompressed() -> None:
    told = message(status=503, coding=f"br{TOKEN}")
    assert told == "HTTP 503 with a body that can't be decompressed (br[redacted])"


_BODIES_WITH_THE_TOKEN = [
    b"%s",
    b"<p>wrong token<br>%s</p>",
    b"<title>%s</title>",
    b'{"message": "%s"}',
    b'{"error": "no %s"}',
    b'{"ok": false, "error": {"code": "%s", "message": "\\n%s\\u0000"}}',
    b"x" * 195 + b" %s",
    b"x" * 495 + b"%s",
    b'{"detail": "' + b"x" * 495 + b'%s"}',
]
_ENCODED = [
    "".join(f"%{byte:02x}" for byte in TOKEN.encode()).encode(),
    TOKEN.encode().hex().encode(),
    base64.b64encode(f"Bearer {TOKEN}".encode()),
]
_SPELLINGS = [
    TOKEN.encode(),
    TOKEN.replace("-", "&#45;").encode(),
    b"<b></b>".join(TOKEN.encode().split(b"-")),
    TOKEN.replace("marked", "mar<b></b>ked").encode(),
    TOKEN.replace("marked", "mar\\u006bed").encode(),
    *_ENCODED,
]


@pytest.mark.parametrize("body", _BODIES_WITH_THE_TOKEN)
@pytest.mark.parametrize("spelling", _SPELLINGS)
def test_no_message_gives_the_token(body: bytes, spelling: bytes) -> None:
    error = outcome(body.replace(b"%s", spelling), 400).error
    assert error is not None
    assert error.message
    assert error.message.isprintable()
    assert len(error.message) <= len("HTTP 400: ") + 500
    assert TOKEN not in error.message + error.code
    assert not any(encoded.decode() in error.message + error.code for encoded in _ENCODED)


@pytest.mark.parametrize("position", range(180, 200))
def test_a_token_at_the_end_of_the_words_that_are_told_is_not_cut(position: int) -> None:
    told = message(b"x" * position + f" {TOKEN} and so on".encode(), 400)
    assert told.removeprefix(f"HTTP 400: {'x' * position}") in (
        "",
        " [redacted]",
        " [redacted] and",
    )


def test_where_a_redirect_points_is_told_without_the_token() -> None:
    told = message(status=302, location=f"https://hub.example/{TOKEN}\x00/a")
    assert told == "HTTP 302: redirects to https://hub.example/[redacted] /a"


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
    for status in (408, 429, 500, 503):
        assert outcome(status=status, retry_after=["7"]).retry_after_seconds == 7
    assert outcome(refusal("TIMEOUT", "no"), retry_after=["7"]).retry_after_seconds == 7
    assert outcome(status=503).retry_after_seconds is None
    assert outcome(status=404, retry_after=["7"]).retry_after_seconds is None
    assert outcome({"ok": True}, retry_after=["7"]).retry_after_seconds is None


@pytest.mark.parametrize(
    ("status", "body", "retry_after", "is_throttled"),
    [
        (429, b"", [], True),
        (503, b"", [], True),
        (503, refusal("TEMPORARY_UNAVAILABLE", "no"), [], True),
        (500, b"", ["0"], True),
        (408, b"", ["7"], True),
        (200, refusal("TEMPORARY_UNAVAILABLE", "no"), ["7"], True),
        (200, refusal("TEMPORARY_UNAVAILABLE", "no"), [], False),
        (500, b"", [], False),
        (502, b"", [], False),
        (504, b"", [], False),
        (408, b"", [], False),
        (425, b"", [], False),
        (429, refusal("VALIDATION_ERROR", "no"), ["7"], False),
        (503, refusal("INVALID_TOKEN", "no"), ["7"], False),
        (403, b"", ["7"], False),
        (404, b"", ["7"], False),
        (200, {"ok": True}, ["7"], False),
    ],
)
def test_which_answers_tell_that_requests_come_too_fast(
    status: int, body: Any, retry_after: list[str], is_throttled: bool
) -> None:
    assert outcome(body, status, retry_after).is_throttled is is_throttled


@pytest.mark.parametrize(
    ("headers", "retry_after"),
    [
        ([], ()),
        ([(b"X-Retry-After", b"7")], ()),
        ([(b"Server", b"x"), (b"retry-AFTER", b" 7 ")], (" 7 ",)),
        ([(b"Retry-After", b"7"), (b"Retry-After", b"8")], ("7", "8")),
        ([(b"Retry-After", b"\xff")], ("ÿ",)),
    ],
)
def test_the_retry_after_of_a_response(
    headers: list[tuple[bytes, bytes]], retry_after: tuple[str, ...]
) -> None:
    assert answer_from(503, headers, [b"bo", b"dy"]) == Answer(503, b"body", retry_after)


@pytest.mark.parametrize(
    ("status", "headers", "location"),
    [
        (301, [(b"location", b"/a")], "/a"),
        (308, [(b"Location", b"/a"), (b"Location", b"/b")], "/a"),
        (399, [(b"LOCATION", b"\xff")], "ÿ"),
        (302, [], None),
        (201, [(b"Location", b"/a")], None),
        (400, [(b"Location", b"/a")], None),
    ],
)
def test_the_location_of_a_redirect(
    status: int, headers: list[tuple[bytes, bytes]], location: str | None
) -> None:
    assert answer_from(status, headers, []) == Answer(status, b"", location=location)


def test_a_body_is_decompressed() -> None:
    headers = [(b"content-ENCODING", b"gzip")]
    assert answer_from(200, headers, [gzip.compress(b"body")]) == Answer(200, b"body")


@pytest.mark.parametrize(
    ("codings", "told"), [([b"br"], "br"), ([b"gzip"], "gzip"), ([b"gzip", b"gzip"], "gzip, gzip")]
)
def test_a_body_that_can_not_be_decompressed_is_left_out(codings: list[bytes], told: str) -> None:
    headers = [(b"Content-Encoding", coding) for coding in codings]
    headers += [(b"Retry-After", b"7"), (b"Location", b"/a")]
    answer = answer_from(307, headers, [b"\x1f\x8b body"])
    assert answer == Answer(307, b"", ("7",), "/a", told)


def test_no_more_of_a_body_is_read_than_is_needed_to_see_that_it_is_too_long() -> None:
    parts = itertools.repeat(b"x" * 1000)
    body = answer_from(200, [], parts).body
    assert MIB < len(body) <= MIB + 1000


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        (["0"], 0),
        ([" 12 "], 12),
        (["2", "2"], 2),
        (["7", "soon", "3"], 7),
        (["2, 2"], 2),
        (["3,9 ,\t7"], 9),
        (["3, 9", "12"], 12),
        (["7,"], 0),
        (["7, soon"], 0),
        (["Wed, 21 Oct 2015 07:28:10 GMT"], 10),
        (["Wed, 21 Oct 2015 07:28:10 GMT", "7"], 10),
        (["12", "Wed, 21 Oct 2015 07:28:10 GMT"], 12),
        (["Wed, 21 Oct 2015 07:27:00 GMT", "7"], 7),
        (["Wed, 21 Oct 2015 07:27:00 GMT"], 0),
        (["Wed, 21 Oct 2015 07:28:10"], 10),
        (["soon"], 0),
        (["-5"], 0),
        ([""], 0),
        (["1e999"], 0),
        (["٣"], 0),
        (["7\x00"], 0),
        (["9" * 400], YEAR),
        (["9" * 5000], YEAR),
        (["1," * 100_000 + "1"], 1),
        (["1, " * 100_000], 0),
        (["Wed, 21 Oct 9999 07:28:10 GMT"], YEAR),
        (["Wed, 21 Oct 2015 07:28:10 +" + "9" * 40], 0),
        (["Wed, 21 Oct 99999999999 07:28:10 GMT"], 0),
    ],
)
def test_retry_after_headers(headers: list[str], seconds: float | None) -> None:
    now = datetime(2015, 10, 21, 7, 28, 0, tzinfo=UTC)
    assert retry_after_seconds(headers, now) == seconds


_pieces = st.sampled_from(
    ["Wed, ", "21 ", "Oct ", "2015 ", "07:28:10 ", "GMT", "+0100", "-9999", ":", "-", ",", "\x00"]
)


_header = st.one_of(
    st.text(),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(_pieces, max_size=12).map("".join),
    st.builds("Wed, {} Oct {} {}:{}:{} {}".format, *[st.integers().map(str) | st.text()] * 6),
)


@given(st.lists(_header, min_size=1, max_size=3))
def test_any_retry_after_header_is_a_time_to_wait(headers: list[str]) -> None:
    seconds = retry_after_seconds(headers)
    assert seconds is not None
    assert 0 <= seconds <= YEAR
