"""What an integration test sees of the world: the hub's door, the source, the audit trail."""

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from pymongo import MongoClient

from flows.admin_sync import admin_sync
from scripts.local.hub import upsert_urls
from scripts.local.process import answers, free_port, running
from scripts.seed_source import SEED_DOCUMENTS
from tasks.entities import ENTITY_NAMES, entity_type_named, in_sync_order

HUB_TOKEN = "integration-test-token-5f1c"
REPOSITORY = Path(__file__).parents[2]

PATIENCE_SECONDS = 300
"""How long a test waits before it fails: long enough for a machine that is busy otherwise."""

Document = dict[str, Any]
Answer = TypeVar("Answer")


# One client, since each reads all certificates of the machine; one connection a request, since a
# hub may be killed in between.
http = httpx.Client(timeout=PATIENCE_SECONDS, limits=httpx.Limits(max_keepalive_connections=0))


def set_all(environment: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for variable, value in variables.items():
        environment.setenv(variable, value)


def wait_until(condition: Callable[[], Answer | None], poll_seconds: float = 0.1) -> Answer:
    """Return the first truthy answer; fail after a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(poll_seconds)
    return answer


@contextmanager
def prefect_at(api_url: str) -> Iterator[None]:
    """Use a Prefect server in this process, for its events and logs too.

    Prefect has one worker for each, which stays with the server that it was started for: they end
    with the block, and before it.
    """
    _end_workers_of_prefect()
    with temporary_settings({PREFECT_API_URL: api_url}):
        yield
        _end_workers_of_prefect()


def _end_workers_of_prefect() -> None:
    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=30, at_exit=False)


@dataclass(frozen=True)
class Hub:
    """The local hub's control door; with its process it can be killed, too."""

    base_url: str
    process_id: int | None = None

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    def reset(self) -> None:
        """Forget all, once no request of a test before is under way any more."""
        wait_until(lambda: self.stats()["in_flight"] == 0)
        http.post(f"{self.base_url}/_hub/reset").raise_for_status()

    def misbehave(self, *faults: Document) -> None:
        http.put(f"{self.base_url}/_hub/faults", json=list(faults)).raise_for_status()

    def requests(self, key: str | None = None) -> list[Document]:
        log: list[Document] = http.get(f"{self.base_url}/_hub/requests").json()
        return [request for request in log if key in (None, request["key"])]

    def stats(self) -> Document:
        stats: Document = http.get(f"{self.base_url}/_hub/stats").json()
        return stats

    def kill(self) -> None:
        assert self.process_id is not None
        os.kill(self.process_id, signal.SIGKILL)


@contextmanager
def started_hub(
    mongodb_uri: str, log_path: Path, port: int | None = None, database: str = "local_hub"
) -> Iterator[Hub]:
    """Run a hub as a process of its own, by default on a free port."""
    port = port or free_port()
    base_url = f"http://127.0.0.1:{port}"
    with running(
        [sys.executable, "-m", "scripts.local.hub", "--port", str(port), "--db", database],
        name="The local hub",
        ready=lambda: answers(f"{base_url}/_hub/stats", within_seconds=5),
        timeout_seconds=PATIENCE_SECONDS,
        env={**os.environ, "ADMIN_SYNC_TOKEN": HUB_TOKEN, "MONGODB_URI": mongodb_uri},
        log_path=log_path,
        cwd=REPOSITORY,
    ) as process:
        yield Hub(base_url, process.pid)


@dataclass(frozen=True)
class SyncRun:
    """What a finished sync has left behind: Prefect's state and the audit trail."""

    state: State[Any]
    document: Document
    steps: list[Document]

    def step(self, natural_key: str) -> Document:
        (step,) = [step for step in self.steps if step["natural_key"] == natural_key]
        return step

    def codes(self) -> dict[str | None, str | None]:
        """Error code by natural key; None for what is in."""
        return {step["natural_key"]: step["error"] and step["error"]["code"] for step in self.steps}


class World:
    """A backoffice database of its own, and the hub that it is synced into."""

    def __init__(self, hub: Hub, mongodb_uri: str, prefect_api_url: str) -> None:
        self.hub = hub
        self.database_name = f"backoffice_{uuid.uuid4().hex[:12]}"
        self._client: MongoClient[Document] = MongoClient(mongodb_uri, tz_aware=True)
        self.database = self._client[self.database_name]
        self._added: set[str] = set()
        self.environment = {
            "MONGODB_URI": mongodb_uri,
            "MONGODB_DB": self.database_name,
            "ADMIN_SYNC_TOKEN": HUB_TOKEN,
            "ADMIN_RETRY_BASE_DELAY_MS": "50",
            "PREFECT_API_URL": prefect_api_url,
            **upsert_urls(hub.base_url),
        }

    def drop(self) -> None:
        self._client.drop_database(self.database_name)
        self._client.close()

    def add(self, entity_type: str, *documents: Document) -> None:
        collection = entity_type_named(entity_type).collection
        self.database[collection].insert_many([dict(document) for document in documents])
        self._added.add(entity_type)

    def add_seed(self) -> None:
        for entity_type, document in SEED_DOCUMENTS.items():
            self.add(entity_type, {**document, "version": 1})

    def add_tenants(self, count: int) -> list[str]:
        keys = [f"tenant-{number:04}" for number in range(count)]
        self.add("tenant", *({"id": key, "name": key.title(), "version": 1} for key in keys))
        return keys

    def held(self, entity_type: str) -> dict[str, Document]:
        """Return what the hub holds of a type, by natural key."""
        held = self._client["local_hub"][entity_type_named(entity_type).endpoint].find()
        return {document["_id"]: document["item"] for document in held}

    def sync(self, **parameters: Any) -> SyncRun:
        """Run the flow in this process, as `admin_sync()` does, and look at what it left.

        Unless told which, it syncs the entity types that have documents: a stage takes its time.
        """
        parameters.setdefault("entities", in_sync_order(self._added or ENTITY_NAMES))
        return self.run_of(self.state_of_sync(**parameters))

    def sync_tenants_while(self, event: Callable[[], None]) -> SyncRun:
        """Sync the tenants in this thread, and let something happen in another one."""
        with ThreadPoolExecutor(1) as elsewhere:
            happening = elsewhere.submit(copy_context().run, event)
            run = self.sync(entities=["tenant"])
            happening.result()
        return run

    def state_of_sync(self, **parameters: Any) -> State[Any]:
        """Run the flow in this process and return the state that it ends in."""
        return asyncio.run(admin_sync(return_state=True, **parameters))

    def set_state(self, flow_run_id: str, state: State[Any]) -> None:
        """Give a flow run another state, as the dashboard does."""
        with get_client(sync_client=True) as api:
            api.set_flow_run_state(uuid.UUID(flow_run_id), state)

    def silence(self) -> None:
        """Let the last that was heard of any run's process be an hour ago."""
        spoken = {"alive_at": {"$exists": True}}
        earlier = {"$set": {"alive_at": {"$subtract": ["$$NOW", 3_600_000]}}}
        self.database.sync_runs.update_many(spoken, [earlier])

    def run_of(self, state: State[Any], flow_run_id: str | None = None) -> SyncRun:
        flow_run_id = flow_run_id or str(state.state_details.flow_run_id)
        (document,) = self.database.sync_runs.find({"flow_run_id": flow_run_id})
        steps = list(self.database.sync_steps.find({"run_id": document["_id"]}).sort("created_at"))
        return SyncRun(state, document, steps)


def stage_runs(flow_run_id: str) -> list[FlowRun]:
    """Return Prefect's records of a run's stages, oldest first."""
    with get_client(sync_client=True) as client:
        stages = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[uuid.UUID(flow_run_id)])
            )
        )
    return sorted(stages, key=lambda stage: stage.created or stage.expected_start_time)


def task_runs(stage: FlowRun, expected: int) -> list[TaskRun]:
    """Return Prefect's records of a stage's task runs; they are written up to seconds later."""
    of_stage = FlowRunFilter(id=FlowRunFilterId(any_=[stage.id]))

    def finished() -> list[TaskRun] | None:
        found = client.read_task_runs(flow_run_filter=of_stage)
        ended = [task_run for task_run in found if task_run.state and task_run.state.is_final()]
        return ended if len(ended) >= expected else None

    with get_client(sync_client=True) as client:
        return wait_until(finished, poll_seconds=0.3)
