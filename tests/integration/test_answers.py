"""Answers of a Stage 1 as it really is, as data, over HTTP: what becomes of each."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.hub.client import HubAdminClient
from tasks.hub.refusals import Refusals
from tasks.settings import read_settings

Case = dict[str, Any]

CASES: list[Case] = json.loads((Path(__file__).parents[1] / "cases" / "answers.json").read_text())
GIVEN = {"name", "status", "headers", "body", "compress", "why"}
EXPECTED = {"class", "code", "message", "pause_seconds"}
NO_BODY = (204, 304)


class AnsweringServer(HTTPServer):
    """Answers every POST alike."""

    def __init__(self, case: Case) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.case = case


class Handler(BaseHTTPRequestHandler):
    server: AnsweringServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        case = self.server.case
        headers = case["headers"]
        body = case["body"].encode()
        if case.get("compress") == "gzip":
            body = gzip.compress(body)
        self.send_response_only(case["status"])
        for name, value in headers.items() if isinstance(headers, dict) else headers:
            self.send_header(name, value)
        if case["status"] not in NO_BODY:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody wants to know."""


@pytest.fixture
def client(case: Case, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubAdminClient]:
    """A client of a Stage 1 that gives the answer of the case."""
    with AnsweringServer(case) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("MONGODB_URI", "mongodb://localhost")
        monkeypatch.setenv("ADMIN_SYNC_TOKEN", "marked-token")
        monkeypatch.setenv("ADMIN_TIMEOUT_MS", "60000")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for entity_type in ENTITY_TYPES:
            url = f"http://127.0.0.1:{server.server_port}/{entity_type.endpoint}"
            monkeypatch.setenv(entity_type.url_variable, url)
        client = HubAdminClient(read_settings())
        yield client
        client.close()
        server.shutdown()


@pytest.mark.parametrize("case", [pytest.param(each, id=each["name"]) for each in CASES])
def test_answer(case: Case, client: HubAdminClient) -> None:
    assert {"class"} <= set(case) <= GIVEN | EXPECTED
    sent = client.upsert(entity_type_named("tenant"), "0" * 32, {"id": "acme"})
    outcome = Refusals().judged(sent, was_out=False)

    assert outcome.http_status == case["status"]
    assert outcome.retry_after_seconds == case.get("pause_seconds")
    if case["class"] is None:
        assert outcome.error is None
        assert outcome.sync_id == json.loads(case["body"])["sync_id"]
        return
    assert outcome.error is not None
    assert outcome.error.error_class == case["class"]
    assert outcome.error.code == case["code"]
    assert case.get("message", "") in outcome.error.message
