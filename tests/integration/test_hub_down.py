"""Stage 1 is down, or half down: it is not hammered, nothing is lost, and the trail says why."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.local.hub import upsert_urls
from tests.integration.world import SyncRun, World, set_all, stage_runs, started_hub, wait_until

CONCURRENCY = 3
FAILURES = 5
PROBE_SECONDS = 0.2
PROBES = 6


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("ADMIN_CONCURRENCY", str(CONCURRENCY))
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "10")
    monkeypatch.setenv("ADMIN_BREAKER_FAILURES", str(FAILURES))
    monkeypatch.setenv("ADMIN_BREAKER_PROBE_MS", str(int(PROBE_SECONDS * 1000)))
    return world


def assert_each_is_in_with_one_step(run: SyncRun, keys: list[str]) -> None:
    assert run.document["status"] == "success"
    assert sorted(step["natural_key"] for step in run.steps) == keys
    assert all(step["ok"] for step in run.steps)
    assert run.document["totals"]["success"] == len(keys)


def test_an_outage_sees_probes_only_and_then_everything_gets_in(world: World) -> None:
    keys = world.add_tenants(60)
    world.hub.misbehave({"status": 503})

    def come_back() -> None:
        wait_until(lambda: len(world.hub.requests()) >= FAILURES + CONCURRENCY - 1 + PROBES)
        world.hub.misbehave()

    run = world.sync_tenants_while(come_back)

    refused = [request for request in world.hub.requests() if request["status"] == 503]
    outage = refused[-1]["received_at"] - refused[0]["received_at"]
    assert outage >= (PROBES - 1) * PROBE_SECONDS
    assert len(refused) <= FAILURES + CONCURRENCY - 1 + outage / PROBE_SECONDS
    assert_each_is_in_with_one_step(run, keys)
    assert sum(step["attempts"] for step in run.steps) == len(world.hub.requests())


@pytest.mark.parametrize("max_task_runs", ["10", "100"])
def test_an_endpoint_that_stays_down_ends_its_stage_and_the_others_go_on(
    world: World, max_task_runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", max_task_runs)
    monkeypatch.setenv("ADMIN_BREAKER_LIMIT_MS", str(int(8 * PROBE_SECONDS * 1000)))
    world.add_seed()
    clients = [f"client-{number:02}" for number in range(24)]
    world.add(
        "client", *({"id": key, "name": key, "redirect_uris": [], "version": 1} for key in clients)
    )
    world.hub.misbehave({"entity_type": "client", "status": 500})
    run = world.sync()

    assert (run.document["status"], run.state.name) == ("partial", "Partial")
    assert {stage["entity_type"]: stage["status"] for stage in run.document["stages"]} == {
        "tenant": "success",
        "client": "failed",
        "subtenant": "success",
        "domain": "failed",
        "branding": "success",
    }
    assert run.step("pagos.semperaltius.edu.mx")["error"]["code"] == "NOT_FOUND"
    stage = stage_runs(run.document["flow_run_id"])[1]
    assert stage.state is not None
    assert stage.state.name == "Stopped"
    down = "Stopped by HUB_UNAVAILABLE: ADMIN_CLIENTS_UPSERT_URL was down for "
    assert (stage.state.message or "").startswith(down)
    assert "the last failure SERVER_ERROR: HTTP 500 " in (stage.state.message or "")

    tried = {request["key"] for request in world.hub.requests() if request["status"] == 500}
    of_clients = [step for step in run.steps if step["entity_type"] == "client"]
    assert FAILURES < sum(step["attempts"] for step in of_clients) < FAILURES + CONCURRENCY + 10
    assert {step["natural_key"]: step["error"]["code"] for step in of_clients} == {
        key: "SERVER_ERROR" if key in tried else "HUB_UNAVAILABLE"
        for key in [*clients, "semperaltius"]
    }
    states = {"SERVER_ERROR": "Failed", "HUB_UNAVAILABLE": "Skipped"}
    assert all(step["state"] == states[step["error"]["code"]] for step in of_clients)
    skipped = [step for step in of_clients if step["state"] == "Skipped"]
    assert all(step["error"]["class"] == "skipped" for step in skipped)
    assert run.document["totals"] == {
        "total": 29,
        "success": 3,
        "failed": len(tried) + 1,
        "skipped": len(skipped),
    }

    world.hub.misbehave()
    caught_up = world.sync(mode="changed")
    assert caught_up.document["status"] == "success"
    assert sorted(world.held("client")) == sorted([*clients, "semperaltius"])


def test_a_hub_that_is_killed_and_comes_back_on_the_same_port(
    world: World, mongodb_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hub takes seconds to start where others are busy, and each probe is one item's failure.
    monkeypatch.setenv("ADMIN_BREAKER_PROBE_MS", "1000")
    keys = world.add_tenants(60)
    log_path = tmp_path / "hub.log"
    with ExitStack() as hubs:
        hub = hubs.enter_context(started_hub(mongodb_uri, log_path))
        hub.misbehave({"delay_ms": 100})
        set_all(monkeypatch, upsert_urls(hub.base_url))

        def restart() -> None:
            wait_until(lambda: len(hub.requests()) >= 10)
            hub.kill()
            time.sleep(1)
            hubs.enter_context(started_hub(mongodb_uri, log_path, hub.port))

        run = world.sync_tenants_while(restart)

        assert_each_is_in_with_one_step(run, keys)
        assert hub.stats()["stored"]["tenant"] == len(keys)
        tried_again = [step for step in run.steps if step["attempts"] > 1]
        assert FAILURES <= len(tried_again) < len(keys) - 10


def test_each_item_is_retried_as_often_as_configured_however_many_fail(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", "8")
    monkeypatch.setenv("ADMIN_RETRY_MAX", "3")
    monkeypatch.setenv("ADMIN_BREAKER_FAILURES", "1000")
    keys = world.add_tenants(60)
    world.hub.misbehave({"attempts": [1, 2, 3], "status": 500})

    run = world.sync(entities=["tenant"])

    assert run.document["totals"]["success"] == len(keys)
    assert {step["attempts"] for step in run.steps} == {4}
    assert len(world.hub.requests()) == 4 * len(keys)
