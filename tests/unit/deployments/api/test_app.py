"""The application: who is let in, and which paths there are."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from fastapi import FastAPI

from deployments.api.app import create_app
from tasks.settings import read_api_settings, read_mongo_settings
from tests.unit.deployments.api.in_process import ask

TOKEN = "marked-api-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
DOCUMENT = "/api/openapi.json"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """An API with a token, in front of a MongoDB that is away."""
    monkeypatch.setenv("ADMIN_API_TOKEN", TOKEN)
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=10")
    app = create_app(read_api_settings(), read_mongo_settings())
    app.state.deployment = SimpleNamespace(
        obstacle=AsyncMock(return_value=None), request_limit=AsyncMock(return_value=None)
    )
    return app


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": TOKEN},
        {"Authorization": f"bearer {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN} "},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": "Bearer ñ"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "path", [DOCUMENT, "/api/docs", "/api/metrics", "/api/admin/sync/items", "/elsewhere"]
)
def test_without_the_token_nothing_is_told(
    app: FastAPI, headers: dict[str, str], path: str
) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = ask(app, "GET", path, headers=encoded)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "UNAUTHORIZED"
    assert TOKEN not in answer.text


def test_with_the_token_the_endpoints_are_there(app: FastAPI) -> None:
    answer = ask(app, "GET", DOCUMENT, headers=BEARER)
    assert answer.status_code == 200
    of_sync = "/api/admin/sync"
    operations = {
        (method, path) for path, methods in answer.json()["paths"].items() for method in methods
    }
    assert operations == {
        ("post", f"{of_sync}/run"),
        ("get", f"{of_sync}/runs"),
        ("get", f"{of_sync}/runs/{{run_id}}"),
        ("get", f"{of_sync}/runs/{{run_id}}/steps"),
        ("post", f"{of_sync}/runs/{{run_id}}/cancel"),
        ("get", f"{of_sync}/runs/{{run_id}}/items"),
        ("get", f"{of_sync}/items"),
        ("get", f"{of_sync}/items/{{entity_type}}/{{natural_key}}"),
        ("get", "/api/health"),
        ("get", "/api/metrics"),
    }


def test_a_generated_client_can_leave_the_body_out(app: FastAPI) -> None:
    operation = app.openapi()["paths"]["/api/admin/sync/run"]["post"]
    assert operation["operationId"] == "start_sync"
    body = operation["requestBody"]
    assert not body.get("required")
    # Of a union, generators send what is left out as if it were a value.
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/SyncRequest")


def test_a_generated_client_can_read_every_error_and_the_metrics(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    error = {"$ref": "#/components/schemas/ErrorResponse"}
    for path, operations in paths.items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and path != "/api/health":
                    (media_type, content) = next(iter(answer["content"].items()))
                    assert (media_type, content["schema"]) == ("application/json", error)
    told = paths["/api/metrics"]["get"]["responses"]["200"]["content"]
    assert told == {"text/plain": {"schema": {"type": "string"}}}


def test_health_asks_for_no_token(app: FastAPI) -> None:
    answer = ask(app, "GET", "/api/health")
    assert answer.status_code == 503
    assert answer.json()["mongodb"]["message"].startswith("MongoDB does not answer")
    assert answer.json()["prefect"]["ok"] is True
    assert ask(app, "HEAD", "/api/health").status_code == 503


def test_a_long_body_is_refused_and_without_the_token_not_even_read(app: FastAPI) -> None:
    is_read = False

    async def long_body() -> AsyncIterator[bytes]:
        nonlocal is_read
        is_read = True
        yield b"x" * 70_000

    path = "/api/admin/sync/run"
    assert ask(app, "POST", path, content=long_body()).status_code == 401
    assert not is_read
    answer = ask(app, "POST", path, content=long_body(), headers=BEARER)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "BODY_TOO_LARGE")


def test_a_mongodb_that_is_away_is_told(app: FastAPI) -> None:
    for path in ("/api/metrics", "/api/admin/sync/runs", "/api/admin/sync/items"):
        answer = ask(app, "GET", path, headers=BEARER)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "UNAVAILABLE"


def test_without_a_token_other_sites_change_nothing(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.state.deployment
    monkeypatch.delenv("ADMIN_API_TOKEN")
    open_app = create_app(read_api_settings(), read_mongo_settings())
    assert ask(open_app, "GET", DOCUMENT).status_code == 200
    foreign_name = ask(open_app, "GET", DOCUMENT, headers={"Host": "evil.example"})
    foreign_page = ask(open_app, "POST", "/api/admin/sync/run", headers={"Origin": "http://evil"})
    for answer in (foreign_name, foreign_page):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
