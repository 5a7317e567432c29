"""What Prometheus scrapes equals what the audit trail says, item by item."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from deployments.api.app import create_app
from tasks.entities import ENTITY_NAMES
from tasks.settings import read_api_settings, read_mongo_settings
from tests.integration.world import HUB_TOKEN, Document, SyncRun, World, stage_runs, task_runs

TOKEN = "metrics-test-token-c2b7"
RUNNING = ("running_items", "running_items_done", "items_waiting")

Samples = dict[tuple[str, ...], float]
"""Values by name and label values, in the order of the labels' names."""


@dataclass(frozen=True)
class Api:
    """The API as an application of this process."""

    app: FastAPI

    def metrics(self, token: str = TOKEN) -> httpx.Response:
        return asyncio.run(self._get("/api/metrics", token))

    async def _get(self, path: str, token: str) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.get(path, headers={"Authorization": f"Bearer {token}"})


def api_of_this_process(monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("ADMIN_API_TOKEN", TOKEN)
    return Api(create_app(read_api_settings(), read_mongo_settings()))


@pytest.fixture
def api(world: World, monkeypatch: pytest.MonkeyPatch) -> Api:
    assert world.database_name
    return api_of_this_process(monkeypatch)


def scraped(api: Api) -> str:
    answer = api.metrics()
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return answer.text


def samples_of(text: str) -> Samples:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def outcome_of(step: Document) -> str:
    if step["ok"]:
        return "success"
    return "skipped" if step["error"]["class"] == "skipped" else "failed"


def test_a_scrape_says_what_the_steps_say(world: World, api: Api) -> None:
    world.add_seed()
    world.add_tenants(20)
    world.add("client", *({"id": f"c{n}", "name": "C", "redirect_uris": []} for n in range(120)))
    world.add("client", {"id": "no name"})
    world.hub.misbehave(
        {"key": "tenant-0003", "code": "NOT_FOUND"},
        {"key": "tenant-0004", "attempts": [1, 2], "status": 500},
        {"entity_type": "client", "key": "c7", "delay_ms": 60},
        {"entity_type": "branding", "code": "INVALID_TOKEN"},
    )
    stopped = world.sync()
    world.hub.misbehave()
    again = world.sync(mode="changed", entities=["tenant"])
    world.sync(dry_run=True)

    samples = samples_of(text := scraped(api))

    steps = [*stopped.steps, *again.steps]
    assert {outcome_of(step) for step in steps} == {"success", "failed"}
    for entity_type in ENTITY_NAMES:
        of_type = [step for step in steps if step["entity_type"] == entity_type]
        assert_items_are_those(of_type, entity_type, samples)
        assert_requests_are_those(of_type, entity_type, samples)
    assert samples["admin_sync_items_total", "tenant", "unchanged"] == 20
    assert samples["admin_sync_hub_requests_total", "tenant"] == 21 + 2 + 1
    assert_histogram_is_that([s for s in steps if s["entity_type"] == "client"], "client", samples)

    aged = {name[1] for name in samples if name[0] == "admin_sync_last_success_age_seconds"}
    assert aged == {"tenant", "subtenant", "domain"}
    assert 0 < samples["admin_sync_last_success_age_seconds", "tenant"] < 3600
    runs = Counter(run["status"] for run in world.database.sync_runs.find())
    assert {n[1]: v for n, v in samples.items() if n[0] == "admin_sync_runs" and v} == runs

    assert samples["admin_sync_last_run_duration_seconds", "full"] == run_seconds(stopped)
    assert samples["admin_sync_last_run_duration_seconds", "changed"] == run_seconds(again)
    assert {samples[f"admin_sync_{name}", "tenant"] for name in RUNNING} == {0}

    for secret in (HUB_TOKEN, TOKEN, world.hub.base_url, "tenant-0003", "regnum-christi"):
        assert secret not in text


def run_seconds(run: SyncRun) -> float:
    took: timedelta = run.document["finished_at"] - run.document["started_at"]
    return took.total_seconds()


def assert_items_are_those(steps: list[Document], entity_type: str, samples: Samples) -> None:
    counted = Counter(outcome_of(step) for step in steps)
    for outcome in ("success", "failed", "skipped"):
        assert samples["admin_sync_items_total", entity_type, outcome] == counted[outcome]


def assert_requests_are_those(steps: list[Document], entity_type: str, samples: Samples) -> None:
    attempts = sum(step["attempts"] for step in steps)
    assert samples["admin_sync_hub_requests_total", entity_type] == attempts
    assert samples["admin_sync_hub_request_seconds_count", entity_type] == attempts


def assert_histogram_is_that(steps: list[Document], entity_type: str, samples: Samples) -> None:
    """Steps know the duration of their last request only: here it is their only one."""
    durations = [step["duration_ms"] / 1000 for step in steps if step["attempts"]]
    assert max(step["attempts"] for step in steps) == 1
    name = "admin_sync_hub_request_seconds"
    buckets = {
        float(labels[2]): told
        for labels, told in samples.items()
        if labels[:2] == (f"{name}_bucket", entity_type)
    }
    assert len(buckets) == 12
    for bound, told in buckets.items():
        assert told == sum(seconds <= bound for seconds in durations)
    assert samples[f"{name}_sum", entity_type] == pytest.approx(sum(durations))


def test_an_empty_trail_tells_zeros(api: Api) -> None:
    samples = samples_of(scraped(api))
    assert set(samples.values()) == {0}
    assert samples["admin_sync_items_total", "domain", "failed"] == 0
    assert samples["admin_sync_runs", "crashed"] == 0


def test_runs_of_earlier_versions_count_too(world: World, api: Api) -> None:
    ended = datetime(2024, 1, 1, tzinfo=UTC)
    stage = {"entity_type": "tenant", "status": "success", "success": 3, "failed": 0, "skipped": 0}
    world.database.sync_runs.insert_one(
        {"status": "success", "stages": [{**stage, "finished_at": ended}]}
    )
    samples = samples_of(scraped(api))
    assert samples["admin_sync_items_total", "tenant", "success"] == 3
    assert samples["admin_sync_items_total", "tenant", "unchanged"] == 0
    assert samples["admin_sync_hub_requests_total", "tenant"] == 0
    assert samples["admin_sync_hub_request_seconds_bucket", "tenant", "+Inf"] == 0
    assert samples["admin_sync_last_success_age_seconds", "tenant"] > 86_400


def test_items_are_told_as_they_are_now(world: World, api: Api) -> None:
    keys = world.add_tenants(4)
    world.hub.misbehave(*({"key": key, "code": "NOT_FOUND"} for key in keys[:2]))
    world.sync(entities=["tenant"])
    assert items_of(api, "not_in") == {**dict.fromkeys(ENTITY_NAMES, 0), "tenant": 2}

    world.hub.misbehave()
    world.database.source_tenants.delete_one({"id": keys[3]})
    world.sync(entities=["tenant"])
    assert items_of(api, "not_in") == dict.fromkeys(ENTITY_NAMES, 0)
    assert items_of(api, "gone") == {**dict.fromkeys(ENTITY_NAMES, 0), "tenant": 1}

    world.sync(entities=["tenant"], disable_gone=True)
    assert items_of(api, "gone") == dict.fromkeys(ENTITY_NAMES, 0)


def items_of(api: Api, what: str) -> dict[str, float]:
    name = f"admin_sync_items_{what}"
    return {
        labels[1]: told for labels, told in samples_of(scraped(api)).items() if labels[0] == name
    }


def test_metrics_ask_for_the_token(api: Api) -> None:
    assert api.metrics(token="wrong").status_code == 401


def test_mongodb_away_is_told_and_not_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    away = "mongodb://user:marked@127.0.0.1:9/?serverSelectionTimeoutMS=300"
    monkeypatch.setenv("MONGODB_URI", away)
    answer = api_of_this_process(monkeypatch).metrics()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "UNAVAILABLE"
    assert "marked" not in answer.text


def test_requests_that_can_not_be_counted_fail_nothing(world: World, api: Api) -> None:
    uncounted = {"stages.requests": {"$exists": False}}
    world.database.create_collection("sync_runs", validator=uncounted)
    world.add_seed()
    run = world.sync(entities=["tenant"])
    (stage,) = stage_runs(run.document["flow_run_id"])
    (batch,) = task_runs(stage, expected=1)
    assert (run.document["status"], batch.state_name) == ("success", "Completed")
    samples = samples_of(scraped(api))
    assert samples["admin_sync_items_total", "tenant", "success"] == 1
    assert samples["admin_sync_hub_requests_total", "tenant"] == 0
