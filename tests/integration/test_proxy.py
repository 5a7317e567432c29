"""A proxy that the environment names is used, as other programs on the machine use it.

What is on this machine is reached without it.
"""

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from deployments.deploy import main as deploy
from scripts.local.process import answers, free_port
from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.hub.answer import UpsertOutcome
from tasks.hub.client import HubAdminClient
from tasks.settings import read_settings


@dataclass
class Proxy:
    """Answers for every hub that it is asked for."""

    url: str = ""
    asked_for: list[str] = field(default_factory=list)
    credentials: str | None = None


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            proxy.asked_for.append(self.path)
            proxy.credentials = self.headers["Proxy-Authorization"]
            content = json.dumps({"ok": True, "sync_id": "by proxy"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_CONNECT(self) -> None:
            proxy.asked_for.append(self.path)
            self.send_error(407, "Say who you are")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxy
        server.shutdown()


@pytest.fixture(autouse=True)
def _settings(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "")  # what a command makes of it is undone
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", "a-token")
    monkeypatch.setenv("ADMIN_ALLOW_INSECURE_HTTP", "true")
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1")
    for entity_type in ENTITY_TYPES:
        monkeypatch.setenv(entity_type.url_variable, "http://hub.invalid/upsert")


def send() -> UpsertOutcome:
    client = HubAdminClient(read_settings())
    try:
        return client.upsert(entity_type_named("tenant"), "f" * 32, {"id": "acme"})
    finally:
        client.close()


def test_requests_go_through_the_proxy_of_the_environment(proxy: Proxy) -> None:
    assert send().sync_id == "by proxy"
    assert proxy.asked_for == ["http://hub.invalid/upsert"]


def test_a_proxy_without_a_scheme_is_one_for_http(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url.removeprefix("http://"))
    assert send().sync_id == "by proxy"


def test_a_proxy_is_given_its_credentials(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", "://user:p%40ss@"))
    assert send().sync_id == "by proxy"
    assert proxy.credentials == "Basic " + b64encode(b"user:p@ss").decode()


def test_an_https_hub_is_reached_by_a_tunnel(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    for entity_type in ENTITY_TYPES:
        monkeypatch.setenv(entity_type.url_variable, "https://hub.invalid/upsert")
    error = send().error
    assert proxy.asked_for == ["hub.invalid:443"]
    assert error is not None
    assert error.code == "CONNECTION_ERROR"
    assert error.message == "407 Say who you are (https://hub.invalid/upsert, by a proxy)"


@pytest.mark.parametrize(
    "address",
    [
        "socks5://user:pass-word@127.0.0.1:1",
        "http://user:pass-word@127.0.0.1:1",
        "http://user:pass-word@127.0.0.1:port",
        "http://user:pass-word/@127.0.0.1",
        "http://user:pass-word@[::1",
    ],
)
def test_a_proxy_that_can_not_be_used_is_told_without_its_credentials(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", address)
    error = send().error
    assert error is not None
    assert error.code == "CONNECTION_ERROR"
    assert "pass-word" not in error.message


def test_a_host_that_is_exempt_is_asked_directly(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "hub.invalid")
    outcome = send()
    assert outcome.error is not None
    assert outcome.error.code == "CONNECTION_ERROR"
    assert proxy.asked_for == []


def test_a_part_that_starts_here_is_asked_directly(proxy: Proxy) -> None:
    assert not answers(f"http://127.0.0.1:{free_port()}/api/health", within_seconds=5)
    assert proxy.asked_for == []


def test_a_prefect_server_on_this_machine_is_asked_directly(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["deploy"])
    nobody = {
        PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api",
        PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    with temporary_settings(nobody):
        assert deploy() == 1
    assert "Prefect does not answer (ConnectError)" in capsys.readouterr().err
    assert proxy.asked_for == []
