"""`GET /api/metrics` for Prometheus: the audit trail in figures, computed at each scrape."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import accumulate
from typing import Final

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from deployments.api.dependencies import SyncFigures, SyncItems
from deployments.api.errors import UNAUTHORIZED, UNAVAILABLE, Responses, error_responses
from deployments.api.syncs import BEARER
from tasks.entities import ENTITY_NAMES
from tasks.trail.figures import Figures, paces_of
from tasks.trail.item_history import ItemCounts, ItemHistory
from tasks.trail.run_sums import EntityFigures
from tasks.trail.stages import (
    REQUEST_BOUNDS_MS,
    REQUEST_BUCKETS,
    RequestTimes,
    RunStatus,
    StageRecord,
)

_BY_TYPE: Final = ["entity_type"]
_BOUNDS: Final = [
    "+Inf" if math.isinf(bound) else f"{bound / 1000:g}" for bound in REQUEST_BOUNDS_MS
]
_METRICS_RESPONSE: Final[Responses] = {
    HTTPStatus.OK.value: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}

router = APIRouter(tags=["state"])


class SyncMetrics(Collector):
    """The metrics of one audit trail; flow runs are processes of their own, so none are kept here.

    Collecting raises `MongoError`.
    """

    def __init__(self, figures: Figures, items: ItemHistory) -> None:
        self._figures = figures
        self._items = items

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; every entity type and status is there, from zero."""
        runs = self._figures.sum()
        figures = dict.fromkeys(ENTITY_NAMES, EntityFigures()) | dict(runs.by_entity_type)
        yield _items(figures)
        yield _requests(figures)
        yield _request_seconds(figures)
        yield _last_success(figures)
        yield _runs(runs.by_status)
        yield _last_run_duration(self._figures.last_durations())
        stages = self._figures.running_stages()
        yield _running_items(stages)
        yield _running_items_done(stages)
        yield _items_waiting(stages)
        yield _pace(paces_of(stages))
        counts = self._items.counts()
        yield _not_in(counts)
        yield _gone(counts)


@router.get(
    "/api/metrics",
    summary="Tell Prometheus what became of the syncs",
    response_class=Response,
    responses=_METRICS_RESPONSE | error_responses(UNAUTHORIZED, UNAVAILABLE),
    dependencies=[BEARER],
)
def metrics(figures: SyncFigures, items: SyncItems) -> Response:
    """Items, requests to Stage 1 and runs, in the text format of Prometheus."""
    return Response(
        generate_latest(SyncMetrics(figures, items)),
        headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4},
    )


def _items(figures: dict[str, EntityFigures]) -> Metric:
    items = CounterMetricFamily(
        "admin_sync_items",
        "Items of stages that have ended, without dry runs; a run that is retried counts the most "
        "that each outcome has come to.",
        labels=[*_BY_TYPE, "outcome"],
    )
    for entity_type, of_type in figures.items():
        for outcome, count in of_type.items.items():
            items.add_metric([entity_type, outcome], count)
    return items


def _requests(figures: dict[str, EntityFigures]) -> Metric:
    requests = CounterMetricFamily(
        "admin_sync_hub_requests", "Requests to Stage 1, retries too.", labels=_BY_TYPE
    )
    for entity_type, of_type in figures.items():
        requests.add_metric([entity_type], of_type.requests.count)
    return requests


def _request_seconds(figures: dict[str, EntityFigures]) -> Metric:
    seconds = HistogramMetricFamily(
        "admin_sync_hub_request_seconds", "How long requests to Stage 1 took.", labels=_BY_TYPE
    )
    for entity_type, of_type in figures.items():
        seconds.add_metric([entity_type], _cumulative(of_type.requests), of_type.requests.seconds)
    return seconds


def _cumulative(requests: RequestTimes) -> list[tuple[str, float]]:
    counts = [requests.buckets.get(name, 0) for name in REQUEST_BUCKETS]
    return list(zip(_BOUNDS, accumulate(counts), strict=True))


def _last_success(figures: dict[str, EntityFigures]) -> Metric:
    age = GaugeMetricFamily(
        "admin_sync_last_success_age_seconds",
        "Seconds since a stage last ended with every item in, without dry runs.",
        labels=_BY_TYPE,
    )
    now = datetime.now(UTC)
    for entity_type, of_type in figures.items():
        if of_type.last_success is not None:
            age.add_metric([entity_type], (now - of_type.last_success).total_seconds())
    return age


def _runs(by_status: Mapping[str, int]) -> Metric:
    runs = GaugeMetricFamily("admin_sync_runs", "Runs on record, dry ones too.", labels=["status"])
    for status in RunStatus:
        runs.add_metric([status.value], by_status.get(status.value, 0))
    return runs


def _last_run_duration(seconds: Mapping[str, float]) -> Metric:
    duration = GaugeMetricFamily(
        "admin_sync_last_run_duration_seconds",
        "How long the last run of a mode took, without dry runs and those that were cancelled or "
        "have crashed.",
        labels=["mode"],
    )
    for mode, took in seconds.items():
        duration.add_metric([mode], took)
    return duration


def _running_items(stages: Sequence[StageRecord]) -> Metric:
    return _of_running_stages(
        "admin_sync_running_items",
        "Items that the running sync is going to have, as far as it has planned; 0 without one.",
        [(stage, stage.total) for stage in stages],
    )


def _running_items_done(stages: Sequence[StageRecord]) -> Metric:
    return _of_running_stages(
        "admin_sync_running_items_done",
        "Items of the running sync that have come to their end; 0 without one.",
        [(stage, stage.done) for stage in stages],
    )


def _items_waiting(stages: Sequence[StageRecord]) -> Metric:
    return _of_running_stages(
        "admin_sync_items_waiting",
        "Items that have not come to their end, of a running stage that is held to a pace.",
        [
            (stage, max(0, stage.total - stage.done))
            for stage in stages
            if stage.is_open and stage.pace is not None
        ],
    )


def _of_running_stages(
    name: str, documentation: str, counts: Sequence[tuple[StageRecord, int]]
) -> Metric:
    sums: Counter[str] = Counter(dict.fromkeys(ENTITY_NAMES, 0))
    for stage, count in counts:
        sums[stage.entity_type] += count
    gauge = GaugeMetricFamily(name, documentation, labels=_BY_TYPE)
    for entity_type, count in sums.items():
        gauge.add_metric([entity_type], count)
    return gauge


def _pace(paces: dict[str, float]) -> Metric:
    pace = GaugeMetricFamily(
        "admin_sync_pace",
        "Requests a second that a running stage is held to because Stage 1 throttles, "
        "0 while it waits; missing where nothing is held.",
        labels=_BY_TYPE,
    )
    for entity_type, requests in paces.items():
        pace.add_metric([entity_type], requests)
    return pace


def _not_in(counts: dict[str, ItemCounts]) -> Metric:
    not_in = GaugeMetricFamily(
        "admin_sync_items_not_in", "Items that are not in Stage 1 now.", labels=_BY_TYPE
    )
    for entity_type, of_type in counts.items():
        not_in.add_metric([entity_type], of_type.not_in)
    return not_in


def _gone(counts: dict[str, ItemCounts]) -> Metric:
    gone = GaugeMetricFamily(
        "admin_sync_items_gone",
        "Items that Stage 1 holds enabled and whose documents are gone from the source.",
        labels=_BY_TYPE,
    )
    for entity_type, of_type in counts.items():
        gone.add_metric([entity_type], of_type.gone)
    return gone
