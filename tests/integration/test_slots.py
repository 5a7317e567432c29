"""`ADMIN_CONCURRENCY` holds over all processes: batches take slots of one Prefect limit."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

from tasks.limit import LIMIT_PREFIX
from tasks.slots import IDLE_SECONDS, LEASE_SECONDS, Slots
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, World, set_all, wait_until


@dataclass(frozen=True)
class Limit:
    """The limit as Prefect sees it."""

    client: SyncPrefectClient
    name: str = f"{LIMIT_PREFIX}hub.example-00000000"

    @property
    def taken(self) -> int:
        return self._read().active_slots

    @property
    def size(self) -> int:
        return self._read().limit

    @property
    def is_on(self) -> bool:
        return self._read().active

    def new_slots(self, size: int = 3) -> Slots:
        """Return the slots of what might be another process."""
        return Slots(self.client, self.name, size)

    def start(self, size: int = 3) -> Slots:
        """Begin a run: return its slots, once the limit is as it should be."""
        slots = self.new_slots(size)
        slots.start_limit()
        return slots

    def delete(self) -> None:
        self.client.delete_global_concurrency_limit_by_name(self.name)

    def set_to_0(self) -> None:
        self._update(limit=0)

    def switch_off(self) -> None:
        self._update(active=False)

    def take(self, slots: int) -> UUID:
        """Take slots as a process does; return the lease."""
        answer = self.client.increment_concurrency_slots_with_lease(
            [self.name], slots, "concurrency", LEASE_SECONDS
        )
        return UUID(answer.json()["lease_id"])

    def free(self, lease_id: UUID) -> None:
        """Free slots as their process does, or Prefect once their lease has ended."""
        self.client.release_concurrency_slots_with_lease(lease_id)

    def end_all_leases(self) -> None:
        """Count no slot as taken, as Prefect does once the leases of all processes have ended."""
        self._update(active_slots=0)

    def _read(self) -> GlobalConcurrencyLimitResponse:
        return self.client.read_global_concurrency_limit_by_name(self.name)

    def _update(self, **changes: Any) -> None:
        update = GlobalConcurrencyLimitUpdate(**changes)
        self.client.update_global_concurrency_limit(self.name, update)


@pytest.fixture
def limit(prefect_api_url: str) -> Iterator[Limit]:
    assert prefect_api_url
    with get_client(sync_client=True) as client:
        limit = Limit(client)
        limit.start()
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
    limit.delete()
    limit.start(5)
    assert limit.size == 5
    limit.start(2)
    assert limit.size == 2


def test_runs_that_begin_at_once_make_the_limit_once(limit: Limit) -> None:
    for _ in range(3):
        limit.delete()
        with ThreadPoolExecutor(8) as runs:
            for made in [runs.submit(limit.start) for _ in range(8)]:
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
    limit.start(100)
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
    slots = limit.start(1)
    deadline = time.monotonic() + 0.5
    with limit.new_slots().held(wanted), slots.held(lambda: time.monotonic() < deadline) as slot:
        assert not slot.await_lease()
        assert limit.taken == 1
        assert time.monotonic() - deadline < LEASE_SECONDS / 2


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process look often whether its leases are still there."""
    monkeypatch.setattr("tasks.slots.IDLE_SECONDS", 0.1)
    monkeypatch.setattr("tasks.slots._RENEWAL_SECONDS", 0.1)


TAKEN_AWAY = [
    (Limit.switch_off, "switched off"),
    (Limit.set_to_0, "set to 0"),
    (Limit.delete, "deleted"),
]


@pytest.mark.parametrize(("take_away", "told"), TAKEN_AWAY[:2], ids=["off", "0"])
def test_a_limit_that_somebody_took_away_is_told_and_is_back_at_the_next_start(
    limit: Limit,
    take_away: Callable[[Limit], None],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    take_away(limit)
    limit.start(2)
    assert (limit.is_on, limit.size) == (True, 2)
    (warning,) = warnings_in(caplog)
    assert f"The concurrency limit {limit.name} was {told}" in warning
    limit.start(2)
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize(("take_away", "told"), TAKEN_AWAY, ids=["off", "0", "deleted"])
def test_a_limit_that_is_taken_away_in_mid_run_is_back_for_the_next_batch(
    limit: Limit,
    take_away: Callable[[Limit], None],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slots = limit.new_slots()
    take_away(limit)
    with slots.held(wanted) as slot:
        assert slot.await_lease()
        assert (limit.is_on, limit.size, limit.taken) == (True, 3, 1)
    slots.release_idle()
    (warning,) = warnings_in(caplog)
    assert f"The concurrency limit {limit.name} was {told}" in warning


def test_slots_are_freed_of_a_limit_that_was_switched_off_in_between(limit: Limit) -> None:
    slots = limit.new_slots()
    with slots.held(wanted):
        limit.switch_off()
    slots.release_idle()
    assert (limit.is_on, limit.taken) == (True, 0)


def test_slots_that_ended_uncounted_while_the_limit_was_off_are_free_after_the_next_start(
    limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.limit._TAKEN_BACK_SECONDS", 0.5)
    of_a_dead_process = limit.take(3)
    limit.switch_off()
    limit.free(of_a_dead_process)
    assert limit.taken == 3, "Prefect counts by now: much of this is needed no more"
    limit.start()
    assert (limit.is_on, limit.taken) == (True, 0)


@pytest.mark.usefixtures("fast")
def test_slots_in_use_stay_counted_when_the_limit_was_off(limit: Limit) -> None:
    running = limit.new_slots()
    running.expect(3)
    with running.held(wanted) as slot:
        limit.switch_off()
        limit.start()
        assert (limit.is_on, limit.taken) == (True, 3)
        assert slot.await_lease()
    running.release_idle()


@pytest.mark.usefixtures("fast")
def test_slots_of_a_limit_that_was_deleted_are_counted_anew(limit: Limit) -> None:
    running = limit.new_slots()
    with running.held(wanted) as slot:
        limit.delete()
        limit.start()
        assert limit.taken == 0
        wait_until(lambda: slot.await_lease() and limit.taken == 1)
    running.release_idle()


@pytest.mark.usefixtures("fast")
def test_who_has_lost_its_lease_sends_nothing_until_there_is_another_slot(
    limit: Limit, caplog: pytest.LogCaptureFixture
) -> None:
    ours = limit.new_slots()
    ours.expect(3)
    with (
        ThreadPoolExecutor(2) as threads,
        ours.held(wanted) as slot,
        ours.held(wanted) as other_slot,
    ):
        lease = slot.lease
        assert lease is not None
        limit.free(lease.id)
        theirs = limit.take(3)
        wait_until(lambda: not lease.is_valid)
        sending = [threads.submit(each.await_lease) for each in (slot, other_slot)]
        wait_until(lambda: warnings_in(caplog))
        time.sleep(0.5)
        assert not any(each.done() for each in sending)
        limit.free(theirs)
        assert all(each.result(PATIENCE_SECONDS) for each in sending)
        assert limit.taken == 2
        (warning,) = warnings_in(caplog)
        assert f"waits for new slots of {limit.name}" in warning
    ours.release_idle()


def test_a_process_that_was_held_up_sends_nothing_until_it_has_a_slot_again(
    limit: Limit, prefect_api_url: str, tmp_path: Path
) -> None:
    limit.start(1)
    sent = tmp_path / "sent"
    with sender(limit.name, prefect_api_url, sent) as process:
        wait_until(lambda: sent.exists() and sent.stat().st_size > 1)
        process.send_signal(signal.SIGSTOP)
        limit.end_all_leases()
        theirs = limit.take(1)
        time.sleep(SHORT_LEASE_SECONDS)
        before = sent.stat().st_size
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert sent.stat().st_size == before
        limit.free(theirs)
        wait_until(lambda: sent.stat().st_size > before)
    limit.delete()
    limit.start()


def test_limits_of_two_stage_1s_leave_each_other_alone(limit: Limit) -> None:
    other = Limit(limit.client, f"{LIMIT_PREFIX}hub2.example-00000000")
    other.start(1)
    ours, theirs = limit.new_slots(), other.new_slots()
    with ours.held(wanted), theirs.held(wanted):
        assert (limit.size, limit.taken) == (3, 1)
        assert (other.size, other.taken) == (1, 1)
    ours.release_idle()
    other.delete()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        each.getMessage() for each in caplog.records if each.name in ("tasks.limit", "tasks.slots")
    ]


SHORT_LEASE_SECONDS = 1.5
SENDER = f"""
import sys, time
from prefect.client.orchestration import get_client
from tasks import slots
slots._VALID_SECONDS, slots._RENEWAL_SECONDS = {SHORT_LEASE_SECONDS}, 0.2
name, sent = sys.argv[1:]
with get_client(sync_client=True) as client, open(sent, "w", buffering=1) as file:
    with slots.Slots(client, name, 1).held(lambda: True) as slot:
        while slot.await_lease():
            print(file=file)
            time.sleep(0.05)
"""


@contextmanager
def sender(name: str, prefect_api_url: str, sent: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Send, in a process of its own, as long as it has a slot; each request is a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", SENDER, name, sent],
        env={**os.environ, "PREFECT_API_URL": prefect_api_url},
        cwd=REPOSITORY,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


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


def test_two_runs_at_once_share_the_concurrency(
    world: World, mongodb_uri: str, prefect_api_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ADMIN_CONCURRENCY": "3", "ADMIN_MAX_TASK_RUNS": "20"}
    set_all(monkeypatch, settings)
    # Of one database, one run would wait for the other one.
    other_world = World(world.hub, mongodb_uri, prefect_api_url)
    for each in (world, other_world):
        each.add_tenants(60)
    world.hub.misbehave({"delay_ms": 150})
    with sync_process(other_world, **settings) as other:
        wait_until(world.hub.requests)
        assert world.sync().document["status"] == "success"
        assert other.wait(PATIENCE_SECONDS) == 0
    for each in (world, other_world):
        assert each.database.sync_steps.count_documents({"ok": True}) == 60
    other_world.drop()
    assert world.hub.stats()["max_in_flight"] == 3


def test_a_killed_process_blocks_the_next_run_no_longer_than_its_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ADMIN_CONCURRENCY": "1", "ADMIN_TIMEOUT_MS": "90000"}
    set_all(monkeypatch, settings)
    world.add_tenants(1)
    world.hub.misbehave({"delay_ms": 60_000, "attempts": [1]})
    with sync_process(world, **settings) as doomed:
        wait_until(lambda: world.hub.stats()["in_flight"] == 1)
        doomed.send_signal(signal.SIGKILL)
    world.silence()
    started = time.monotonic()
    assert world.sync().document["status"] == "success"
    assert time.monotonic() - started < 3 * LEASE_SECONDS, "that is no lease of ours"
