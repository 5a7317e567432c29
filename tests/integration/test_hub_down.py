"""Stage 1 is down, or half down: it is not hammered, nothing is lost, and the trail says why."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.local.hub import upsert_urls
from tests.integration.world import SyncRun, World, started_hub, wait_until

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


def sync_while(world: World, event: Callable[[], None]) -> SyncRun:
    """Sync the tenants in this thread, and let something happen in another one."""
    with ThreadPoolExecutor(1) as elsewhere:
        happening = elsewhere.submit(event)
        run = world.sync(entities=["tenant"])
        happening.result()
    return run


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

    run = sync_while(world, come_back)

    refused = [request for request in world.hub.requests() if request["status"] == 503]
    outage = refused[-1]["received_at"] - refused[0]["received_at"]
    assert outage >= (PROBES - 1) * PROBE_SECONDS
    assert len(refused) <= FAILURES + CONCURRENCY - 1 + outage / PROBE_SECONDS
    assert_each_is_in_with_one_step(run, keys)
    assert sum(step["attempts"] for step in run.steps) == len(world.hub.requests())


@pytest.mark.parametrize("max_task_runs", ["10", "100"])
def test_a_hub_that_stays_down_stops_the_run_and_the_next_one_catches_up(
    world: World, max_task_runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", max_task_runs)
    monkeypatch.setenv("ADMIN_BREAKER_LIMIT_MS", str(int(8 * PROBE_SECONDS * 1000)))
    world.add_seed()
    world.add_tenants(60)
    world.hub.misbehave({"status": 503})
    run = world.sync()

    assert run.state.name == "Stopped"
    assert run.state.message.startswith("Stopped by HUB_UNAVAILABLE: Stage 1 was down for ")
    assert "the last failure SERVER_ERROR: " in run.state.message
    assert run.document["status"] == "failed"
    requests = world.hub.requests()
    tried = {request["key"] for request in requests}
    assert FAILURES < len(requests) < FAILURES + CONCURRENCY + 10
    codes = {key: "SERVER_ERROR" if key in tried else "HUB_UNAVAILABLE" for key in run.codes()}
    assert run.codes() == codes
    assert sum(step["attempts"] for step in run.steps) == len(requests)
    states = {"SERVER_ERROR": "Failed", "HUB_UNAVAILABLE": "Skipped"}
    assert all(step["state"] == states[step["error"]["code"]] for step in run.steps)
    skipped = [step for step in run.steps if step["state"] == "Skipped"]
    assert {step["entity_type"] for step in skipped} == {
        stage["entity_type"] for stage in run.document["stages"]
    }
    assert all(step["error"]["class"] == "skipped" for step in skipped)
    assert run.document["totals"] == {
        "total": 65,
        "success": 0,
        "failed": len(tried),
        "skipped": 65 - len(tried),
    }

    world.hub.reset()
    caught_up = world.sync(mode="changed")
    assert caught_up.document["totals"] == {"total": 65, "success": 65, "failed": 0, "skipped": 0}


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
        for variable, url in upsert_urls(hub.base_url).items():
            monkeypatch.setenv(variable, url)

        def restart() -> None:
            wait_until(lambda: len(hub.requests()) >= 10)
            hub.kill()
            time.sleep(1)
            hubs.enter_context(started_hub(mongodb_uri, log_path, hub.port))

        run = sync_while(world, restart)

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
    world.hub.misbehave({"attempts": [1, 2, 3], "status": 503})

    run = world.sync(entities=["tenant"])

    assert run.document["totals"]["success"] == len(keys)
    assert {step["attempts"] for step in run.steps} == {4}
    assert len(world.hub.requests()) == 4 * len(keys)
