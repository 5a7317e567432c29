"""`ADMIN_CONCURRENCY` holds over all processes: batches take slots of one Prefect limit."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from tasks.slots import IDLE_SECONDS, LEASE_SECONDS, LIMIT_NAME, Slots
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, World, wait_until


@dataclass(frozen=True)
class Limit:
    """The limit as Prefect sees it."""

    client: SyncPrefectClient

    @property
    def taken(self) -> int:
        limit = self.client.read_global_concurrency_limit_by_name(LIMIT_NAME)
        return limit.active_slots

    @property
    def size(self) -> int:
        return self.client.read_global_concurrency_limit_by_name(LIMIT_NAME).limit

    def new_slots(self) -> Slots:
        """Return the slots of what might be another process."""
        return Slots(self.client)


@pytest.fixture
def limit(prefect_api_url: str) -> Iterator[Limit]:
    assert prefect_api_url
    with get_client(sync_client=True) as client:
        limit = Limit(client)
        limit.new_slots().limit_to(3)
        wait_until(lambda: limit.taken == 0)
        yield limit
        wait_until(lambda: limit.taken == 0)


def wanted() -> bool:
    return True


@pytest.fixture
def _idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a slow machine the time to look at a slot that lies idle."""
    monkeypatch.setattr("tasks.slots.IDLE_SECONDS", 5 * IDLE_SECONDS)


def test_the_limit_is_made_where_it_is_missing_and_follows_the_setting(limit: Limit) -> None:
    limit.client.delete_global_concurrency_limit_by_name(LIMIT_NAME)
    limit.new_slots().limit_to(5)
    assert limit.size == 5
    limit.new_slots().limit_to(2)
    assert limit.size == 2


def test_runs_that_begin_at_once_make_the_limit_once(limit: Limit) -> None:
    for _ in range(3):
        limit.client.delete_global_concurrency_limit_by_name(LIMIT_NAME)
        with ThreadPoolExecutor(8) as runs:
            for made in [runs.submit(limit.new_slots().limit_to, 3) for _ in range(8)]:
                made.result()
        assert limit.size == 3


@pytest.mark.usefixtures("_idle_for_long")
def test_a_slot_is_handed_on_to_the_next_batch_and_given_back_when_none_comes(
    limit: Limit,
) -> None:
    slots = limit.new_slots()
    for _ in range(20):
        with slots.held(wanted):
            assert limit.taken == 1
        assert limit.taken == 1
    started = time.monotonic()
    wait_until(lambda: limit.taken == 0)
    assert time.monotonic() - started < LEASE_SECONDS / 2, "it was free when its lease ended"


def test_what_a_stage_expects_is_asked_for_once(limit: Limit) -> None:
    slots = limit.new_slots()
    slots.expect(3)
    with slots.held(wanted):
        assert limit.taken == 3
    wait_until(lambda: limit.taken == 0)
    with slots.held(wanted):
        assert limit.taken == 1


def test_no_more_slots_are_taken_than_batches_hold(limit: Limit) -> None:
    limit.new_slots().limit_to(100)
    for _ in range(5):
        slots = limit.new_slots()
        all_hold = threading.Barrier(17)
        is_counted = threading.Event()

        def batch(slots: Slots, all_hold: threading.Barrier, is_counted: threading.Event) -> None:
            with slots.held(wanted):
                all_hold.wait(PATIENCE_SECONDS)
                is_counted.wait(PATIENCE_SECONDS)

        threads = [
            threading.Thread(target=batch, args=[slots, all_hold, is_counted]) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        all_hold.wait(PATIENCE_SECONDS)
        taken = limit.taken
        is_counted.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        slots.release_idle()
        assert taken == 16


def test_batches_at_once_take_as_many_slots_and_never_more_than_there_are(limit: Limit) -> None:
    processes = [limit.new_slots(), limit.new_slots()]
    holders = most = 0
    counting = threading.Lock()
    all_are_taken = threading.Barrier(3)

    def batch(slots: Slots) -> None:
        nonlocal holders, most
        with slots.held(wanted):
            with counting:
                holders += 1
                most = max(most, holders)
            all_are_taken.wait(PATIENCE_SECONDS)
            with counting:
                holders -= 1

    threads = [threading.Thread(target=batch, args=[processes[n % 2]]) for n in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert most == 3
    assert holders == 0
    wait_until(lambda: limit.taken == 0)


def test_a_batch_that_is_no_longer_wanted_waits_no_longer(limit: Limit) -> None:
    limit.new_slots().limit_to(1)
    slots = limit.new_slots()
    deadline = time.monotonic() + 0.5
    with limit.new_slots().held(wanted), slots.held(lambda: time.monotonic() < deadline):
        assert limit.taken == 1
        assert time.monotonic() - deadline < LEASE_SECONDS / 2


@contextmanager
def sync_process(world: World, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a sync of everything in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.sync_now"],
        env={**os.environ, **world.environment, **settings},
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_two_runs_at_once_share_the_concurrency(world: World) -> None:
    world.add_tenants(60)
    world.hub.misbehave({"delay_ms": 100})
    settings = {"ADMIN_CONCURRENCY": "3", "ADMIN_MAX_TASK_RUNS": "20"}
    with sync_process(world, **settings) as first, sync_process(world, **settings) as second:
        assert (first.wait(PATIENCE_SECONDS), second.wait(PATIENCE_SECONDS)) == (0, 0)
    statuses = [run["status"] for run in world.database.sync_runs.find()]
    assert statuses == ["success", "success"]
    assert world.database.sync_steps.count_documents({"ok": True}) == 120
    assert world.hub.stats()["max_in_flight"] == 3


def test_a_killed_process_blocks_the_next_run_no_longer_than_its_lease(world: World) -> None:
    world.add_tenants(1)
    world.hub.misbehave({"delay_ms": 60_000, "attempts": [1]})
    settings = {"ADMIN_CONCURRENCY": "1", "ADMIN_TIMEOUT_MS": "90000"}
    with sync_process(world, **settings) as doomed:
        wait_until(lambda: world.hub.stats()["in_flight"] == 1)
        doomed.send_signal(signal.SIGKILL)
    started = time.monotonic()
    with sync_process(world, **settings) as following:
        assert following.wait(PATIENCE_SECONDS) == 0
    assert time.monotonic() - started < 3 * LEASE_SECONDS, "that is no lease of ours"
