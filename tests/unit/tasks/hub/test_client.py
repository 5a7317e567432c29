"""The client of Stage 1: what it sends, and what it makes of answers and of none."""

import gzip
import json
from collections.abc import Callable, Iterator

import httpcore
import httpx
import pytest
import respx

from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.errors import ErrorClass
from tasks.hub.answer import UpsertOutcome
from tasks.hub.client import HubAdminClient
from tasks.settings import read_settings

TOKEN = "marked-unit-token"
URL = "https://hub.example/tenants?key=secret"
OVER_1_MIB = b'{"ok": true}' + b" " * (1 << 20)
Send = Callable[[], UpsertOutcome]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubAdminClient]:
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", TOKEN)
    monkeypatch.setenv("MONGODB_URI", "mongodb://localhost")
    for entity_type in ENTITY_TYPES:
        url = f"https://user:pass@hub.example/{entity_type.endpoint}?key=secret"
        monkeypatch.setenv(entity_type.url_variable, url)
    monkeypatch.setenv("ADMIN_ALLOW_INSECURE_HTTP", "true")
    client = HubAdminClient(read_settings())
    yield client
    client.close()


@pytest.fixture
def send(client: HubAdminClient) -> Send:
    return lambda: client.upsert(entity_type_named("tenant"), "f" * 32, {"id": "ñ"})


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
    assert call.request.headers["Accept-Encoding"] == "identity"
    assert set(call.request.headers) == {
        "host",
        "authorization",
        "content-type",
        "content-length",
        "accept-encoding",
    }
    assert json.loads(call.request.content) == {"request_id": "f" * 32, "tenant": {"id": "ñ"}}


@pytest.mark.parametrize("status", [200, 201, 202])
def test_success(send: Send, status: int) -> None:
    response = httpx.Response(status, json={"ok": True, "sync_id": "s-1", "id": "ñ"})
    outcome = answer(send, response)
    assert outcome.error is None
    assert (outcome.http_status, outcome.sync_id) == (status, "s-1")
    assert outcome.duration_ms >= 0


def test_an_answer_that_is_compressed_unasked_is_read(send: Send) -> None:
    body = gzip.compress(b'{"ok": true, "sync_id": "s-1"}')
    headers = {"Content-Encoding": "gzip"}
    # As a stream: httpx would decompress what it has whole.
    response = httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))
    assert answer(send, response).sync_id == "s-1"


def test_a_body_over_1_mib_is_no_answer(send: Send) -> None:
    error = answer(send, httpx.Response(200, content=OVER_1_MIB)).error
    assert error is not None
    assert (error.code, error.message) == (
        "UNEXPECTED_RESPONSE",
        "HTTP 200 with a body over 1 MiB",
    )


@respx.mock
def test_a_redirect_is_not_followed(send: Send) -> None:
    location = "https://user:pass@other.example/a?key=secret"
    route = respx.post(URL).mock(return_value=httpx.Response(302, headers={"Location": location}))
    error = send().error
    assert error is not None
    assert (error.code, error.error_class) == ("UNEXPECTED_RESPONSE", ErrorClass.PERMANENT)
    assert error.message == "HTTP 302: redirects to https://other.example/a"
    assert route.call_count == 1


def test_a_refusal_with_http_200(send: Send) -> None:
    refusal = {"ok": False, "error": {"code": "NOT_FOUND", "message": "no tenant", "details": {}}}
    outcome = answer(send, httpx.Response(200, json=refusal))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.message) == ("NOT_FOUND", "no tenant")
    assert outcome.http_status == 200


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (httpcore.ConnectTimeout("x"), "TIMEOUT"),
        (httpcore.ReadTimeout("x"), "TIMEOUT"),
        (httpcore.PoolTimeout("x"), "TIMEOUT"),
        (httpcore.ConnectError("refused"), "CONNECTION_ERROR"),
        (httpcore.ReadError(""), "CONNECTION_ERROR"),
        (httpcore.RemoteProtocolError("cut"), "CONNECTION_ERROR"),
        (httpcore.LocalProtocolError("odd"), "CONNECTION_ERROR"),
        (httpcore.ProxyError("407 Say who you are"), "CONNECTION_ERROR"),
        (httpcore.UnsupportedProtocol("socks"), "CONNECTION_ERROR"),
    ],
)
@respx.mock
def test_no_answer_is_transient(send: Send, failure: Exception, code: str) -> None:
    respx.post(URL).mock(side_effect=failure)
    outcome = send()
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.error_class) == (code, ErrorClass.TRANSIENT)
    assert outcome.error.message
    assert outcome.http_status is None


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (httpcore.ReadError("cut"), "cut (https://hub.example/tenants)"),
        (httpcore.ReadError(), "ReadError (https://hub.example/tenants)"),
    ],
)
@respx.mock
def test_a_connection_error_tells_where_without_credentials_and_query(
    send: Send, failure: Exception, told: str
) -> None:
    respx.post(URL).mock(side_effect=failure)
    error = send().error
    assert error is not None
    assert error.message == told


@respx.mock
def test_what_a_connection_fails_of_is_told_without_the_token(send: Send) -> None:
    failure = httpcore.RemoteProtocolError(f"illegal header line: {TOKEN}\r\n")
    respx.post(URL).mock(side_effect=failure)
    error = send().error
    assert error is not None
    assert error.message == "illegal header line: [redacted]   (https://hub.example/tenants)"


def test_messages_from_outside_are_cleaned(send: Send) -> None:
    message = f"bad Bearer {TOKEN}\x1b[31m\n" + "x" * 2000
    refusal = {"ok": False, "error": {"code": "NOPE\x00", "message": message}}
    error = answer(send, httpx.Response(200, json=refusal)).error
    assert error is not None
    assert TOKEN not in error.message
    assert len(error.message) == 500
    assert error.message.isprintable()
    assert error.code.isprintable()


def test_retry_after_comes_with_a_transient_failure_only(send: Send) -> None:
    twice = [("Retry-After", "7"), ("Retry-After", "2")]
    assert answer(send, httpx.Response(429, headers=twice)).retry_after_seconds == 7
    assert answer(send, httpx.Response(503, headers=twice)).retry_after_seconds == 7
    assert answer(send, httpx.Response(503)).retry_after_seconds is None
    assert answer(send, httpx.Response(404, headers=twice)).retry_after_seconds is None
