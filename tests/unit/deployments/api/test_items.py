"""Items over the REST API: which are in now, which are gone, and the story of one."""

from typing import Any
from urllib.parse import quote

import pytest
from bson import ObjectId
from fastapi import FastAPI
from pymongo.database import Database

from deployments.api.app import create_app
from deployments.api.models import ITEM_RESPONSE, ITEMS_RESPONSE
from tasks.mongo import MongoRetry
from tasks.settings import read_api_settings, read_mongo_settings
from tasks.trail.history import RunHistory
from tasks.trail.item_history import ItemDetails, ItemHistory
from tasks.trail.items import ItemRecord
from tests.item_documents import RUN, hub_of, item_document, run_document
from tests.trail_documents import PERMANENT, at, step_document
from tests.unit.deployments.api.in_process import ask

Document = dict[str, Any]
ITEMS = "/api/admin/sync/items"


@pytest.fixture
def app(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> FastAPI:
    """An API whose items are in memory."""
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:9")
    in_memory = {"item": ItemHistory(database, retry), "run": RunHistory(database, retry)}
    for name, history in in_memory.items():
        monkeypatch.setattr(
            f"deployments.api.dependencies.{name}_history", lambda _settings, it=history: it
        )
    return create_app(read_api_settings(), read_mongo_settings())


@pytest.fixture
def items(database: Database[Document]) -> None:
    database.sync_runs.insert_one(run_document("tenant", "domain"))
    database.sync_items.insert_many(
        [
            item_document("in"),
            item_document("not in", error=PERMANENT, not_in_since=at(1), attempts=2),
            item_document("not/in", "domain", error=PERMANENT, not_in_since=at(0)),
            item_document("gone", gone_since=at(3)),
        ]
    )


@pytest.mark.usefixtures("items")
@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ({}, ["not/in", "gone", "in", "not in"]),
        ({"in": "false"}, ["not/in", "not in"]),
        ({"in": "true", "gone": "false"}, ["in"]),
        ({"gone": "true"}, ["gone"]),
        ({"in": "false", "entity_type": "tenant"}, ["not in"]),
        ({"in": "false", "limit": "1", "page": "2"}, ["not in"]),
    ],
)
def test_items_are_listed(app: FastAPI, query: dict[str, str], keys: list[str]) -> None:
    answer = ask(app, "GET", ITEMS, params=query)
    assert answer.status_code == 200
    assert [item["natural_key"] for item in answer.json()["items"]] == keys


@pytest.mark.usefixtures("items")
def test_an_item_is_told_as_stage_1_has_it(app: FastAPI) -> None:
    (item,) = ask(app, "GET", ITEMS, params={"in": "false", "entity_type": "tenant"}).json()[
        "items"
    ]
    assert item == {
        "hub": hub_of("tenant"),
        "entity_type": "tenant",
        "natural_key": "not in",
        "source_id": "1",
        "confirmed": {
            "request_id": "a" * 32,
            "version": 1,
            "digest": "d" * 64,
            "run_id": str(RUN),
            "at": "2024-01-01T00:00:00.000Z",
            "body": {"id": "not in", "enabled": True},
            "sync_id": "sync-1",
        },
        "last": {
            "ok": False,
            "error": {
                "code": "NOT_FOUND",
                "message": "there is no such tenant",
                "class": "permanent",
            },
            "run_id": str(RUN),
            "at": "2024-01-01T00:00:00.000Z",
        },
        "not_in_since": "2024-01-01T00:00:01.000Z",
        "attempts": 2,
        "gone_since": None,
    }


@pytest.mark.parametrize(
    ("query", "keys", "total"),
    [
        ({"change": "newly-failing"}, ["new", "newer"], 2),
        ({"change": "newly-failing", "limit": "1", "page": "2"}, ["newer"], 2),
        ({"change": "still-failing"}, ["still"], 1),
        ({"change": "recovered"}, ["back"], 1),
        ({"change": "gone"}, ["gone"], 1),
    ],
)
def test_what_a_run_has_changed_is_listed(
    app: FastAPI,
    database: Database[Document],
    query: dict[str, str],
    keys: list[str],
    total: int,
) -> None:
    run = run_document("tenant", started_at=at(10))
    database.sync_runs.insert_one(run)
    failed = {"error": PERMANENT, "run_id": run["_id"]}
    database.sync_items.insert_many(
        [
            item_document("newer", **failed, not_in_since=at(12)),
            item_document("new", **failed, not_in_since=at(11)),
            item_document("still", **failed, not_in_since=at(9)),
            item_document("back", recovered={"run_id": run["_id"], "since": at(1)}),
            item_document("gone", gone_since=at(3)),
            item_document("in"),
        ]
    )
    for name in (run["_id"], run["flow_run_id"]):
        answer = ask(app, "GET", f"/api/admin/sync/runs/{name}/items", params=query)
        assert [item["natural_key"] for item in answer.json()["items"]] == keys
        assert answer.json()["total"] == total


@pytest.mark.usefixtures("items")
@pytest.mark.parametrize(
    ("run", "change", "told"),
    [
        ("0" * 24, "gone", (404, "NOT_FOUND")),
        (str(RUN), "failing", (422, "VALIDATION_ERROR")),
        (str(RUN), None, (422, "VALIDATION_ERROR")),
    ],
)
def test_what_can_not_be_asked_of_a_run(
    app: FastAPI, run: str, change: str | None, told: tuple[int, str]
) -> None:
    path = f"/api/admin/sync/runs/{run}/items"
    answer = ask(app, "GET", path, params={"change": change} if change else {})
    assert (answer.status_code, answer.json()["error"]["code"]) == told


@pytest.mark.parametrize("key", ["acme", "a/b", "/a", "a//b/", "ñ ?#%2F", "acme/steps"])
def test_the_story_of_an_item_whatever_its_key(
    app: FastAPI, database: Database[Document], key: str
) -> None:
    database.sync_items.insert_one(item_document(key))
    database.sync_steps.insert_many(
        [step_document(ObjectId(), n, natural_key=key, created_at=at(n)) for n in range(3)]
    )
    path = f"{ITEMS}/tenant/{quote(key, safe='')}"
    told = ask(app, "GET", path, params={"limit": 2}).json()
    assert [item["natural_key"] for item in told["items"]] == [key]
    history = told["history"]
    assert (history["page"], history["limit"], history["total"]) == (1, 2, 3)
    assert [step["source_id"] for step in history["items"]] == ["2", "1"]
    second = ask(app, "GET", path, params={"limit": 2, "page": 2}).json()
    assert [step["source_id"] for step in second["history"]["items"]] == ["0"]


@pytest.mark.usefixtures("items")
@pytest.mark.parametrize("path", ["tenant/nobody", "client/in", "tenant/", "domain/not"])
def test_an_item_that_is_not_there_is_told(app: FastAPI, path: str) -> None:
    answer = ask(app, "GET", f"{ITEMS}/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert answer.json()["error"]["message"] == "Nothing is on record of such an item"


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("?in=maybe", "query.in"),
        ("?gone=maybe", "query.gone"),
        ("?entity_type=tenants", "query.entity_type"),
        ("?page=0", "query.page"),
        ("/tenants/acme", "path.entity_type"),
        ("/tenant/acme?limit=501", "query.limit"),
    ],
)
def test_what_can_not_be_asked_for(app: FastAPI, path: str, fault: str) -> None:
    answer = ask(app, "GET", f"{ITEMS}{path}")
    assert answer.status_code == 422
    assert list(answer.json()["error"]["details"]) == [fault]


def test_the_examples_are_records_as_the_api_gives_them() -> None:
    page, details = (
        response[200]["content"]["application/json"]["example"]
        for response in (ITEMS_RESPONSE, ITEM_RESPONSE)
    )
    (item,) = page["items"]
    told = ItemRecord.model_validate(item)
    assert told.model_dump(mode="json", by_alias=True) == item
    (step,) = details["history"]["items"]
    readable = {**details, "history": {**details["history"], "items": [step | {"_id": step["id"]}]}}
    told_of_item = ItemDetails.model_validate(readable)
    assert told_of_item.model_dump(mode="json", by_alias=True) == details
