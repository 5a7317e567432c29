"""Secrets are nowhere: not in Prefect's database, not in a log, not in MongoDB."""

import os
import subprocess
import sys
from pathlib import Path

import bson
import pytest
from pymongo import MongoClient

from tests.integration.world import HUB_TOKEN, REPOSITORY, World

PASSWORD = "marked-mongodb-password"
SECRETS = (HUB_TOKEN.encode(), PASSWORD.encode())


@pytest.fixture
def uri_with_password(mongodb_uri: str) -> str:
    with MongoClient(mongodb_uri) as client:
        client.admin.command("dropAllUsersFromDatabase")
        client.admin.command("createUser", "operator", pwd=PASSWORD, roles=["root"])
    return mongodb_uri.replace("mongodb://", f"mongodb://operator:{PASSWORD}@")


def found_in(content: bytes) -> list[bytes]:
    return [secret for secret in SECRETS if secret in content]


def test_a_failing_sync_at_debug_level_leaves_no_secret(
    world: World, uri_with_password: str, prefect_home: Path
) -> None:
    world.add_seed()
    world.add("tenant", {"id": "bad", "version": 1}, {"id": "echo", "name": "E", "version": 1})
    echo = f"you sent Authorization: Bearer {HUB_TOKEN}"
    world.hub.misbehave(
        {"key": "echo", "code": "NOT_FOUND", "message": echo},
        {"entity_type": "client", "attempts": [1], "status": 503},
        {"entity_type": "subtenant", "drop": True},
        {"entity_type": "domain", "garbage": True},
        {"entity_type": "branding", "code": "INVALID_TOKEN", "message": echo},
    )
    sync = subprocess.run(
        [sys.executable, "-m", "scripts.sync_now"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            **world.environment,
            "MONGODB_URI": uri_with_password,
            "ADMIN_RETRY_MAX": "1",
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
            "PREFECT_DEBUG_MODE": "true",
        },
        capture_output=True,
        check=False,
    )
    assert sync.returncode == 1
    assert b"INVALID_TOKEN" in sync.stdout
    assert found_in(sync.stdout + sync.stderr) == []

    (run,) = world.database.sync_runs.find()
    assert run["status"] == "failed"
    assert run["totals"]["total"] == 7
    for collection in (world.database.sync_runs, world.database.sync_steps):
        for document in collection.find():
            assert found_in(bson.encode(document)) == []

    flow_run_id = run["flow_run_id"].encode()
    files = [path.read_bytes() for path in prefect_home.rglob("*") if path.is_file()]
    assert any(flow_run_id in content for content in files)
    assert [found_in(content) for content in files if found_in(content)] == []


def test_wrong_settings_are_told_without_their_values(world: World) -> None:
    wrong = {
        "ADMIN_SYNC_TOKEN": f"{HUB_TOKEN} with a space",
        "MONGODB_URI": f"mongo://operator:{PASSWORD}@localhost",
        "ADMIN_TENANTS_UPSERT_URL": f"https://operator:{PASSWORD}@hub.example/",
    }
    sync = subprocess.run(
        [sys.executable, "-m", "scripts.sync_now"],
        cwd=REPOSITORY,
        env={**os.environ, **world.environment, **wrong},
        capture_output=True,
        check=False,
    )
    assert sync.returncode == 2
    assert found_in(sync.stdout + sync.stderr) == []
    for variable in wrong:
        assert variable.encode() in sync.stderr
