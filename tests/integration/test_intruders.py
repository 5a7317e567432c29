"""Web pages of other sites, in an operator's browser, reach for the REST API and for Prefect."""

import asyncio
import logging
from collections.abc import Iterator
from uuid import UUID

import bson
import httpx
import psutil
import pytest
from bson.raw_bson import RawBSONDocument
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from pymongo import MongoClient

from deployments.api.app import create_app
from tasks.settings import read_api_settings, read_mongo_settings
from tests.browser import BLIND_POST, chromium, page_of_another_site
from tests.integration.test_api import error_of, serving
from tests.integration.world import PATIENCE_SECONDS, Hub, SyncRun, World, http, prefect_at

DATABASE = "intruders_test"
FOREIGN_SITE = "http://127.0.0.1:9"
DOORS = ("/admin/sync/run", f"/admin/sync/runs/{'0' * 24}/cancel")


@pytest.fixture(scope="module")
def open_api(mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API without a token. What it lets in is told that Prefect is away, or of no such run."""
    with serving(
        tmp_path_factory.mktemp("open-api") / "api.log",
        MONGODB_URI=mongodb_uri,
        MONGODB_DB=DATABASE,
        PREFECT_API_URL="http://127.0.0.1:9/api",
    ) as base_url:
        yield base_url


def origin_of(url: str) -> str:
    return str(httpx.URL(url).join("/")).removesuffix("/")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:4200"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_foreign_page_starts_and_cancels_nothing(
    open_api: str, door: str, headers: dict[str, str], content_type: str | None
) -> None:
    sent_as = {"Content-Type": content_type} if content_type else {}
    refused = http.post(f"{open_api}{door}", headers={**headers, **sent_as})
    assert error_of(refused) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    "name",
    ["evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "localhost:80:80", "["],
)
def test_a_foreign_name_is_refused_even_reading(open_api: str, name: str) -> None:
    refused = http.get(f"{open_api}/admin/sync/runs", headers={"Host": name})
    assert error_of(refused) == (403, "FORBIDDEN")


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:3000", "127.0.0.1:1", "[::1]:3000"])
def test_this_machine_s_names_are_answered(open_api: str, name: str) -> None:
    assert http.get(f"{open_api}/admin/sync/runs", headers={"Host": name}).status_code == 200


def test_programs_and_own_pages_are_let_in(open_api: str) -> None:
    own_page = {"Origin": origin_of(open_api), "Sec-Fetch-Site": "same-origin"}
    link_elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for headers in ({}, own_page):
        started, cancelled = (http.post(f"{open_api}{door}", headers=headers) for door in DOORS)
        assert error_of(started) == (503, "UNAVAILABLE")
        assert error_of(cancelled) == (404, "NOT_FOUND")
    assert http.get(f"{open_api}/docs", headers=link_elsewhere).status_code == 200


@pytest.mark.browser
def test_a_browser_tells_who_asks(open_api: str) -> None:
    door = f"{open_api}{DOORS[0]}"
    with chromium() as browser, page_of_another_site(browser) as page:
        for name in ("127.0.0.1", "localhost"):
            url = door.replace("127.0.0.1", name)
            with page.expect_response(url) as refused:
                page.evaluate(BLIND_POST, [url, ""])
            assert refused.value.status == 403
        page.goto(f"{open_api}/docs")
        own = page.evaluate("url => fetch(url, {method: 'POST'}).then(a => a.status)", door)
    assert own == 503


def artifacts_of(run: SyncRun) -> list[UUID]:
    """Return the summary of a run, its failures, and what is not in now."""
    flow_run_id = FlowRunFilterId(any_=[UUID(run.document["flow_run_id"])])
    with get_client(sync_client=True) as prefect:
        found = prefect.read_artifacts(flow_run_filter=FlowRunFilter(id=flow_run_id))
    tables = [artifact.id for artifact in found if artifact.type == "table"]
    assert len(tables) == 3
    return tables


@pytest.mark.browser
def test_what_the_hub_says_is_no_markup_in_the_dashboard(
    world: World, prefect_api_url: str
) -> None:
    says = (
        f"![]({FOREIGN_SITE}/image) <img src={FOREIGN_SITE}/tag> [link]({FOREIGN_SITE}/) "
        f"<a href={FOREIGN_SITE}>a</a> {FOREIGN_SITE}/bare www.evil.example **bold** `code`"
    )
    world.add_seed()
    world.hub.misbehave({"code": "INVALID_TOKEN", "message": says})
    run = world.sync()
    assert says in run.document["message"]
    dashboard = prefect_api_url.removesuffix("/api")
    asked: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for artifact_id in artifacts_of(run):
            page.goto(f"{dashboard}/artifacts/artifact/{artifact_id}")
            page.get_by_text(says).first.wait_for(timeout=PATIENCE_SECONDS * 1000)
            links = page.evaluate("[...document.links].map(link => link.href)")
            assert not [url for url in links + asked if "evil" in url or FOREIGN_SITE in url]


def test_what_the_scripts_start_listens_on_loopback_only(
    open_api: str, prefect_api_url: str, mongodb_uri: str, hub: Hub
) -> None:
    ports = {httpx.URL(url).port for url in (open_api, prefect_api_url, mongodb_uri, hub.base_url)}
    listening = [
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in ports
    ]
    assert sorted(listening) == [("127.0.0.1", port) for port in sorted(ports)]


def test_an_unforeseen_error_tells_nothing_of_itself(open_api: str, mongodb_uri: str) -> None:
    no_text = bson.encode({"_id": "no text", "status": "marked marked"})
    with MongoClient(mongodb_uri) as client:
        runs = client[DATABASE].sync_runs
        runs.insert_one(RawBSONDocument(no_text.replace(b"marked ", b"marked\xff")))
        response = http.get(f"{open_api}/admin/sync/runs")
        runs.delete_one({"_id": "no text"})
    assert error_of(response) == (500, "INTERNAL_ERROR")
    assert "marked" not in response.text


def test_the_api_s_log_and_answers_name_no_credentials(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    marked = "marked-in-the-uri"
    uri = f"mongodb://operator:{marked}@127.0.0.1:9/?serverSelectionTimeoutMS=200"
    monkeypatch.setenv("MONGODB_URI", uri)
    caplog.set_level(logging.DEBUG)
    with prefect_at("http://127.0.0.1:9/api"):
        answers = asyncio.run(
            answers_of_an_api(("GET", "/health"), ("GET", "/admin/sync/runs"), ("POST", DOORS[0]))
        )
    assert all("MONGODB_URI" in answer for answer in answers)
    assert "pymongo" in caplog.text
    assert not [text for text in [*answers, caplog.text, *capfd.readouterr()] if marked in text]


async def answers_of_an_api(*asked: tuple[str, str]) -> list[str]:
    """Return what an API in this process answers."""
    app = create_app(read_api_settings(), read_mongo_settings())
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost/api")
    async with app.router.lifespan_context(app), client:
        return [(await client.request(method, path)).text for method, path in asked]
