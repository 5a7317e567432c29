"""The tables that a run leaves in the dashboard."""

import asyncio
import json
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.exceptions import ObjectNotFound
from pymongo.database import Database

from flows.artifacts import publish_results_of, remove_artifacts
from tasks.decision import NOT_SENT_IN_DRY_RUN
from tasks.mongo import MongoRetry
from tasks.settings import MongoSettings, read_mongo_settings
from tasks.trail.history import RunHistory
from tasks.trail.item_history import ItemHistory
from tests.item_documents import item_document, run_document
from tests.trail_documents import PERMANENT, STOPPING, TRANSIENT, at, step_document

Document = dict[str, Any]
FLOW_RUN = FlowRun(id=uuid4(), flow_id=uuid4(), name="a run")


class Dashboard:
    """A Prefect API that keeps the artifacts that it gets."""

    def __init__(self) -> None:
        self.artifacts: dict[str | None, ArtifactCreate] = {}

    def __enter__(self) -> "Dashboard":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be closed."""

    def create_artifact(self, artifact: ArtifactCreate) -> None:
        self.artifacts[artifact.key] = artifact

    def rows(self, key: str) -> list[Document]:
        rows: list[Document] = json.loads(str(self.artifacts[key].data))
        return rows

    def description(self, key: str) -> str | None:
        return self.artifacts[key].description


@pytest.fixture
def dashboard(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> Dashboard:
    dashboard = Dashboard()
    runs, items = RunHistory(database, retry), ItemHistory(database, retry)
    monkeypatch.setattr("flows.artifacts.run_history", lambda _settings: runs)
    monkeypatch.setattr("flows.artifacts.item_history", lambda _settings: items)
    monkeypatch.setattr("flows.artifacts.get_client", lambda **_: dashboard)
    return dashboard


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> MongoSettings:
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:9")
    return read_mongo_settings()


def add_run(database: Database[Document], *entity_types: str, **fields: Any) -> Document:
    run = run_document(*entity_types, flow_run_id=str(FLOW_RUN.id), started_at=at(100), **fields)
    database.sync_runs.insert_one(run)
    return run


def test_a_run_that_is_not_on_record_leaves_nothing(
    dashboard: Dashboard, settings: MongoSettings
) -> None:
    publish_results_of(FLOW_RUN, settings)
    assert dashboard.artifacts == {}


def test_the_summary_counts_the_superseded_and_the_gone(
    database: Database[Document], dashboard: Dashboard, settings: MongoSettings
) -> None:
    run = add_run(database, "tenant", "client")
    counts = {"total": 3, "success": 2, "failed": 0, "skipped": 1, "superseded": 1, "gone": 4}
    stages = [run["stages"][0] | counts, run["stages"][1] | counts]
    database.sync_runs.update_one({}, {"$set": {"stages": stages}})
    publish_results_of(FLOW_RUN, settings)
    tenants, clients, both = dashboard.rows("summary")
    assert tenants == {"stage": "tenant", "status": "partial", "seconds": None, **counts}
    assert clients["stage"] == "client"
    assert both.items() >= {name: 2 * count for name, count in counts.items()}.items()
    assert set(dashboard.artifacts) == {"summary"}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "http://127.0.0.1:3000"),
        ({"ADMIN_API_PORT": "4000"}, "http://127.0.0.1:4000"),
        ({"ADMIN_API_HOST": "::1"}, "http://[::1]:3000"),
        ({"ADMIN_API_HOST": "sync.example", "ADMIN_API_TOKEN": "t"}, "http://sync.example:3000"),
        ({"ADMIN_API_HOST": "0.0.0.0", "ADMIN_API_TOKEN": "t"}, None),
        ({"ADMIN_API_HOST": "::", "ADMIN_API_TOKEN": "t"}, None),
        ({"ADMIN_API_PORT": "0"}, None),
        ({"ADMIN_API_PORT": "none"}, None),
    ],
)
def test_a_run_says_where_rest_shows_it_as_far_as_that_is_known(
    database: Database[Document],
    dashboard: Dashboard,
    settings: MongoSettings,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    address: str | None,
    dry_run: bool,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = add_run(database, "tenant", dry_run=dry_run, message="4 of *5* items are in")
    publish_results_of(FLOW_RUN, settings)
    told = rf"4 of \*5\* items are in (run_id {run['_id']})"
    if not dry_run:
        told = f"partial: {told}"
    if address is not None:
        told += f" {address}/api/admin/sync/runs/{run['_id']}"
    assert dashboard.description("dry-run" if dry_run else "summary") == told


def test_failures_that_need_a_person_come_first(
    database: Database[Document], dashboard: Dashboard, settings: MongoSettings
) -> None:
    run = add_run(database, "tenant")
    errors = (TRANSIENT, PERMANENT, STOPPING, PERMANENT)
    database.sync_steps.insert_many(
        [
            step_document(run["_id"], n, error, created_at=at(n))
            for n, error in enumerate(errors, start=1)
        ]
    )
    publish_results_of(FLOW_RUN, settings)
    assert [row["natural key"] for row in dashboard.rows("failures")] == ["3", "2", "4", "1"]


class Artifacts:
    """A Prefect API with the artifacts of one flow run; another one removes some of them, too."""

    def __init__(self, flow_run_id: UUID, *artifacts: Artifact, removed: UUID) -> None:
        self.flow_run_id = flow_run_id
        self.there = {artifact.id: artifact for artifact in artifacts}
        self.removed = removed

    async def read_artifacts(self, *, artifact_filter: ArtifactFilter) -> list[Artifact]:
        assert artifact_filter.flow_run_id is not None
        assert artifact_filter.flow_run_id.any_ == [self.flow_run_id]
        return list(self.there.values())

    async def delete_artifact(self, artifact_id: UUID) -> None:
        del self.there[artifact_id]
        if artifact_id == self.removed:
            raise ObjectNotFound(ValueError())


def test_all_that_earlier_attempts_have_left_is_removed() -> None:
    keys = ("summary", "failures", "progress-tenant")
    left = [Artifact(id=uuid4(), key=key, type="table", data="[]") for key in keys]
    prefect = Artifacts(FLOW_RUN.id, *left, removed=left[1].id)
    asyncio.run(remove_artifacts(cast(Any, prefect), FLOW_RUN.id))
    assert prefect.there == {}


def test_what_is_not_in_is_told_against_what_was_before(
    database: Database[Document], dashboard: Dashboard, settings: MongoSettings
) -> None:
    run = add_run(database, "tenant")
    failed = {"error": PERMANENT, "run_id": run["_id"], "attempts": 2}
    database.sync_items.insert_many(
        [
            item_document("in"),
            item_document("new_*", **failed, not_in_since=at(101)),
            item_document("still", **failed, not_in_since=at(60)),
            item_document("back", recovered={"run_id": run["_id"], "since": at(1)}),
        ]
    )
    publish_results_of(FLOW_RUN, settings)
    told = {"entity type": "tenant", "code": PERMANENT.code, "message": PERMANENT.message}
    assert dashboard.rows("not-in") == [
        {**told, "change": "newly failing", "natural key": "    new_*", "attempts": 2},
        {
            **told,
            "change": "still failing since 2024-01-01 00:01:00 UTC",
            "natural key": "still",
            "attempts": 2,
        },
        {
            "change": "recovered",
            "entity type": "tenant",
            "natural key": "back",
            "code": None,
            "message": None,
            "attempts": 0,
        },
    ]
    assert dashboard.description("not-in") == (
        "Not in now: 1 newly failing, 1 still failing; 1 recovered. 100 of each are shown at most"
    )


def test_a_hundred_of_each_kind_are_shown(
    database: Database[Document], dashboard: Dashboard, settings: MongoSettings
) -> None:
    run = add_run(database, "tenant")
    for number in range(101):
        failed = {"error": PERMANENT, "run_id": run["_id"]}
        database.sync_items.insert_many(
            [
                item_document(f"new {number}", **failed, not_in_since=at(101)),
                item_document(f"old {number}", **failed, not_in_since=at(1)),
                item_document(f"gone {number}", gone_since=at(1)),
            ]
        )
    publish_results_of(FLOW_RUN, settings)
    assert len(dashboard.rows("not-in")) == 200
    assert str(dashboard.description("not-in")).startswith(
        "Not in now: 101 newly failing, 101 still failing; 0 recovered."
    )
    assert len(dashboard.rows("gone")) == 100
    assert str(dashboard.description("gone")).endswith("100 of 101 are shown")


def test_what_is_gone_is_tabled(
    database: Database[Document], dashboard: Dashboard, settings: MongoSettings
) -> None:
    add_run(database, "tenant")
    database.sync_items.insert_many(
        [
            item_document("gone", gone_since=at(1)),
            item_document("off", body={"enabled": False}, gone_since=at(1)),
            item_document("not of this run", "domain", gone_since=at(1)),
        ]
    )
    publish_results_of(FLOW_RUN, settings)
    assert dashboard.rows("gone") == [
        {
            "entity type": "tenant",
            "natural key": "gone",
            "gone since": "2024-01-01 00:00:01 UTC",
        }
    ]


def test_a_dry_run_tables_what_would_change_and_nothing_of_what_is(
    database: Database[Document], dashboard: Dashboard, settings: MongoSettings
) -> None:
    run = add_run(database, "tenant", dry_run=True)
    name = {"field": "name", "old": '"Acme"', "new": '"ACME"'}
    new = [{"field": field, "old": None, "new": '"x"'} for field in ("id", "name")]
    database.sync_steps.insert_many(
        [
            step_document(run["_id"], 1, NOT_SENT_IN_DRY_RUN, changes=[name]),
            step_document(run["_id"], 2, NOT_SENT_IN_DRY_RUN, changes=new, created_at=at(1)),
            step_document(run["_id"], 3, NOT_SENT_IN_DRY_RUN, changes=[]),
            step_document(run["_id"], 4, PERMANENT),
        ]
    )
    database.sync_items.insert_one(item_document("gone", gone_since=at(1), not_in_since=at(1)))
    publish_results_of(FLOW_RUN, settings)
    assert dashboard.rows("changes") == [
        {"entity type": "tenant", "natural key": "1", **name},
        {"entity type": "tenant", "natural key": "2", **new[0]},
        {"entity type": "tenant", "natural key": "2", **new[1]},
    ]
    assert set(dashboard.artifacts) == {"dry-run", "failures", "changes"}


def test_ten_thousand_changes_are_tabled_at_most(
    database: Database[Document], dashboard: Dashboard, settings: MongoSettings
) -> None:
    run = add_run(database, "tenant", dry_run=True)
    changes = [{"field": str(n), "old": None, "new": "1"} for n in range(6_000)]
    database.sync_steps.insert_many(
        [step_document(run["_id"], n, NOT_SENT_IN_DRY_RUN, changes=changes) for n in range(2)]
    )
    publish_results_of(FLOW_RUN, settings)
    assert len(dashboard.rows("changes")) == 10_000
