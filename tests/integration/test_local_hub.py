"""The local hub keeps the contract of Stage 1, so a test that passes against it means something."""

import time
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from scripts.local.hub import LocalHub, upsert_path
from tasks.entities import entity_type_named
from tests.integration.world import HUB_TOKEN, Hub, http, wait_until

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


def test_wrong_faults_are_refused(hub: Hub) -> None:
    response = http.put(f"{hub.base_url}/_hub/faults", json=[{"colour": "red"}])
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
