"""Secrets are nowhere: not in Prefect, in a log, in MongoDB, or in the list of processes."""

import base64
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from urllib.parse import quote

import bson
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from pymongo import MongoClient

from deployments.deploy import deploy
from scripts.local.prefect import local_prefect_server
from scripts.local.process import free_port
from tests.integration.served import process
from tests.integration.test_alerts import MARKED_PATH, Receiver, receiving
from tests.integration.test_api import serving
from tests.integration.world import (
    HUB_TOKEN,
    REPOSITORY,
    Document,
    World,
    http,
    prefect_at,
    set_all,
    wait_until,
)

PASSWORD = "marked/mongodb:password"
API_TOKEN = "marked-api-token-2e77"
BEARER = {"Authorization": f"Bearer {API_TOKEN}"}
WRONG_BEARER = {"Authorization": f"Bearer {API_TOKEN} but wrong"}
SENT = f"Authorization: Bearer {HUB_TOKEN}".encode()
SPELLINGS = [
    SENT.decode(),
    SENT.hex(),
    *(base64.b64encode(b"x" * shift + SENT).decode() for shift in range(3)),
    "".join(f"%{byte:02X}" for byte in SENT),
    "".join(f"&#{byte};" for byte in SENT),
]
ECHO = " ".join(SPELLINGS)
SECRETS = [
    secret.encode()
    for secret in (HUB_TOKEN, PASSWORD, quote(PASSWORD, safe=""), API_TOKEN, MARKED_PATH)
] + [spelling[-len(spelling) // 3 : -4].encode() for spelling in SPELLINGS]
"""Of each spelling, what the end of the token becomes in it."""
AT_DEBUG = {
    "PREFECT_DEBUG_MODE": "true",
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
    # Not httpx and httpcore: Prefect's client logs by them while it sets up the log that goes
    # through that client, and waits for itself. At DEBUG they are on the terminal all the same.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "pymongo",
}
SERVER_AT_DEBUG = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG",
    # At DEBUG its SQLite driver alone makes it too slow.
    "PREFECT_LOGGING_ROOT_LEVEL": "INFO",
}
PREFECT_ANSWERS = (
    *("artifacts", "automations", "block_documents", "block_schemas", "deployments", "events"),
    *("flow_runs", "flows", "logs", "task_runs", "variables", "work_pools"),
    *("concurrency_limits", "v2/concurrency_limits"),
)


def found_in(content: bytes) -> list[bytes]:
    return [secret for secret in SECRETS if secret in content]


@pytest.fixture
def uri_with_password(mongodb_uri: str) -> str:
    with MongoClient(mongodb_uri) as client:
        client.admin.command("dropAllUsersFromDatabase")
        client.admin.command("createUser", "operator", pwd=PASSWORD, roles=["root"])
    return with_password(mongodb_uri, PASSWORD)


def with_password(uri: str, password: str) -> str:
    return uri.replace("mongodb://", f"mongodb://operator:{quote(password, safe='')}@")


ECHOES: dict[str, Document] = {
    "in the message": {"code": "NOT_FOUND", "message": ECHO},
    "in a page": {"status": 404, "text": f"<title>{ECHO}</title>"},
    "in a header": {"code": "NOT_FOUND", "headers": [["X-You-Sent", ECHO]]},
    "in a redirect": {"status": 302, "headers": [["Location", f"http://127.0.0.1/{ECHO}"]]},
    "in the reason phrase": {"raw": f"HTTP/1.1 404 {ECHO}\r\nContent-Length: 0\r\n\r\n"},
    "in the status line": {"raw": f"HTTP/1.1 {ECHO}\r\n\r\n"},
    "in what is no header": {"raw": f"HTTP/1.1 404 No\r\n{ECHO}\x1b\r\n\r\n"},
}
ITEMS = 6 + len(ECHOES)


def add_what_fails(world: World) -> None:
    """Items of which none gets in, and a hub that tells the token back."""
    world.add_seed()
    world.add("tenant", {"id": "bad", "version": 1})
    world.add("tenant", *({"id": key, "name": key, "version": 1} for key in ECHOES))
    world.hub.misbehave(
        *({"key": key, **fault} for key, fault in ECHOES.items()),
        {"entity_type": "client", "attempts": [1], "status": 503},
        {"entity_type": "subtenant", "drop": True},
        {"entity_type": "domain", "garbage": True},
        {"entity_type": "branding", "code": "INVALID_TOKEN", "message": ECHO},
    )


def assert_nothing_in_mongodb(uri: str) -> None:
    with MongoClient[Document](uri) as client:
        for database_name in client.list_database_names():
            for collection in client[database_name].list_collection_names():
                for document in client[database_name][collection].find():
                    assert found_in(bson.encode(document)) == [], f"{database_name}.{collection}"


def assert_nothing_in_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert found_in(path.read_bytes()) == [], path


def assert_nothing_in_rows(database: Path) -> None:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        for row in connection.iterdump():
            assert found_in(row.encode()) == [], row


def assert_nothing_in_answers(client: SyncPrefectClient) -> None:
    for kind in PREFECT_ANSWERS:
        answer = client.request("POST", f"/{kind}/filter", json={})
        assert found_in(answer.content) == [], kind


def test_a_failing_sync_at_debug_level_leaves_no_secret(
    world: World, uri_with_password: str, prefect_home: Path
) -> None:
    add_what_fails(world)
    sync = subprocess.run(
        [sys.executable, "-m", "scripts.sync_now"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            **world.environment,
            **AT_DEBUG,
            "MONGODB_URI": uri_with_password,
            "ADMIN_RETRY_MAX": "1",
        },
        capture_output=True,
        check=False,
    )
    assert sync.returncode == 1
    assert b"INVALID_TOKEN" in sync.stdout
    told = sync.stdout + sync.stderr
    assert b"pymongo" in told
    assert b"httpcore" in told
    assert b"X-You-Sent" in told
    assert found_in(told) == []

    (run,) = world.database.sync_runs.find()
    assert run["status"] == "failed"
    assert run["totals"]["total"] == ITEMS
    assert_nothing_in_mongodb(uri_with_password)

    flow_run_id = run["flow_run_id"].encode()
    files = [path.read_bytes() for path in prefect_home.rglob("*") if path.is_file()]
    assert any(flow_run_id in content for content in files)
    assert_nothing_in_files(prefect_home)


@pytest.fixture
def alerted() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def _all_is_marked(
    world: World,
    uri_with_password: str,
    alerted: Receiver,
    prefect_home_in: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """A Prefect server of its own with deployments and alerts, all secrets marked, all at DEBUG."""
    set_all(monkeypatch, SERVER_AT_DEBUG)
    with (
        local_prefect_server(prefect_home_in(tmp_path / "prefect")) as url,
        prefect_at(url),
    ):
        world.environment |= {
            **AT_DEBUG,
            "MONGODB_URI": uri_with_password,
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(tmp_path / "prefect-of-clients"),
            "ADMIN_RETRY_MAX": "1",
        }
        set_all(monkeypatch, {**world.environment, "ADMIN_ALERT_WEBHOOK_URL": alerted.url})
        with get_client(sync_client=True) as prefect:
            prefect.create_work_pool(WorkPoolCreate(name="backoffice", type="process"))
        deploy()
        monkeypatch.delenv("ADMIN_ALERT_WEBHOOK_URL")
        yield


@pytest.mark.usefixtures("_all_is_marked")
def test_a_failing_run_of_a_worker_at_debug_level_leaves_no_secret(
    world: World, alerted: Receiver, uri_with_password: str, tmp_path: Path
) -> None:
    add_what_fails(world)
    worker = ("prefect", "worker", "start", "--pool", "backoffice")
    processes: set[str] = set()

    def ended() -> Document | None:
        processes.update(command_lines())
        return world.database.sync_runs.find_one({"finished_at": {"$ne": None}})

    with (
        process(world, *worker, log_path=tmp_path / "worker.log"),
        serving(tmp_path / "api.log", ADMIN_API_TOKEN=API_TOKEN) as api_url,
        get_client(sync_client=True) as prefect,
    ):
        assert http.post(f"{api_url}/admin/sync/run", headers=WRONG_BEARER).status_code == 401
        started = http.post(f"{api_url}/admin/sync/run", headers=BEARER)
        assert started.status_code == 202
        run = wait_until(ended, poll_seconds=0.3)
        for path in ("/health", "/admin/sync/runs", f"/admin/sync/runs/{run['_id']}/steps"):
            answer = http.get(f"{api_url}{path}", headers=BEARER)
            assert found_in(answer.content) == []
        wait_until(lambda: alerted.bodies)
        assert_nothing_in_answers(prefect)

    assert (run["status"], run["totals"]["total"]) == ("failed", ITEMS)
    assert found_in(json.dumps(alerted.bodies).encode()) == []
    assert any("worker start" in line for line in processes)
    assert any("prefect.engine" in line or "prefect.flow_engine" in line for line in processes)
    assert found_in("\n".join(processes).encode()) == []
    assert "httpcore" in (tmp_path / "worker.log").read_text()
    assert_nothing_in_files(tmp_path)
    assert_nothing_in_rows(tmp_path / "prefect" / "prefect.db")
    assert_nothing_in_mongodb(uri_with_password)


def command_lines() -> Iterator[str]:
    """Yield the command line of each process of this machine, as `ps` shows it to everybody."""
    for each in psutil.process_iter(["cmdline"]):
        yield " ".join(each.info["cmdline"] or ())


@pytest.fixture
def told(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; returns its exit status, its stderr, and all that it told.

    That is at DEBUG, whatever logs it.
    """
    set_all(monkeypatch, {**world.environment, "NO_PROXY": "", "no_proxy": ""})
    caplog.set_level(logging.DEBUG)

    def run(command: str, **variables: str) -> tuple[int, str, str]:
        set_all(monkeypatch, variables)
        monkeypatch.setattr("sys.argv", [command])
        exit_status = import_module(command).main()
        printed = capfd.readouterr()
        return exit_status, printed.err, printed.out + printed.err + caplog.text

    return run


@pytest.mark.usefixtures("uri_with_password")
@pytest.mark.parametrize("command", ["scripts.sync_now", "scripts.history", "scripts.seed_source"])
@pytest.mark.parametrize("fault", ["away", "wrong password"])
def test_a_mongodb_that_lets_nobody_in_is_told_without_its_uri(
    told: Callable[..., tuple[int, str, str]], mongodb_uri: str, command: str, fault: str
) -> None:
    away = f"mongodb://127.0.0.1:{free_port()}"
    uri = with_password(away if fault == "away" else mongodb_uri, f"{PASSWORD} but wrong")
    exit_status, error, all_told = told(command, MONGODB_URI=f"{uri}/?serverSelectionTimeoutMS=300")
    assert exit_status != 0
    assert "MONGODB_URI" in error
    assert "pymongo" in all_told
    assert found_in(all_told.encode()) == []


def test_wrong_settings_are_told_without_their_values(
    told: Callable[..., tuple[int, str, str]],
) -> None:
    wrong = {
        "ADMIN_SYNC_TOKEN": f"{HUB_TOKEN} with a space",
        "MONGODB_URI": f"mongo://operator:{PASSWORD}@localhost",
        "ADMIN_TENANTS_UPSERT_URL": f"https://operator:{PASSWORD}@hub.example/",
    }
    exit_status, error, all_told = told("scripts.sync_now", **wrong)
    assert exit_status == 2
    assert found_in(all_told.encode()) == []
    for variable in wrong:
        assert variable in error
