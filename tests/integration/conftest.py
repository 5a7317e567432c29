"""Real parts for the integration tests: one mongod, Prefect server and hub a session."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from pymongo import MongoClient

from scripts.local.mongod import local_mongod
from scripts.local.prefect import local_prefect_server
from tests.integration.world import Hub, World, prefect_at, set_all, started_hub


@pytest.fixture(scope="session")
def mongodb_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        local_mongod(tmp_path_factory.mktemp("mongod") / "data") as uri,
        MongoClient(uri) as client,
    ):
        # Documents expire at once, but for the first minute, which goes by the default.
        client.admin.command("setParameter", 1, ttlMonitorSleepSecs=1)
        yield uri


@pytest.fixture(scope="session")
def prefect_home(
    prefect_home_in: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return prefect_home_in(tmp_path_factory.mktemp("prefect"))


_SPARED = {
    # No test of the shared server looks at events that are kept, and automations.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    # No web page comes here, and a sixth of the server's time goes into keeping them out.
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "false",
    # Its database is a copy of one that has all.
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
}


@pytest.fixture(scope="session")
def prefect_api_url(prefect_home: Path) -> Iterator[str]:
    with ExitStack() as parts:
        with pytest.MonkeyPatch.context() as environment:
            for variable, value in _SPARED.items():
                environment.setenv(variable, value)
            url = parts.enter_context(local_prefect_server(prefect_home))
        parts.enter_context(prefect_at(url))
        # Logs are sent where a test reads them.
        parts.enter_context(temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}))
        yield url


@pytest.fixture(scope="session")
def hub_process(mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with started_hub(mongodb_uri, tmp_path_factory.mktemp("hub") / "hub.log") as hub:
        yield hub


@pytest.fixture
def hub(hub_process: Hub) -> Hub:
    hub_process.reset()
    return hub_process


@pytest.fixture
def world(
    hub: Hub, mongodb_uri: str, prefect_api_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A fresh database, a hub without faults, and settings that name them."""
    world = World(hub, mongodb_uri, prefect_api_url)
    set_all(monkeypatch, world.environment)
    yield world
    world.drop()
