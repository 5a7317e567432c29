"""The local hub keeps the contract of Stage 1, so a test that passes against it means something."""

import gzip
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from scripts.local.hub import LocalHub, upsert_path
from tasks.entities import entity_type_named
from tests.integration.world import HUB_TOKEN, Hub, http, wait_until

RARELY = 0.001
"""Requests a second: the second one is too early on a machine of any speed."""
OFTEN = 1_000_000
"""Requests a second: none is too early."""
REQUEST_ID = "0123456789abcdef" * 2
BEARER = {"Authorization": f"Bearer {HUB_TOKEN}"}


def post(
    hub: Hub | LocalHub,
    entity_type: str,
    item: Any,
    request_id: Any = REQUEST_ID,
    headers: dict[str, str] = BEARER,
    timeout: float = 5,
) -> httpx.Response:
    url = hub.base_url + upsert_path(entity_type_named(entity_type))
    body = {"request_id": request_id, entity_type: item}
    return http.post(url, json=body, headers=headers, timeout=timeout)


def post_over(connection: HTTPConnection, entity_type: str, item: Any) -> HTTPResponse:
    """Post over a connection that is kept; the body is there to read."""
    body = json.dumps({"request_id": REQUEST_ID, entity_type: item})
    connection.request("POST", upsert_path(entity_type_named(entity_type)), body, BEARER)
    return connection.getresponse()


def statuses(hub: Hub, *entity_types: str) -> list[int]:
    """Post an item without a key to each of these, which is a 400 where it is let through."""
    return [post(hub, entity_type, {}).status_code for entity_type in entity_types]


def refusal(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert body["ok"] is False
    assert set(body["error"]) == {"code", "message", "details"}
    return response.status_code, body["error"]["code"]


def test_stores_an_item_and_confirms_it(hub: Hub) -> None:
    response = post(hub, "tenant", {"id": "acme", "name": "Acme"})
    assert response.status_code == 200
    body = response.json()
    assert (body["ok"], body["id"]) == (True, "acme")
    assert hub.stats()["stored"]["tenant"] == 1


def test_a_repeated_request_id_gets_the_same_answer_and_stores_nothing(hub: Hub) -> None:
    first = post(hub, "tenant", {"id": "acme", "name": "Acme"})
    again = post(hub, "tenant", {"id": "other", "name": "Other"})
    assert again.json() == first.json()
    assert hub.stats()["stored"]["tenant"] == 1


def test_a_new_version_replaces_the_item(hub: Hub) -> None:
    first = post(hub, "tenant", {"id": "acme", "name": "Acme"})
    second = post(hub, "tenant", {"id": "acme", "name": "Acme 2"}, request_id="a" * 32)
    assert second.json()["sync_id"] != first.json()["sync_id"]
    assert hub.stats()["stored"]["tenant"] == 1


def test_a_domain_is_confirmed_by_its_host(hub: Hub) -> None:
    post(hub, "tenant", {"id": "acme", "name": "Acme"})
    domain = {"host": "acme.example", "tenant_id": "acme"}
    response = post(hub, "domain", domain, request_id="d" * 32)
    assert response.json()["host"] == "acme.example"


@pytest.mark.parametrize("field", ["tenant_id", "default_subtenant_id", "client_id"])
def test_parents_must_exist(hub: Hub, field: str) -> None:
    response = post(hub, "domain", {"host": "acme.example", field: "nobody"})
    assert refusal(response) == (404, "NOT_FOUND")
    assert "nobody" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "MISSING_AUTH"),
        ({"Authorization": "Bearer wrong"}, "INVALID_TOKEN"),
        ({"Authorization": HUB_TOKEN}, "INVALID_TOKEN"),
    ],
)
def test_the_token_is_asked_for(hub: Hub, headers: dict[str, str], code: str) -> None:
    assert refusal(post(hub, "tenant", {"id": "acme"}, headers=headers)) == (401, code)
    assert hub.stats()["stored"]["tenant"] == 0


@pytest.mark.parametrize(
    ("item", "request_id"),
    [
        ({"id": "acme"}, "short"),
        ({"id": "acme"}, None),
        ({"id": ""}, REQUEST_ID),
        ({"id": 5}, REQUEST_ID),
        ({}, REQUEST_ID),
        ("acme", REQUEST_ID),
    ],
)
def test_a_body_of_another_shape_is_refused(hub: Hub, item: Any, request_id: Any) -> None:
    assert refusal(post(hub, "tenant", item, request_id)) == (400, "VALIDATION_ERROR")


def test_what_is_no_json_is_refused(hub: Hub) -> None:
    url = hub.base_url + upsert_path(entity_type_named("tenant"))
    assert refusal(http.post(url, content=b"{", headers=BEARER)) == (400, "VALIDATION_ERROR")


def test_other_paths_do_not_exist(hub: Hub) -> None:
    assert refusal(http.get(hub.base_url + "/")) == (404, "NOT_FOUND")


def test_faults_are_bound_to_items_and_attempts(hub: Hub) -> None:
    hub.misbehave({"key": "acme", "attempts": [2], "status": 429, "retry_after": "7"})
    assert post(hub, "tenant", {"id": "acme"}).status_code == 200
    second = post(hub, "tenant", {"id": "acme"})
    assert (second.status_code, second.headers["Retry-After"]) == (429, "7")
    assert post(hub, "tenant", {"id": "acme"}).status_code == 200
    assert [request["attempt"] for request in hub.requests("acme")] == [1, 2, 3]


def test_a_dropped_connection(hub: Hub) -> None:
    hub.misbehave({"drop": True, "after_store": True})
    with pytest.raises(httpx.RemoteProtocolError):
        post(hub, "tenant", {"id": "acme"})
    assert hub.stats()["stored"]["tenant"] == 1


def test_garbage_and_delays(hub: Hub) -> None:
    hub.misbehave({"key": "garbage", "garbage": True}, {"key": "slow", "delay_ms": 200})
    with pytest.raises(ValueError, match=r"utf-8|Expecting value"):
        post(hub, "tenant", {"id": "garbage"}).json()
    started = time.monotonic()
    assert post(hub, "tenant", {"id": "slow"}).status_code == 200
    assert time.monotonic() - started >= 0.2


def test_one_endpoint_breaks_and_the_others_do_not(hub: Hub) -> None:
    hub.misbehave({"entity_type": "client", "status": 500})
    assert statuses(hub, "client", "tenant", "client", "domain") == [500, 400, 500, 400]


def test_a_request_that_comes_too_early_is_refused(hub: Hub) -> None:
    hub.misbehave({"requests_per_second": RARELY})
    assert statuses(hub, "tenant", "tenant", "tenant") == [400, 503, 503]


def test_no_request_comes_too_early_for_a_high_limit(hub: Hub) -> None:
    hub.misbehave({"requests_per_second": OFTEN})
    assert statuses(hub, *["tenant"] * 20) == [400] * 20


def test_what_comes_too_early_gets_the_answer_that_it_is_told(hub: Hub) -> None:
    hub.misbehave(
        {"requests_per_second": RARELY, "status": 429, "code": "SLOW_DOWN", "retry_after": "7"}
    )
    first, second = post(hub, "tenant", {"id": "acme"}), post(hub, "tenant", {"id": "acme"})
    assert first.status_code == 200
    assert "Retry-After" not in first.headers
    assert refusal(second) == (429, "SLOW_DOWN")
    assert second.headers["Retry-After"] == "7"


def test_a_burst_passes_at_once(hub: Hub) -> None:
    hub.misbehave({"requests_per_second": RARELY, "burst": 2})
    assert statuses(hub, *["tenant"] * 5) == [400, 400, 400, 503, 503]


def test_a_limit_is_over_all_endpoints_or_for_one(hub: Hub) -> None:
    hub.misbehave({"requests_per_second": RARELY})
    assert statuses(hub, "tenant", "client") == [400, 503]
    hub.misbehave({"entity_type": "client", "requests_per_second": RARELY})
    assert statuses(hub, "client", "tenant", "client", "tenant") == [400, 400, 503, 400]


def test_a_limit_lets_through_to_the_faults_after_it(hub: Hub) -> None:
    hub.misbehave({"requests_per_second": RARELY, "burst": 1}, {"key": "acme", "status": 500})
    keys = ("acme", "other", "acme")
    assert [post(hub, "tenant", {"id": key}).status_code for key in keys] == [500, 200, 503]


def test_new_faults_and_a_reset_end_a_limit(hub: Hub) -> None:
    for _ in range(2):
        hub.misbehave({"requests_per_second": RARELY})
        assert statuses(hub, "tenant", "tenant") == [400, 503]
    hub.reset()
    assert statuses(hub, "tenant", "tenant") == [400, 400]


def test_requests_at_the_same_time_share_a_limit(hub: Hub) -> None:
    hub.misbehave({"requests_per_second": RARELY, "burst": 4})
    with ThreadPoolExecutor(8) as threads:
        responses = threads.map(lambda _: post(hub, "tenant", {}, timeout=300), range(24))
        assert Counter(r.status_code for r in responses) == {400: 5, 503: 19}


@pytest.mark.parametrize(
    ("coding", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_any_answer_is_compressed(
    hub: Hub, coding: str, decompress: Callable[[bytes], bytes]
) -> None:
    hub.misbehave(
        {"key": "refused", "code": "NOT_FOUND", "compress": coding},
        {"key": "bomb", "body_bytes": 10_000_000, "compress": coding},
        {"compress": coding},
    )
    bodies = {}
    with closing(HTTPConnection("127.0.0.1", hub.port)) as connection:
        for key in ("acme", "refused", "bomb"):
            response = post_over(connection, "tenant", {"id": key})
            assert response.getheader("Content-Encoding") == coding
            compressed = response.read()
            assert response.getheader("Content-Length") == str(len(compressed))
            assert len(compressed) < 100_000
            bodies[key] = decompress(compressed)
    assert len(bodies["bomb"]) == 10_000_000
    assert json.loads(bodies["acme"])["id"] == "acme"
    assert json.loads(bodies["refused"])["error"]["code"] == "NOT_FOUND"
    assert hub.stats()["stored"]["tenant"] == 1


@pytest.mark.parametrize("fault", [{}, {"status": 500}, {"text": ""}, {"compress": "gzip"}])
def test_a_connection_is_closed_without_a_word(hub: Hub, fault: dict[str, Any]) -> None:
    hub.misbehave({"key": "last", "close": True, **fault})
    with closing(HTTPConnection("127.0.0.1", hub.port)) as connection:
        post_over(connection, "tenant", {"id": "acme"}).read()
        response = post_over(connection, "tenant", {"id": "last"})
        response.read()
        assert response.getheader("Connection") is None
        assert not response.will_close
        assert connection.sock.recv(1) == b""


def test_headers_are_added_and_may_repeat(hub: Hub) -> None:
    headers = [["Retry-After", "1"], ["retry-after", "2"], ["Location", "/\xe4"]]
    hub.misbehave({"key": "moved", "status": 307, "headers": headers}, {"headers": headers})
    for key, status in (("moved", 307), ("acme", 200)):
        response = post(hub, "tenant", {"id": key})
        assert response.status_code == status
        assert response.headers.get_list("Retry-After") == ["1", "2"]
        assert (b"Location", b"/\xe4") in response.headers.raw
        assert response.headers.get_list("Content-Type") == ["application/json"]


def test_a_header_takes_the_place_of_the_usual_one(hub: Hub) -> None:
    hub.misbehave({"headers": [["content-type", "text/html"], ["Content-Length", "2"]]})
    with closing(HTTPConnection("127.0.0.1", hub.port)) as connection:
        response = post_over(connection, "tenant", {"id": "acme"})
        assert response.headers.get_all("Content-Type") == ["text/html"]
        assert response.headers.get_all("Content-Length") == ["2"]


@pytest.mark.parametrize("text", ["", "<p>Bad gateway</p>", '{"ok": true', "käse\n"])
def test_a_body_is_any_text(hub: Hub, text: str) -> None:
    hub.misbehave({"status": 502, "text": text})
    response = post(hub, "tenant", {"id": "acme"})
    assert (response.status_code, response.content) == (502, text.encode())


def test_an_answer_of_any_text_alone_is_a_success(hub: Hub) -> None:
    hub.misbehave({"text": "ok", "after_store": True})
    assert post(hub, "tenant", {"id": "acme"}).status_code == 200
    assert hub.stats()["stored"]["tenant"] == 1


@pytest.mark.parametrize(
    "fault", [{"colour": "red"}, {"requests_per_second": 0}, {"compress": "br"}]
)
def test_wrong_faults_are_refused(hub: Hub, fault: dict[str, Any]) -> None:
    response = http.put(f"{hub.base_url}/_hub/faults", json=[fault])
    assert refusal(response) == (400, "VALIDATION_ERROR")


def test_requests_in_flight_are_counted(hub: Hub) -> None:
    post(hub, "tenant", {"id": "acme"})
    stats = hub.stats()
    assert (stats["requests"], stats["in_flight"], stats["max_in_flight"]) == (1, 0, 1)


def test_two_bodies_under_one_request_id_are_told_apart(hub: Hub) -> None:
    for name in ("Acme", "Acme", "Other"):
        post(hub, "tenant", {"id": "acme", "name": name})
    first, same, other = [request["digest"] for request in hub.requests()]
    assert first == same != other


def test_a_client_that_has_left_before_the_answer_is_noted(hub: Hub) -> None:
    hub.misbehave({"key": "slow", "delay_ms": 300})
    with pytest.raises(httpx.ReadTimeout):
        post(hub, "tenant", {"id": "slow"}, timeout=0.1)
    post(hub, "tenant", {"id": "acme"}, request_id="a" * 32)
    wait_until(lambda: hub.stats()["in_flight"] == 0)
    assert {r["key"]: r["client_left"] for r in hub.requests()} == {"slow": True, "acme": False}


def test_a_hub_that_was_down_has_its_port_its_items_and_its_log(mongodb_uri: str) -> None:
    tenant = {"id": "acme", "name": "Acme"}
    with MongoClient[Any](mongodb_uri) as mongodb, httpx.Client(timeout=5) as client:
        hub = LocalHub(token=SecretStr(HUB_TOKEN), database=mongodb["hub_that_was_down"])
        with hub:
            base_url = hub.base_url
            client.get(f"{base_url}/_hub/stats")
            first = post(hub, "tenant", tenant)
        with pytest.raises(httpx.TransportError):
            client.get(f"{base_url}/_hub/stats")
        with hub:
            assert hub.base_url == base_url
            assert post(hub, "tenant", tenant).json() == first.json()
            assert [seen.attempt for seen in hub.log.requests()] == [1, 2]
            hub.reset()
