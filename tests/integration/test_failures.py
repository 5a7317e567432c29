"""Each row of the error table, as the hub saw it and as the trail tells it."""

from itertools import pairwise
from typing import Any

import pytest

from tasks.entities import ENTITY_NAMES
from tests.integration.world import World

RETRY_MAX = 2
CONCURRENCY = 4
BASE_DELAY = 0.4
TIMEOUT_MS = 5000
"""Far more than an answer takes, on a busy machine too."""


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("ADMIN_RETRY_MAX", str(RETRY_MAX))
    monkeypatch.setenv("ADMIN_RETRY_BASE_DELAY_MS", str(int(BASE_DELAY * 1000)))
    monkeypatch.setenv("ADMIN_TIMEOUT_MS", str(TIMEOUT_MS))
    # One item's failures are looked at here, not what a row of them does to all senders.
    monkeypatch.setenv("ADMIN_BREAKER_FAILURES", "1000")
    return world


def gaps(world: World, key: str) -> list[float]:
    """Seconds from each answer to the next request for the item."""
    requests = world.hub.requests(key)
    return [
        later["received_at"] - (earlier["answered_at"] or earlier["received_at"])
        for earlier, later in pairwise(requests)
    ]


TRANSIENT: dict[str, tuple[dict[str, Any], str]] = {
    "http-500": ({"status": 500}, "SERVER_ERROR"),
    "http-408": ({"status": 408}, "HTTP_408"),
    "http-425": ({"status": 425}, "HTTP_425"),
    "http-504-unknown-code": ({"status": 504, "code": "NEW"}, "SERVER_ERROR"),
    "code-timeout": ({"code": "TIMEOUT"}, "TIMEOUT"),
    "code-connection-error": ({"code": "CONNECTION_ERROR"}, "CONNECTION_ERROR"),
    "code-server-error": ({"code": "SERVER_ERROR"}, "SERVER_ERROR"),
    "code-unavailable": ({"code": "TEMPORARY_UNAVAILABLE"}, "TEMPORARY_UNAVAILABLE"),
    "transient-code-with-4xx": ({"status": 400, "code": "SERVER_ERROR"}, "SERVER_ERROR"),
    "no-answer": ({"delay_ms": TIMEOUT_MS + 1000}, "TIMEOUT"),
    "dropped": ({"drop": True}, "CONNECTION_ERROR"),
    "garbage-502": ({"garbage": True, "status": 502}, "SERVER_ERROR"),
}
PERMANENT: dict[str, tuple[dict[str, Any], str]] = {
    "code-not-found": ({"code": "NOT_FOUND"}, "NOT_FOUND"),
    "code-validation": ({"status": 400, "code": "VALIDATION_ERROR"}, "VALIDATION_ERROR"),
    "code-unknown": ({"code": "NEW"}, "NEW"),
    "known-code-with-5xx": ({"status": 500, "code": "NOT_FOUND"}, "NOT_FOUND"),
    "http-404": ({"status": 404}, "HTTP_404"),
    "http-409": ({"status": 409, "code": "NEW"}, "HTTP_409"),
    "garbage": ({"garbage": True}, "UNEXPECTED_RESPONSE"),
    "no-ok": ({"body": {"id": "x"}}, "UNEXPECTED_RESPONSE"),
    "not-an-object": ({"body": [1]}, "UNEXPECTED_RESPONSE"),
}


def add(world: World, *keys: str) -> None:
    world.add("tenant", *({"id": key, "name": key, "version": 1} for key in keys))


def test_transient_failures_are_retried_up_to_the_limit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", str(len(TRANSIENT)))
    add(world, *TRANSIENT)
    world.hub.misbehave(*({"key": key, **fault} for key, (fault, _) in TRANSIENT.items()))
    run = world.sync(entities=["tenant"])

    assert run.codes() == {key: code for key, (_, code) in TRANSIENT.items()}
    for step in run.steps:
        assert (step["attempts"], step["state"]) == (1 + RETRY_MAX, "Failed")
        assert step["error"]["class"] == "transient"
    for key in TRANSIENT.keys() - {"dropped"}:
        assert [request["attempt"] for request in world.hub.requests(key)] == [1, 2, 3]
    # A connection that others have used may be stale: then it is sent again at once.
    assert 3 <= len(world.hub.requests("dropped")) <= 6


def test_retries_back_off_exponentially_with_jitter(world: World) -> None:
    add(world, "back-off")
    world.hub.misbehave({"key": "back-off", "status": 500})
    world.sync(entities=["tenant"])
    first, second = gaps(world, "back-off")
    overhead = 10  # on a busy machine; the delays themselves are in the unit tests
    assert 0.3 * BASE_DELAY <= first <= 1.3 * BASE_DELAY + overhead
    assert 0.3 * 2 * BASE_DELAY <= second <= 1.3 * 2 * BASE_DELAY + overhead


def test_what_passes_is_in_after_the_retry(world: World) -> None:
    add(world, "passing", "fine")
    world.hub.misbehave({"key": "passing", "attempts": [1, 2], "status": 502})
    run = world.sync(entities=["tenant"])
    step = run.step("passing")
    assert run.document["status"] == "success"
    assert (step["ok"], step["state"], step["attempts"]) == (True, "Completed", 3)
    assert step["error"] is None
    assert len(world.hub.requests("fine")) == 1


def test_an_answer_that_got_lost_is_sent_again_under_the_same_request_id(world: World) -> None:
    add(world, "lost-answer")
    world.hub.misbehave({"key": "lost-answer", "attempts": [1], "drop": True, "after_store": True})
    run = world.sync(entities=["tenant"])
    first, second = world.hub.requests("lost-answer")
    assert first["request_id"] == second["request_id"] == run.step("lost-answer")["request_id"]
    assert world.hub.stats()["stored"]["tenant"] == 1


def test_permanent_failures_are_never_retried(world: World) -> None:
    add(world, *PERMANENT)
    world.hub.misbehave(
        *({"key": key, "message": "no", **fault} for key, (fault, _) in PERMANENT.items())
    )
    run = world.sync(entities=["tenant"])
    assert run.codes() == {key: code for key, (_, code) in PERMANENT.items()}
    for step in run.steps:
        assert (step["attempts"], step["error"]["class"]) == (1, "permanent")
    assert len(world.hub.requests()) == len(PERMANENT)


@pytest.mark.parametrize(
    "refusal",
    [
        {"status": 429},
        {"status": 503},
        {"status": 500, "code": "NEW"},
        {"status": 200, "code": "TEMPORARY_UNAVAILABLE"},
    ],
    ids=lambda refusal: "-".join(map(str, refusal.values())),
)
def test_retry_after_is_honoured_by_all_senders(
    world: World, refusal: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", str(CONCURRENCY))
    keys = world.add_tenants(12)
    fault = {"key": keys[0], "attempts": [1], "retry_after": "2", **refusal}
    world.hub.misbehave(fault, {"delay_ms": 400})
    run = world.sync(entities=["tenant"])
    assert run.document["status"] == "success"
    throttled = world.hub.requests(keys[0])
    assert len(throttled) == 2
    assert throttled[1]["received_at"] - throttled[0]["answered_at"] >= 1.9
    answered = throttled[0]["answered_at"]
    soon = [r for r in world.hub.requests() if answered < r["received_at"] < answered + 1.9]
    assert len(soon) < CONCURRENCY, "not only those came that were on their way"


def test_a_long_retry_after_is_capped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_RETRY_AFTER_MAX_MS", "700")
    add(world, "patient")
    world.hub.misbehave({"attempts": [1], "status": 429, "retry_after": "86400"})
    run = world.sync(entities=["tenant"])
    assert run.document["status"] == "success"


@pytest.mark.parametrize("code", ["INVALID_TOKEN", "MISSING_AUTH"])
def test_a_run_stopping_error_stops_all_sending(
    world: World, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", str(CONCURRENCY))
    world.add_seed()
    keys = world.add_tenants(40)
    stopping = {"key": keys[10], "code": code}
    world.hub.misbehave(stopping, {"delay_ms": 200})
    run = world.sync()

    (stopped_at,) = [r["answered_at"] for r in world.hub.requests(keys[10])]
    late = [r for r in world.hub.requests() if r["received_at"] > stopped_at]
    assert len(late) < CONCURRENCY

    assert run.state.name == "Stopped"
    assert f"Stopped by {code} at tenant {keys[10]}: " in run.state.message
    assert run.document["status"] == "failed"
    assert {stage["status"] for stage in run.document["stages"]} == {"failed"}
    totals = run.document["totals"]
    assert totals["total"] == len(run.steps) == 45
    assert totals["failed"] == 1
    assert totals["success"] == len(world.hub.requests()) - 1
    skipped = [step for step in run.steps if step["state"] == "Skipped"]
    assert len(skipped) == totals["skipped"] > 0
    for step in skipped:
        assert (step["ok"], step["attempts"]) == (False, 0)
        assert (step["error"]["code"], step["error"]["class"]) == ("RUN_STOPPED", "skipped")
        assert code in step["error"]["message"]
    sent = {r["key"] for r in world.hub.requests()}
    assert sent.isdisjoint(step["natural_key"] for step in skipped)


FIREWALL = {"status": 403, "text": "<html><title>403 Forbidden</title></html>"}


def test_a_firewall_that_refuses_one_content_fails_one_item_in_each_run(world: World) -> None:
    world.add_seed()
    keys = world.add_tenants(20)
    world.hub.misbehave({"key": keys[10], **FIREWALL})
    for mode in ("full", "changed"):
        run = world.sync(mode=mode)
        assert (run.document["status"], run.state.name) == ("partial", "Partial")
        (refused,) = [step for step in run.steps if not step["ok"]]
        assert (refused["natural_key"], refused["attempts"]) == (keys[10], 1)
        assert refused["error"] == {
            "code": "HTTP_403",
            "message": "HTTP 403: 403 Forbidden",
            "class": "permanent",
        }
        assert {stage["entity_type"]: stage["failed"] for stage in run.document["stages"]} == {
            **dict.fromkeys(ENTITY_NAMES, 0),
            "tenant": 1,
        }


@pytest.mark.parametrize("accepted", [0, 5])
def test_a_refusal_of_everything_stops_the_run(world: World, accepted: int) -> None:
    keys = world.add_tenants(20)
    world.hub.misbehave(*({"key": key, **FIREWALL} for key in keys[accepted:]))
    run = world.sync(entities=["tenant"])
    assert run.state.name == "Stopped"
    refused = len(world.hub.requests()) - run.document["totals"]["success"]
    assert run.document["totals"]["failed"] == refused
    assert refused <= (3 if accepted else 1) + CONCURRENCY - 1
    assert run.document["totals"]["skipped"] > 0


def test_a_wrong_token_is_told_by_the_hub_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_seed()
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", "not-the-token")
    run = world.sync()
    assert run.state.name == "Stopped"
    assert "INVALID_TOKEN" in run.state.message
    assert run.document["totals"] == {"total": 5, "success": 0, "failed": 1, "skipped": 4}


def test_source_documents_that_can_not_be_sent(world: World) -> None:
    world.add_seed()
    world.add(
        "tenant",
        {"_id": "no-name", "id": "no-name", "version": 1},
        {"_id": "no-key", "name": "x", "version": 1},
        {"_id": "bad-version", "id": "bad-version", "name": "x", "version": "1"},
        {"_id": {"odd": "id"}, "id": "odd-id", "name": "x", "version": 1},
    )
    run = world.sync()
    by_source = {str(step["source_id"]): step for step in run.steps}
    for source_id in ("no-name", "no-key", "bad-version"):
        step = by_source[source_id]
        assert (step["error"]["code"], step["state"]) == ("VALIDATION_ERROR", "Failed")
        assert step["attempts"] == 0
    assert by_source["no-key"]["natural_key"] is None
    assert run.step("odd-id")["ok"] is True
    assert run.document["totals"] == {"total": 9, "success": 6, "failed": 3, "skipped": 0}
    assert len(world.hub.requests()) == 6


@pytest.mark.parametrize("max_task_runs", ["100", "2"])
def test_of_documents_with_one_key_the_highest_version_wins(
    world: World, max_task_runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", max_task_runs)
    world.add(
        "tenant",
        {"_id": 1, "id": "twin", "name": "old", "version": 2},
        {"_id": 2, "id": "twin", "name": "new", "version": 10},
        {"_id": 3, "id": "twin", "name": "older", "version": 1},
        {"_id": 4, "id": "tied", "name": "first", "version": 1},
        {"_id": 5, "id": "tied", "name": "second", "version": 1},
        {"_id": 6, "id": "single", "name": "single", "version": 1},
    )
    run = world.sync(entities=["tenant"])
    codes = {step["source_id"]: step["error"] and step["error"]["code"] for step in run.steps}
    duplicate = "DUPLICATE_KEY"
    assert codes == {1: duplicate, 2: None, 3: duplicate, 4: None, 5: duplicate, 6: None}
    assert sorted(request["key"] for request in world.hub.requests()) == ["single", "tied", "twin"]
    assert run.document["totals"] == {"total": 6, "success": 3, "failed": 3, "skipped": 0}
    assert run.document["status"] == "partial"


def test_wrong_settings_stop_the_run_before_anything_is_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_seed()
    monkeypatch.delenv("ADMIN_SYNC_TOKEN")
    monkeypatch.setenv("ADMIN_CONCURRENCY", "many")
    run = world.sync()
    assert run.state.is_failed()
    for text in (run.state.message, run.document["message"]):
        assert "ADMIN_SYNC_TOKEN is missing" in text
        assert "ADMIN_CONCURRENCY" in text
    assert run.document["status"] == "failed"
    assert world.hub.requests() == []
