"""The client of Stage 1: what it sends, and what each answer comes to."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import pytest
import respx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.errors import ErrorClass
from tasks.hub.client import HubAdminClient, UpsertOutcome, retry_after_seconds
from tasks.settings import read_settings

TOKEN = "marked-unit-token"
URL = "https://hub.example/tenants"
OVER_1_MIB = b'{"ok": true}' + b" " * (1 << 20)
YEAR = 365 * 86_400
Send = Callable[[], UpsertOutcome]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubAdminClient]:
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", TOKEN)
    monkeypatch.setenv("MONGODB_URI", "mongodb://localhost")
    for entity_type in ENTITY_TYPES:
        url = f"https://user:pass@hub.example/{entity_type.endpoint}"
        monkeypatch.setenv(entity_type.url_variable, url)
    monkeypatch.setenv("ADMIN_ALLOW_INSECURE_HTTP", "true")
    client = HubAdminClient(read_settings())
    yield client
    client.close()


@pytest.fixture
def send(client: HubAdminClient) -> Send:
    return lambda: upsert(client)


def upsert(client: HubAdminClient) -> UpsertOutcome:
    return client.upsert(entity_type_named("tenant"), "f" * 32, {"id": "ñ"})


def answer(send: Send, response: httpx.Response) -> UpsertOutcome:
    with respx.mock:
        respx.post(URL).mock(return_value=response)
        return send()


@respx.mock
def test_sends_exactly_what_the_contract_says(send: Send) -> None:
    route = respx.post(URL).mock(return_value=httpx.Response(200, json={"ok": True}))
    send()
    (call,) = route.calls
    assert call.request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert call.request.headers["Content-Type"] == "application/json"
    assert set(call.request.headers) == {"host", "authorization", "content-type", "content-length"}
    assert json.loads(call.request.content) == {"request_id": "f" * 32, "tenant": {"id": "ñ"}}


def test_success(send: Send) -> None:
    response = httpx.Response(200, json={"ok": True, "sync_id": "s-1", "id": "ñ"})
    outcome = answer(send, response)
    assert outcome.error is None
    assert (outcome.http_status, outcome.sync_id) == (200, "s-1")
    assert outcome.duration_ms >= 0


@pytest.mark.parametrize(
    ("response", "code", "error_class"),
    [
        (httpx.Response(200, text="<html>"), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(200, content=b"\xff\xfe"), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(200, text="[" * 100_000), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(200, content=OVER_1_MIB), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(400, content=OVER_1_MIB), "HTTP_400", "permanent"),
        (httpx.Response(503, content=OVER_1_MIB), "SERVER_ERROR", "transient"),
        (httpx.Response(403, content=OVER_1_MIB), "HTTP_403", "run_stopping"),
        (httpx.Response(200, json=[]), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(200, json={}), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(200, json={"ok": "true"}), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(200, json={"ok": 1}), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(201, json={"ok": True}), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(302, headers={"Location": URL}), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(200, json={"ok": False}), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(200, json={"ok": False, "error": "x"}), "UNEXPECTED_RESPONSE", "permanent"),
        (httpx.Response(500, text="<html>"), "SERVER_ERROR", "transient"),
        (httpx.Response(500, json={"ok": True}), "SERVER_ERROR", "transient"),
        (httpx.Response(404, text=""), "HTTP_404", "permanent"),
        (httpx.Response(401, text=""), "HTTP_401", "run_stopping"),
    ],
)
def test_other_answers(response: httpx.Response, code: str, error_class: str, send: Send) -> None:
    error = answer(send, response).error
    assert error is not None
    assert (error.code, error.error_class.value) == (code, error_class)
    assert error.message


def test_a_refusal_with_http_200(send: Send) -> None:
    refusal = {"ok": False, "error": {"code": "NOT_FOUND", "message": "no tenant", "details": {}}}
    outcome = answer(send, httpx.Response(200, json=refusal))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.message) == ("NOT_FOUND", "no tenant")
    assert outcome.http_status == 200


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (httpx.ConnectTimeout("x"), "TIMEOUT"),
        (httpx.ReadTimeout("x"), "TIMEOUT"),
        (httpx.PoolTimeout("x"), "TIMEOUT"),
        (httpx.ConnectError("refused"), "CONNECTION_ERROR"),
        (httpx.ReadError(""), "CONNECTION_ERROR"),
        (httpx.RemoteProtocolError("cut"), "CONNECTION_ERROR"),
    ],
)
@respx.mock
def test_no_answer_is_transient(send: Send, failure: httpx.RequestError, code: str) -> None:
    respx.post(URL).mock(side_effect=failure)
    outcome = send()
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.error_class) == (code, ErrorClass.TRANSIENT)
    assert outcome.error.message
    assert outcome.http_status is None


def test_messages_from_outside_are_cleaned(send: Send) -> None:
    message = f"bad Bearer {TOKEN}\x1b[31m\n" + "x" * 2000
    refusal = {"ok": False, "error": {"code": "NOPE\x00", "message": message}}
    error = answer(send, httpx.Response(200, json=refusal)).error
    assert error is not None
    assert TOKEN not in error.message
    assert len(error.message) == 500
    assert error.message.isprintable()
    assert error.code.isprintable()


@pytest.fixture(scope="module")
def client_of() -> Callable[[str], HubAdminClient]:
    """A client by its token."""
    variables = {
        "MONGODB_URI": "mongodb://localhost",
        **{entity_type.url_variable: URL for entity_type in ENTITY_TYPES},
    }

    def make(token: str) -> HubAdminClient:
        with pytest.MonkeyPatch.context() as environment:
            for variable, value in {**variables, "ADMIN_SYNC_TOKEN": token}.items():
                environment.setenv(variable, value)
            return HubAdminClient(read_settings())

    return make


@settings(deadline=None)
@given(
    token=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60),
    spelling=st.sampled_from(
        [
            str,
            lambda token: json.dumps(token)[1:-1],
            lambda token: json.dumps(token)[1:-1].replace("/", r"\/"),
            lambda token: repr(token.encode())[2:-1],
            lambda token: quote(token, safe=""),
            lambda token: re.sub("%..", lambda escape: escape[0].lower(), quote(token, safe="")),
        ]
    ),
    before=st.text(max_size=600),
    after=st.text(max_size=600),
)
def test_no_text_from_outside_holds_the_token(
    client_of: Callable[[str], HubAdminClient],
    token: str,
    spelling: Callable[[str], str],
    before: str,
    after: str,
) -> None:
    spelt = spelling(token)
    assume(spelt not in before + after)
    text = f"{before} {spelt} {after}"
    refusal = {"ok": False, "error": {"code": text, "message": text}}
    client = client_of(token)
    outcomes = [
        answer(lambda: upsert(client), httpx.Response(200, json=body))
        for body in (refusal, {"ok": True, "sync_id": text})
    ]
    error = outcomes[0].error
    assert error is not None
    for kept in (error.code, error.message, outcomes[1].sync_id or ""):
        assert spelt not in kept
        assert kept.isprintable()
        assert len(kept) <= 500


@pytest.mark.parametrize("position", range(470, 501, 3))
def test_a_token_at_the_cut_is_not_cut_but_redacted(position: int, send: Send) -> None:
    refusal = {"ok": False, "error": {"code": "NEW", "message": "x" * position + TOKEN}}
    error = answer(send, httpx.Response(200, json=refusal)).error
    assert error is not None
    assert error.message == ("x" * position + "[redacted]")[:500]


def test_retry_after_comes_with_a_transient_failure_only(send: Send) -> None:
    headers = {"Retry-After": "7"}
    assert answer(send, httpx.Response(429, headers=headers)).retry_after_seconds == 7
    assert answer(send, httpx.Response(503, headers=headers)).retry_after_seconds == 7
    assert answer(send, httpx.Response(503)).retry_after_seconds is None
    assert answer(send, httpx.Response(404, headers=headers)).retry_after_seconds is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        (" 12 ", 12),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("soon", 0),
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
