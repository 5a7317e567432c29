"""How soon a sync that is asked for runs and ends, beside Prefect's floor, on `scripts/serve`."""

import argparse
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID

import httpx
from bson import ObjectId
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings

from scripts.local.prefect import one_authority
from scripts.local.process import answers, free_port, running
from tasks.trail.ownership import WAITING
from tests.benchmarks.checks import BenchmarkFailed
from tests.benchmarks.figures import at_most
from tests.benchmarks.parts import Parts, benchmark_parts
from tests.benchmarks.testbed import REPOSITORY, Testbed, new_testbed
from tests.benchmarks.workload import SEED

_RUNNING_GOAL: Final = at_most(1.9)
_END_GOAL: Final = at_most(3.0)
_FLOOR_GOAL: Final = at_most(1.25)
_REST_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 5.0
"""Time between two rounds, and up to as much again: the worker's next look may be near or far."""
_LOOK_SECONDS: Final = 0.25
_PATIENCE_SECONDS: Final = 120.0
_ANSWER: Final = re.compile(r'"[A-Z]+ \S+ HTTP/1\.1" (\d{3})')
"""An answer in the log of the Prefect server."""
_BUSY: Final = "503"


@dataclass(frozen=True)
class Round:
    """Seconds from the POST until a sync runs and has ended, and those of an empty flow's run.

    `floor` is the empty flow as Prefect comes, `tuned_floor` with what `scripts/serve` sets.
    """

    until_running: float
    until_end: float
    floor: float
    tuned_floor: float

    @property
    def seconds(self) -> float:
        return self.until_end - self.until_running

    @property
    def times_the_floor(self) -> float:
        return self.seconds / self.floor

    @property
    def times_the_tuned_floor(self) -> float:
        return self.seconds / self.tuned_floor

    def __str__(self) -> str:
        return (
            f"running after {self.until_running:.2f} s, ended after {self.until_end:.2f} s; "
            f"{self.times_the_floor:.2f} times Prefect's floor of {self.floor:.2f} s, "
            f"{self.times_the_tuned_floor:.2f} times {self.tuned_floor:.2f} s as served"
        )


@dataclass(frozen=True)
class Served:
    """What `scripts/serve` serves: the REST API, and Prefect with a worker."""

    testbed: Testbed
    rest_api: str
    prefect: SyncPrefectClient

    def round(self) -> Round:
        """Start a sync by POST and wait for its end, then run an empty flow, twice."""
        asked_at = datetime.now(UTC)
        started = httpx.post(f"{self.rest_api}/admin/sync/run", timeout=_PATIENCE_SECONDS)
        run_id = ObjectId(started.raise_for_status().json()["run_id"])
        document = self.testbed.database.sync_runs.find_one({"_id": run_id})
        assert document is not None
        flow_run = self._ended(UUID(document["flow_run_id"]))
        return Round(
            (_running_since(self._states(flow_run)) - asked_at).total_seconds(),
            (_ended_at(flow_run) - asked_at).total_seconds(),
            self._floor(),
            self._floor(**_one_authority(self.testbed.parts)),
        )

    def handover(self) -> float:
        """Ask for two syncs at once; return the seconds from the first's end until the other runs.

        What runs, and waits for its turn, does not count as running.
        """
        deployment = self.prefect.read_deployment_by_name("admin-sync/full")
        asked = [self.prefect.create_flow_run_from_deployment(deployment.id).id for _ in range(2)]
        first, second = sorted((self._ended(each) for each in asked), key=_ended_at)
        return (_running_since(self._states(second)) - _ended_at(first)).total_seconds()

    def _ended(self, flow_run_id: UUID) -> FlowRun:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            flow_run = self.prefect.read_flow_run(flow_run_id)
            if flow_run.state is not None and flow_run.state.is_completed():
                return flow_run
            time.sleep(_LOOK_SECONDS)
        raise BenchmarkFailed(f"flow run {flow_run_id} did not succeed: {flow_run.state}")

    def _states(self, flow_run: FlowRun) -> Sequence[State[Any]]:
        return self.prefect.read_flow_run_states(flow_run.id)

    def _floor(self, **settings: str) -> float:
        command = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.empty_flow"],
            env={**self.testbed.environment, **settings},
            cwd=self.testbed.parts.scratch,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
            start_new_session=True,  # as a worker starts a run: the kernel shares time by session
        )
        flow_run = self._ended(UUID(command.stdout.strip()))
        return (_ended_at(flow_run) - _running_since(self._states(flow_run))).total_seconds()


def _running_since(states: Sequence[State[Any]]) -> datetime:
    """Return since when a flow run runs without a wait for its turn."""
    return max(state.timestamp for state in states if state.is_running() and state.name != WAITING)


def _ended_at(flow_run: FlowRun) -> datetime:
    assert flow_run.state is not None
    return flow_run.state.timestamp


def _one_authority(parts: Parts) -> dict[str, str]:
    """Return what `scripts/serve` sets beside a Prefect server that it starts itself."""
    return {"PREFECT_API_SSL_CERT_FILE": str(one_authority(parts.scratch))}


@contextmanager
def _served() -> Iterator[Served]:
    """Run `scripts/serve` on servers of its own, whose Prefect server logs each answer."""
    port = free_port()
    rest_api = f"http://127.0.0.1:{port}/api"
    logged = patch.dict(os.environ, {"PREFECT_SERVER_LOGGING_LEVEL": "INFO"})
    with logged, benchmark_parts() as parts, new_testbed(parts, SEED) as testbed:
        to_server = temporary_settings({PREFECT_API_URL: parts.prefect.address})
        with (
            running(
                [sys.executable, "-m", "scripts.local.serve"],
                name="scripts/serve",
                ready=lambda: answers(f"{rest_api}/health", within_seconds=2),
                env={
                    **testbed.environment,
                    **_one_authority(parts),
                    "ADMIN_API_PORT": str(port),
                },
                log_path=parts.scratch / "serve.log",
                timeout_seconds=600.0,
                cwd=REPOSITORY,
            ),
            to_server,
            get_client(sync_client=True) as prefect,
        ):
            yield Served(testbed, rest_api, prefect)


def _answers_during(server_log: Path, work: Callable[[], None]) -> list[str]:
    """Return the status of each answer that a Prefect server gives while the work is done."""
    known = server_log.stat().st_size
    work()
    with server_log.open(encoding="utf-8", errors="replace") as log:
        log.seek(known)
        return _ANSWER.findall(log.read())


def _measure(served: Served, rounds: int) -> None:
    server_log = served.testbed.parts.scratch / "prefect" / "server.log"
    at_rest = _answers_during(server_log, lambda: time.sleep(_REST_SECONDS))
    measured: list[Round] = []

    def sync() -> None:
        for number in range(rounds):
            time.sleep(_PAUSE_SECONDS * random.uniform(1, 2))
            measured.append(served.round())
            print(f"round {number + 1}: {measured[-1]}", flush=True)
        print(f"a second sync runs {served.handover():.2f} s after the end of the one before it")

    under_syncs = _answers_during(server_log, sync)
    for name, value, goal in (
        ("POST to running, s", median(each.until_running for each in measured), _RUNNING_GOAL),
        ("POST to the end, s", median(each.until_end for each in measured), _END_GOAL),
        ("times the floor", median(each.times_the_floor for each in measured), _FLOOR_GOAL),
    ):
        verdict = "met" if goal.is_met_by(value) else "missed"
        print(f"median {name}: {value:.2f}, goal {goal.comparison} {goal.bound}: {verdict}")
    as_served = median(each.times_the_tuned_floor for each in measured)
    print(f"median times the floor as served: {as_served:.2f}")
    for when, statuses in (("at rest", at_rest), ("under syncs", under_syncs)):
        print(f"answers 503 {when}: {statuses.count(_BUSY)} of {len(statuses)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    with _served() as served:
        _measure(served, arguments.rounds)


if __name__ == "__main__":
    main()
