"""A replica set whose secondary is behind, and a URI that prefers it: cloud guides recommend so."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient, ReadPreference

from scripts.local.mongod import find_mongod
from scripts.local.process import free_port, running
from tests.integration.world import PATIENCE_SECONDS, Hub, World, set_all, wait_until


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[list[int]]:
    """The ports of a primary, and of a secondary that has no vote."""
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        for port in ports:
            data = tmp_path / str(port)
            data.mkdir()
            command = [str(find_mongod()), "--dbpath", str(data), "--port", str(port)]
            command += ["--bind_ip", "127.0.0.1", "--replSet", "rs", "--nounixsocket"]
            command += ["--wiredTigerCacheSizeGB", "0.25", "--quiet"]
            command += ["--setParameter", "enableTestCommands=1"]
            command += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"]
            stack.enter_context(
                running(
                    command,
                    name="mongod",
                    ready=lambda port=port: _answers(port),
                    timeout_seconds=PATIENCE_SECONDS,
                    log_path=tmp_path / f"{port}.log",
                )
            )
        _initiate(ports)
        yield ports


def _answers(port: int) -> bool:
    with MongoClient[Any]("127.0.0.1", port, directConnection=True) as client:
        return bool(client.admin.command("ping")["ok"])


def _initiate(ports: list[int]) -> None:
    members: list[dict[str, Any]] = [
        {"_id": number, "host": f"127.0.0.1:{port}"} for number, port in enumerate(ports)
    ]
    members[1] |= {"priority": 0, "votes": 0}
    with MongoClient[Any]("127.0.0.1", ports[0], directConnection=True) as client:
        client.admin.command("replSetInitiate", {"_id": "rs", "members": members})
        wait_until(lambda: client.admin.command("hello")["isWritablePrimary"])


@contextmanager
def falling_behind(port: int) -> Iterator[None]:
    """Let a secondary take nothing over from the primary in the block."""
    with MongoClient[Any]("127.0.0.1", port, directConnection=True) as client:
        client.admin.command("configureFailPoint", "rsSyncApplyStop", mode="alwaysOn")
        yield
        client.admin.command("configureFailPoint", "rsSyncApplyStop", mode="off")


def test_the_trail_is_read_from_the_primary_and_the_source_as_the_uri_says(
    hub: Hub, ports: list[int], prefect_api_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    uri = f"mongodb://{hosts}/?replicaSet=rs&readPreference=secondaryPreferred"
    world = World(hub, uri, prefect_api_url)
    set_all(monkeypatch, world.environment)
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "10")
    world.add_tenants(150)
    from_secondary = world.database.get_collection(
        "source_tenants", read_preference=ReadPreference.SECONDARY
    )
    wait_until(lambda: from_secondary.count_documents({}) == 150)
    trail = world.database.with_options(read_preference=ReadPreference.PRIMARY)
    with falling_behind(ports[1]):
        world.database.source_tenants.delete_one({"id": "tenant-0000"})
        for mode, sent in (("full", 150), ("changed", 0), ("full", 150)):
            hub.reset()
            flow_run_id = world.state_of_sync(entities=["tenant"], mode=mode).state_details
            run = trail.sync_runs.find_one({"flow_run_id": str(flow_run_id.flow_run_id)})
            assert run is not None
            assert (run["status"], run["totals"]["total"]) == ("success", 150), run["message"]
            assert trail.sync_steps.count_documents({"run_id": run["_id"]}) == sent
            assert len(hub.requests()) == sent
    world.drop()
