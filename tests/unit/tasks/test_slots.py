"""Slots: how often Prefect is asked for them, and what happens where it does not grant any."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.exceptions import ObjectAlreadyExists

from tasks.slots import LEASE_SECONDS, LIMIT_NAME, Slots, SlotsUnavailable

PATIENCE = 60.0
REQUEST = httpx.Request("POST", "http://prefect.example/api")
UNREACHABLE = httpx.ConnectError("http://user:marked@prefect.example")


class Prefect:
    """A Prefect server with one concurrency limit, as its client sees it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked: list[int] = []
        self.leases: dict[UUID, int] = {}
        self.renewed: list[UUID] = []
        self.faults: list[Exception] = []
        self._lock = threading.Lock()

    def upsert_global_concurrency_limit_by_name(self, name: str, limit: int) -> None:
        assert name == LIMIT_NAME
        self._fail()
        self.size = limit

    def increment_concurrency_slots_with_lease(
        self, names: list[str], slots: int, mode: str, lease_duration: float
    ) -> httpx.Response:
        assert (names, mode, lease_duration) == ([LIMIT_NAME], "concurrency", LEASE_SECONDS)
        with self._lock:
            self.asked.append(slots)
            self._fail()
            if slots > self.size:
                raise status_error(422)
            if sum(self.leases.values()) + slots > self.size:
                raise status_error(423)
            lease_id = uuid4()
            self.leases[lease_id] = slots
        return httpx.Response(200, json={"lease_id": str(lease_id), "limits": []}, request=REQUEST)

    def renew_concurrency_lease(self, lease_id: UUID, lease_duration: float) -> None:
        assert lease_duration == LEASE_SECONDS
        self.renewed.append(lease_id)
        self._fail()

    def release_concurrency_slots_with_lease(self, lease_id: UUID) -> None:
        self._fail()
        del self.leases[lease_id]

    def new_slots(self) -> Slots:
        """Return the slots of a process."""
        client: Any = self
        return Slots(client)

    def _fail(self) -> None:
        if self.faults:
            raise self.faults.pop(0)


def status_error(status: int) -> httpx.HTTPStatusError:
    response = httpx.Response(status, headers={"Retry-After": "0.05"}, request=REQUEST)
    return httpx.HTTPStatusError(f"HTTP {status}", request=REQUEST, response=response)


@pytest.fixture(autouse=True)
def _idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a slow machine the time to look at a slot before it is released."""
    monkeypatch.setattr("tasks.slots.IDLE_SECONDS", PATIENCE)


def wanted() -> bool:
    return True


def soon(condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def hold_at_once(slots: Slots, batches: int) -> None:
    """Let so many batches hold a slot at the same moment."""
    all_hold = threading.Barrier(batches)

    def batch() -> None:
        with slots.held(wanted):
            all_hold.wait(PATIENCE)

    with ThreadPoolExecutor(batches) as threads:
        for held in [threads.submit(batch) for _ in range(batches)]:
            held.result(PATIENCE)


def test_the_limit_follows_the_setting_whoever_makes_it() -> None:
    prefect = Prefect(size=1)
    prefect.faults = [ObjectAlreadyExists(ValueError())]
    prefect.new_slots().limit_to(5)
    assert prefect.size == 5


@pytest.mark.parametrize("fault", [UNREACHABLE, status_error(500)])
def test_a_prefect_that_does_not_answer_is_told(fault: httpx.HTTPError) -> None:
    prefect = Prefect(size=1)
    told = (
        rf"Prefect grants no slot of {LIMIT_NAME} \({type(fault).__name__}\): "
        "check PREFECT_API_URL and that the server is up$"
    )
    prefect.faults = [fault]
    with pytest.raises(SlotsUnavailable, match=told) as raised:
        prefect.new_slots().limit_to(5)
    assert "marked" not in str(raised.value)
    prefect.faults = [fault]
    with pytest.raises(SlotsUnavailable, match=told), prefect.new_slots().held(wanted):
        pass


def test_a_slot_is_handed_on_even_by_a_batch_that_failed() -> None:
    prefect = Prefect(size=3)
    slots = prefect.new_slots()
    for _ in range(3):
        with pytest.raises(InterruptedError), slots.held(wanted):
            raise InterruptedError
    assert prefect.asked == [1]
    slots.release_idle()
    assert prefect.leases == {}


@pytest.mark.parametrize(("size", "asked"), [(5, [3]), (3, [3]), (2, [3, 1]), (1, [3, 1])], ids=str)
def test_a_stage_asks_once_for_all_of_its_batches(size: int, asked: list[int]) -> None:
    prefect = Prefect(size)
    slots = prefect.new_slots()
    slots.expect(3)
    with slots.held(wanted):
        assert prefect.asked == asked
        assert list(prefect.leases.values()) == asked[-1:]
    slots.release_idle()


def test_batches_at_once_have_a_slot_each_and_the_next_ones_take_them_over() -> None:
    prefect = Prefect(size=8)
    slots = prefect.new_slots()
    for _ in range(2):
        hold_at_once(slots, 8)
        assert sum(prefect.leases.values()) == 8
    slots.release_idle()
    assert prefect.leases == {}


def test_where_all_slots_are_taken_a_batch_waits_for_one() -> None:
    prefect = Prefect(size=1)
    ours, theirs = prefect.new_slots(), prefect.new_slots()
    with ThreadPoolExecutor(1) as threads:
        with theirs.held(wanted):
            waiting = threads.submit(hold_at_once, ours, 1)
            assert soon(lambda: len(prefect.asked) > 3)
            assert not waiting.done()
        theirs.release_idle()
        waiting.result(PATIENCE)
    ours.release_idle()
    assert prefect.leases == {}


def test_a_batch_that_is_no_longer_wanted_goes_on_without_a_slot() -> None:
    prefect = Prefect(size=1)
    answers = iter([True, True, False])
    with prefect.new_slots().held(wanted), prefect.new_slots().held(lambda: next(answers)):
        assert len(prefect.leases) == 1
    assert prefect.asked == [1, 1, 1]


def test_only_idle_slots_are_released() -> None:
    prefect = Prefect(size=2)
    slots = prefect.new_slots()
    with slots.held(wanted):
        slots.release_idle()
        assert len(prefect.leases) == 1
    slots.release_idle()
    assert prefect.leases == {}


@pytest.mark.parametrize("fault", [UNREACHABLE, RuntimeError("the client has been closed")])
def test_a_slot_that_can_not_be_released_is_no_longer_ours(fault: Exception) -> None:
    prefect = Prefect(size=2)
    slots = prefect.new_slots()
    with slots.held(wanted):
        pass
    prefect.faults = [fault]
    slots.release_idle()
    with slots.held(wanted):
        assert prefect.asked == [1, 1]
    slots.release_idle()
    assert len(prefect.leases) == 1


def test_leases_are_renewed_while_a_batch_holds_a_slot_and_end_when_none_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = 500
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() * fast, sleep=lambda seconds: time.sleep(seconds / fast)
    )
    monkeypatch.setattr("tasks.slots.time", clock)
    prefect = Prefect(size=2)
    slots = prefect.new_slots()
    with slots.held(wanted):
        (lease_id,) = prefect.leases
        prefect.faults = [UNREACHABLE]
        held_at = clock.monotonic()
        assert soon(lambda: len(prefect.renewed) >= 3)
        assert clock.monotonic() - held_at >= LEASE_SECONDS / 3
        assert set(prefect.renewed) == set(prefect.leases) == {lease_id}
    assert soon(lambda: prefect.leases == {})
