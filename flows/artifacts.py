"""The results of a run that has ended, as artifacts in the dashboard: one table a question."""

import ipaddress
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Any, Final, TypeAlias
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound

from flows.markdown import as_cell, escaped
from flows.server_waits import notice_of
from tasks.entities import label_of
from tasks.errors import urgency
from tasks.settings import MongoSettings, SettingsError, read_api_settings, read_mongo_settings
from tasks.trail.fields import RunId
from tasks.trail.history import RunHistory, run_history
from tasks.trail.item_history import ItemHistory, item_history
from tasks.trail.items import ItemRecord
from tasks.trail.runs import RunRecord
from tasks.trail.stages import StageRecord, StageTotals
from tasks.trail.steps import StepRecord

_Row: TypeAlias = dict[str, Any]

_FAILURES_SHOWN: Final = 100
"""How many failures a run tables; all of them are in `sync_steps`."""
_ITEMS_SHOWN: Final = 100
"""How many items of a kind a run tables; all of them are in `sync_items`."""
_FAULTS_SHOWN: Final = 10_000
"""How many failures and how many changes a dry run tables; all of them are in `sync_steps`."""


def publish_results(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State hook: leave the tables of a run that has ended."""
    publish_results_of(flow_run, read_mongo_settings())


def publish_results_of(flow_run: FlowRun, settings: MongoSettings) -> None:
    """Leave a summary of a run that has ended, and tables of the items that it tells of."""
    runs, items = run_history(settings), item_history(settings)
    run = runs.run_of(str(flow_run.id))
    if run is None:
        return
    if run.dry_run:
        _publish_dry_run(flow_run, run)
        _publish_failures(flow_run, run, "Items that would fail", runs, _FAULTS_SHOWN)
        _publish_changes(flow_run, run, runs)
    else:
        _publish_run(flow_run, run)
        _publish_failures(flow_run, run, "Failed items", runs, _FAILURES_SHOWN)
        _publish_not_in(flow_run, run, items)
        _publish_gone(flow_run, run, items)


async def remove_artifacts(prefect: PrefectClient, flow_run_id: UUID) -> None:
    """Remove what earlier attempts of a flow run have left: it tells of what is past.

    Raises:
        httpx.HTTPError: Prefect's API doesn't answer.
    """
    of_flow_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    for artifact in await prefect.read_artifacts(artifact_filter=of_flow_run):
        with suppress(ObjectNotFound):
            await prefect.delete_artifact(artifact.id)


def _publish_run(flow_run: FlowRun, run: RunRecord) -> None:
    _publish(
        flow_run,
        key="summary",
        description=f"{run.status}: {_told_of(run)}",
        rows=list(_summary_rows(run)),
    )


def _publish_dry_run(flow_run: FlowRun, run: RunRecord) -> None:
    _publish(
        flow_run,
        key="dry-run",
        description=_told_of(run),
        rows=[_dry_run_row(stage) for stage in run.stages],
    )


def _publish_failures(
    flow_run: FlowRun, run: RunRecord, what: str, history: RunHistory, limit: int
) -> None:
    failures = sorted(history.failures(run.id, limit), key=lambda step: urgency(step.error))
    if failures:
        _publish(
            flow_run,
            key="failures",
            description=f"{what}: {len(failures)} of {run.totals.failed} are shown",
            rows=[_failure_row(step) for step in failures],
        )


def _publish_changes(flow_run: FlowRun, run: RunRecord, history: RunHistory) -> None:
    steps = history.changes(run.id, _FAULTS_SHOWN)
    rows = list(islice(_change_rows(steps), _FAULTS_SHOWN))
    if rows:
        _publish(
            flow_run,
            key="changes",
            description=f"Fields that would change, {_FAULTS_SHOWN} at most; "
            "of a new item all are, and old is empty",
            rows=rows,
        )


def _publish_not_in(flow_run: FlowRun, run: RunRecord, history: ItemHistory) -> None:
    new = history.newly_failing(run, _ITEMS_SHOWN)
    still = history.still_failing(run, _ITEMS_SHOWN)
    back = history.recovered(run, _ITEMS_SHOWN)
    rows = [
        *(_not_in_row("newly failing", item) for item in new.items),
        *(_not_in_row(f"still failing since {_time(i.not_in_since)}", i) for i in still.items),
        *(_not_in_row("recovered", item) for item in back.items),
    ]
    if rows:
        _publish(
            flow_run,
            key="not-in",
            description=f"Not in now: {new.total} newly failing, {still.total} still failing; "
            f"{back.total} recovered. {_ITEMS_SHOWN} of each are shown at most",
            rows=rows,
        )


def _publish_gone(flow_run: FlowRun, run: RunRecord, history: ItemHistory) -> None:
    gone = history.gone(run, _ITEMS_SHOWN)
    if gone.items:
        _publish(
            flow_run,
            key="gone",
            description="Gone from the source, and still enabled in Stage 1: "
            f"{len(gone.items)} of {gone.total} are shown",
            rows=[_gone_row(item) for item in gone.items],
        )


def _publish(flow_run: FlowRun, *, key: str, description: str, rows: Sequence[_Row]) -> None:
    table = ArtifactCreate(
        type="table",
        key=key,
        description=description,
        data=json.dumps([{name: _cell(cell) for name, cell in row.items()} for row in rows]),
        flow_run_id=flow_run.id,
    )
    with get_client(sync_client=True) as client:
        client.create_artifact(table)


def _cell(value: Any) -> Any:
    return as_cell(value) if isinstance(value, str) else value


def _told_of(run: RunRecord) -> str:
    """Return what a run says of itself, and where REST shows it, as Markdown."""
    told = f"{escaped(run.message or '')} (run_id {run.id})"
    notice = notice_of(run.id)
    beside = (_rest_address(run.id), escaped(notice) if notice else None)
    return " ".join([told, *filter(None, beside)])


def _rest_address(run_id: RunId) -> str | None:
    """Return the address of a run in the REST API; None where the settings here name none."""
    try:
        api = read_api_settings()
    except SettingsError:
        return None
    if api.port == 0 or _is_wildcard(api.host):
        return None
    host = f"[{api.host}]" if ":" in api.host else api.host
    return f"http://{host}:{api.port}/api/admin/sync/runs/{run_id}"


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _summary_rows(run: RunRecord) -> Iterator[_Row]:
    for stage in run.stages:
        yield _summary_row(stage.entity_type, stage.status, stage, stage.seconds)
    yield _summary_row("all", run.status, sum(run.stages, StageTotals()), run.seconds)


def _summary_row(name: str, status: str, counts: StageTotals, seconds: float | None) -> _Row:
    return {
        "stage": name,
        "status": status,
        "total": counts.total,
        "success": counts.success,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "superseded": counts.superseded,
        "gone": counts.gone,
        "seconds": None if seconds is None else round(seconds, 1),
    }


def _dry_run_row(stage: StageRecord) -> _Row:
    return {
        "stage": stage.entity_type,
        "items": stage.total,
        "would be sent": stage.would_send,
        "first": stage.first,
        "unchanged": stage.unchanged,
        "would fail": stage.failed,
    }


def _failure_row(step: StepRecord) -> _Row:
    return {
        "entity type": step.entity_type,
        "natural key": step.key,
        "code": step.error.code if step.error else None,
        "message": step.error.message if step.error else None,
        "attempts": step.attempts,
        "request_id": step.request_id,
    }


def _change_rows(steps: Iterable[StepRecord]) -> Iterator[_Row]:
    for step in steps:
        for change in step.changes or ():
            yield {
                "entity type": step.entity_type,
                "natural key": step.key,
                "field": change.field,
                "old": change.old,
                "new": change.new,
            }


def _not_in_row(change: str, item: ItemRecord) -> _Row:
    error = item.last.error if item.last else None
    return {
        "change": change,
        "entity type": item.entity_type,
        "natural key": label_of(item.natural_key, item.source_id),
        "code": error.code if error else None,
        "message": error.message if error else None,
        "attempts": item.attempts,
    }


def _gone_row(item: ItemRecord) -> _Row:
    return {
        "entity type": item.entity_type,
        "natural key": label_of(item.natural_key, item.source_id),
        "gone since": _time(item.gone_since),
    }


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else ""
