"""Why no answer came: the setting to mend where that is known, and where the request was to go."""

import datetime
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.hub.client import HubAdminClient
from tasks.settings import read_settings
from tests.unit.tasks.hub.test_deadline import (
    PATIENCE,
    make_certificate,
    peer,
    server_tls_with,
    succeeding,
)

TOKEN = "marked-unit-token"
VARIABLE = "ADMIN_TENANTS_UPSERT_URL"
CA_HINT = "SSL_CERT_FILE may name the file of a private CA"
EXPIRED = datetime.timedelta(days=-1)
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

Send = Callable[[], str]
"""Sends a tenant, and returns why there was no answer; "" for an answer."""


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in PROXY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", TOKEN)
    monkeypatch.setenv("MONGODB_URI", "mongodb://localhost")
    monkeypatch.setenv("ADMIN_ALLOW_INSECURE_HTTP", "true")
    monkeypatch.setenv("ADMIN_TIMEOUT_MS", str(int(PATIENCE * 1000)))


@contextmanager
def sending_to(origin: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Send]:
    """Send to an origin, at a URL that has credentials and a query."""
    scheme, host = origin.split("://")
    for entity_type in ENTITY_TYPES:
        url = f"{scheme}://user:pass-word@{host}/tenants?key=secret"
        monkeypatch.setenv(entity_type.url_variable, url)
    client = HubAdminClient(read_settings())

    def send() -> str:
        outcome = client.upsert(entity_type_named("tenant"), "0" * 32, {"id": "?"})
        if outcome.http_status is not None:
            return ""
        assert outcome.error is not None
        assert outcome.error.code == "CONNECTION_ERROR"
        return outcome.error.message

    yield send
    client.close()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody else takes in the meantime."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def listener_that_says(text: bytes) -> Iterator[int]:
    """Take one connection, and say something before anything is asked."""

    def serve() -> None:
        connection, _ = listener.accept()
        with suppress(OSError), connection:
            connection.sendall(text)
            while connection.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def refuse(*_: object, **__: object) -> None:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def fault_of_certificate(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return why a peer with this certificate gets no request."""

    def never(_: socket.socket) -> None:
        raise AssertionError("the request was sent")

    with (
        peer(never, server_tls_with(certificate)) as port,
        sending_to(f"https://127.0.0.1:{port}", monkeypatch) as send,
    ):
        return send()


@pytest.mark.parametrize("issuer", ["hub", "a private CA"])
def test_a_certificate_of_an_unknown_issuer(
    issuer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path / "peer.pem", issuer=issuer)
    told = fault_of_certificate(certificate, monkeypatch)
    assert told.startswith(f"{VARIABLE}: the certificate of 127.0.0.1 is refused, ")
    assert told.endswith(f": {CA_HINT}")


@pytest.mark.parametrize(
    ("address", "lasts", "why"),
    [
        ("127.0.0.1", EXPIRED, "certificate has expired"),
        ("127.0.0.2", -EXPIRED, "certificate is not valid for '127.0.0.1'"),
    ],
    ids=["expired", "of another host"],
)
def test_a_certificate_that_no_ca_mends(
    address: str,
    lasts: datetime.timedelta,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificate = make_certificate(tmp_path / "peer.pem", address=address, lasts=lasts)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    told = fault_of_certificate(certificate, monkeypatch)
    assert told.startswith(f"{VARIABLE}: the certificate of 127.0.0.1 is refused, ")
    assert why in told
    assert "SSL_CERT_FILE" not in told


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_ssl_cert_file_names_a_private_ca(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path / "peer.pem")
    if place == ".env":
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        Path(".env").write_text(f"SSL_CERT_FILE={certificate}\n")
    else:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with (
        peer(succeeding, server_tls_with(certificate)) as port,
        sending_to(f"https://127.0.0.1:{port}", monkeypatch) as send,
    ):
        assert send() == ""


def test_a_peer_that_speaks_no_tls_has_no_wrong_certificate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listener_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        origin = f"https://127.0.0.1:{port}"
        with sending_to(origin, monkeypatch) as send:
            told = send()
    assert told.endswith(f" ({origin}/tenants)")
    assert VARIABLE not in told


def fail_look_up(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_NODATA])
def test_a_name_that_is_unknown(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_look_up(monkeypatch, socket.gaierror(number, "Name or service not known"))
    with sending_to("https://x.invalid", monkeypatch) as send:
        assert send() == f"{VARIABLE}: the name x.invalid is unknown"


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"),
        OSError(errno.EMFILE, "Too many open files"),
        UnicodeError("label too long"),
    ],
)
def test_a_look_up_that_fails_does_not_make_a_name_unknown(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_look_up(monkeypatch, error)
    with sending_to("https://x.invalid", monkeypatch) as send:
        assert send() == f"{error} (https://x.invalid/tenants)"


def test_a_port_that_has_been_closed_all_along(monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as port, sending_to(f"http://127.0.0.1:{port}", monkeypatch) as send:
        for _ in range(2):
            assert send() == f"{VARIABLE}: nothing listens at 127.0.0.1:{port}"


@pytest.mark.parametrize("place", ["127.0.0.1", "[::1]", "[::1]:9"])
def test_a_place_is_told_as_the_url_has_it(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", refuse)
    with sending_to(f"http://{place}", monkeypatch) as send:
        assert send() == f"{VARIABLE}: nothing listens at {place}"


def test_a_port_that_is_closed_after_an_answer_is_no_wrong_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with peer(answer) as port:
        origin = f"http://127.0.0.1:{port}"
        with sending_to(origin, monkeypatch) as send:
            assert send() == ""
            monkeypatch.setattr(socket, "create_connection", refuse)
            assert send() == f"[Errno 111] Connection refused ({origin}/tenants)"


def test_a_connection_that_breaks_is_no_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(stream: socket.socket) -> None:
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(65_536):
            """What comes after a close would reset the connection, which is told otherwise."""

    with peer(hang_up) as port:
        origin = f"http://127.0.0.1:{port}"
        with sending_to(origin, monkeypatch) as send:
            assert send() == (f"Server disconnected without sending a response. ({origin}/tenants)")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_with_a_proxy_no_setting_is_blamed(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as port:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:pass-word@127.0.0.1:{port}")
        with sending_to(f"{scheme}://hub.test", monkeypatch) as send:
            assert send() == (
                f"[Errno 111] Connection refused ({scheme}://hub.test/tenants, by a proxy)"
            )


def test_a_proxy_that_is_unknown_is_not_the_setting_s_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_look_up(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    monkeypatch.setenv("http_proxy", "http://user:pass-word@proxy.invalid")
    with sending_to("http://hub.test", monkeypatch) as send:
        told = send()
    assert told.endswith("(http://hub.test/tenants, by a proxy)")
    assert VARIABLE not in told
    assert "pass-word" not in told


def test_the_token_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_look_up(monkeypatch, OSError(f"no {TOKEN}"))
    with sending_to(f"https://{TOKEN}.invalid", monkeypatch) as send:
        assert send() == "no [redacted] (https://[redacted].invalid/tenants)"
