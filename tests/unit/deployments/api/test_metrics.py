"""Metrics for Prometheus, made of the audit trail's figures."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import generate_latest

from deployments.api.metrics import SyncMetrics
from tasks.entities import ENTITY_NAMES
from tasks.mongo_errors import MongoUnavailable
from tasks.trail.figures import Figures
from tasks.trail.item_history import ItemCounts, ItemHistory
from tasks.trail.run_sums import EntityFigures, RunSums
from tasks.trail.stages import RequestTimes, RunStatus, StageRecord


def item_history(**counts: ItemCounts) -> ItemHistory:
    """Return items that are counted so."""
    told = dict.fromkeys(ENTITY_NAMES, ItemCounts()) | counts
    return Mock(spec=ItemHistory, **{"counts.return_value": told})


def scraped(
    by_entity_type: dict[str, EntityFigures],
    *,
    running: Sequence[StageRecord] = (),
    durations: dict[str, float] | None = None,
    **counts: ItemCounts,
) -> dict[str, float]:
    """Return the samples of a scrape by name and labels."""
    figures = Mock(
        spec=Figures,
        **{
            "sum.return_value": RunSums(by_entity_type, {"partial": 2, "of another version": 1}),
            "running_stages.return_value": running,
            "last_durations.return_value": durations or {},
        },
    )
    lines = generate_latest(SyncMetrics(figures, item_history(**counts))).decode().splitlines()
    samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def test_figures_become_samples() -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    items = {"success": 3, "failed": 1, "skipped": 2, "unchanged": 4}
    requests = RequestTimes.of([4.0, 4.5, 300.0, 20_000.0])
    samples = scraped({"tenant": EntityFigures(items, requests, an_hour_ago)})
    of_tenants = {
        f'admin_sync_items_total{{entity_type="tenant",outcome="{outcome}"}}': count
        for outcome, count in items.items()
    }
    assert samples.items() >= of_tenants.items()
    assert samples['admin_sync_hub_requests_total{entity_type="tenant"}'] == 4
    seconds = 'admin_sync_hub_request_seconds_{}{{entity_type="tenant"{}}}'
    assert samples[seconds.format("sum", "")] == pytest.approx(20.3085)
    assert samples[seconds.format("count", "")] == 4
    for bound, requests_so_far in {"0.005": 2, "0.25": 2, "0.5": 3, "10": 3, "+Inf": 4}.items():
        assert samples[seconds.format("bucket", f',le="{bound}"')] == requests_so_far
    age = samples['admin_sync_last_success_age_seconds{entity_type="tenant"}']
    assert age == pytest.approx(3_600, abs=60)


def test_what_never_happened_is_zero_and_a_success_that_never_was_has_no_age() -> None:
    samples = scraped({})
    for entity_type in ENTITY_NAMES:
        assert samples[f'admin_sync_hub_requests_total{{entity_type="{entity_type}"}}'] == 0
    runs = {name: value for name, value in samples.items() if "admin_sync_runs" in name}
    assert runs == {
        f'admin_sync_runs{{status="{status}"}}': 2 if status == "partial" else 0
        for status in RunStatus
    }
    assert not [name for name in samples if "age_seconds" in name]


def test_items_are_told_as_they_are_now() -> None:
    samples = scraped({}, domain=ItemCounts(not_in=3, gone=2))
    for entity_type in ENTITY_NAMES:
        not_in, gone = (3, 2) if entity_type == "domain" else (0, 0)
        assert samples[f'admin_sync_items_not_in{{entity_type="{entity_type}"}}'] == not_in
        assert samples[f'admin_sync_items_gone{{entity_type="{entity_type}"}}'] == gone


def test_only_what_is_held_has_a_pace() -> None:
    running = [stage("tenant", pace=18.5), stage("client", pace=0.0), stage("domain")]
    samples = scraped({}, running=running)
    paces = {name: value for name, value in samples.items() if "pace" in name}
    assert paces == {
        'admin_sync_pace{entity_type="tenant"}': 18.5,
        'admin_sync_pace{entity_type="client"}': 0.0,
    }


def stage(entity_type: str, **fields: Any) -> StageRecord:
    """Return a stage that runs."""
    return StageRecord(entity_type=entity_type, **{"status": RunStatus.RUNNING, **fields})


def test_the_items_of_a_running_sync_are_told_and_those_that_wait_because_of_its_pace() -> None:
    running = [
        stage("tenant", status=RunStatus.SUCCESS, total=9, success=9, pace=1.0),
        stage("client", total=100, success=40, failed=3, skipped=7, retrying=5, pace=0.0),
        stage("client", total=1, success=1),
        stage("domain", total=5),
    ]
    samples = scraped({}, running=running)
    for name, told in {
        "running_items": {"tenant": 9, "client": 101, "domain": 5},
        "running_items_done": {"tenant": 9, "client": 51},
        "items_waiting": {"client": 50},
    }.items():
        for entity_type in ENTITY_NAMES:
            sample = f'admin_sync_{name}{{entity_type="{entity_type}"}}'
            assert samples[sample] == told.get(entity_type, 0), sample


def test_the_last_run_of_each_mode_has_a_duration() -> None:
    samples = scraped({}, durations={"changed": 12.5, "full": 340.0})
    told = {name: value for name, value in samples.items() if "duration" in name}
    assert told == {
        'admin_sync_last_run_duration_seconds{mode="changed"}': 12.5,
        'admin_sync_last_run_duration_seconds{mode="full"}': 340,
    }
    assert not [name for name in scraped({}) if "duration" in name]


def test_a_mongodb_that_is_away_is_no_zero() -> None:
    figures = Mock(spec=Figures, **{"sum.side_effect": MongoUnavailable("away")})
    with pytest.raises(MongoUnavailable):
        generate_latest(SyncMetrics(figures, item_history()))
