"""Slots: how often Prefect is asked for them, and what happens where it does not grant any."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
)
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException

from tasks.entities import ENTITY_TYPES
from tasks.limit import LIMIT_PREFIX, SlotsUnavailable, limit_name
from tasks.prefect_api import fault_in_words
from tasks.settings import Settings, read_settings
from tasks.slots import LEASE_SECONDS, Slots

PATIENCE = 60.0
NAME = f"{LIMIT_PREFIX}hub.example-00000000"
REQUEST = httpx.Request("POST", "http://prefect.example/api")
UNREACHABLE = httpx.ConnectError("http://user:marked@prefect.example")


class Prefect:
    """A Prefect server with one concurrency limit, as its client sees it."""

    def __init__(self, size: int) -> None:
        self.limit: GlobalConcurrencyLimitResponse | None = a_limit(size)
        self.asked: list[int] = []
        self.leases: dict[UUID, int] = {}
        self.renewed: list[UUID] = []
        self.faults: list[Exception] = []
        self.is_away = False
        self._lock = threading.Lock()

    def read_global_concurrency_limit_by_name(self, name: str) -> GlobalConcurrencyLimitResponse:
        assert name == NAME
        self._fail()
        if self.limit is None:
            raise ObjectNotFound(ValueError())
        return self.limit

    def create_global_concurrency_limit(self, limit: GlobalConcurrencyLimitCreate) -> UUID:
        self._fail()
        self.limit = a_limit(limit.limit)
        return self.limit.id

    def update_global_concurrency_limit(
        self, name: str, update: GlobalConcurrencyLimitUpdate
    ) -> None:
        self._fail()
        assert self.limit is not None
        assert name == str(self.limit.id)
        self.limit = self.limit.model_copy(update=update.model_dump(exclude_unset=True))

    def increment_concurrency_slots_with_lease(
        self, names: list[str], slots: int, mode: str, lease_duration: float
    ) -> httpx.Response:
        assert (names, mode, lease_duration) == ([NAME], "concurrency", LEASE_SECONDS)
        with self._lock:
            self.asked.append(slots)
            self._fail()
            lease_id = uuid4()
            granted: dict[str, Any] = {"lease_id": str(lease_id), "limits": []}
            if self.limit is not None:
                granted["limits"].append(self._taken(slots))
                self.leases[lease_id] = slots
        return httpx.Response(200, json=granted, request=REQUEST)

    def _taken(self, slots: int) -> dict[str, Any]:
        assert self.limit is not None
        if slots > self.limit.limit:
            raise status_error(422)
        if sum(self.leases.values()) + slots > self.limit.limit:
            raise status_error(423)
        return {"id": str(self.limit.id), "name": NAME, "limit": self.limit.limit}

    def renew_concurrency_lease(self, lease_id: UUID, lease_duration: float) -> None:
        assert lease_duration == LEASE_SECONDS
        self.renewed.append(lease_id)
        self._fail()
        if lease_id not in self.leases:
            raise status_error(410)

    def release_concurrency_slots_with_lease(self, lease_id: UUID) -> None:
        self._fail()
        del self.leases[lease_id]

    def new_slots(self, size: int = 5) -> Slots:
        """Return the slots of a process."""
        client: Any = self
        return Slots(client, NAME, size)

    def _fail(self) -> None:
        if self.is_away:
            raise UNREACHABLE
        if self.faults:
            raise self.faults.pop(0)


def a_limit(size: int) -> GlobalConcurrencyLimitResponse:
    return GlobalConcurrencyLimitResponse(
        id=uuid4(), name=NAME, limit=size, active=True, active_slots=0, slot_decay_per_second=0
    )


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
    return soon_within(PATIENCE, condition)


def soon_within(seconds: float, condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + seconds
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


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Let time go by 50 times as fast."""
    fast = 50
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() * fast, sleep=lambda seconds: time.sleep(seconds / fast)
    )
    monkeypatch.setattr("tasks.slots.time", clock)
    monkeypatch.setattr("tasks.slots.IDLE_SECONDS", 1.0)
    return clock


def settings(monkeypatch: pytest.MonkeyPatch, base: str, **variables: str) -> Settings:
    environment = {
        "MONGODB_URI": "mongodb://localhost",
        "ADMIN_SYNC_TOKEN": "t",
        "ADMIN_ALLOW_INSECURE_HTTP": "true",
        **{each.url_variable: f"{base}/{each.endpoint}" for each in ENTITY_TYPES},
        **variables,
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    return read_settings()


def test_a_limit_is_named_after_the_stage_1_that_it_protects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = limit_name(settings(monkeypatch, "https://hub.example:8443/admin"))
    assert re.fullmatch(r"admin-sync-requests-hub\.example:8443-[0-9a-f]{8}", name)
    same = {"MONGODB_DB": "another", "ADMIN_SYNC_TOKEN": "other", "ADMIN_CONCURRENCY": "9"}
    assert limit_name(settings(monkeypatch, "https://hub.example:8443/admin", **same)) == name
    secret = "https://user:marked@hub.example:8443/admin"
    assert limit_name(settings(monkeypatch, secret)) == name
    query = {"ADMIN_TENANTS_UPSERT_URL": "https://hub.example:8443/admin/tenants?key=marked"}
    assert limit_name(settings(monkeypatch, "https://hub.example:8443/admin", **query)) == name


def test_each_endpoint_counts_for_the_name_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [{each.url_variable: "https://hub2.example/"} for each in ENTITY_TYPES]
    names = {
        limit_name(settings(monkeypatch, "https://hub.example", **urls))
        for urls in [{}, *elsewhere]
    }
    assert len(names) == 1 + len(ENTITY_TYPES)


def test_prefect_takes_the_name_of_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    name = limit_name(settings(monkeypatch, "http://a&b%41.example/a"))
    assert GlobalConcurrencyLimitCreate(name=name, limit=1)


@pytest.mark.parametrize("fault", [ObjectAlreadyExists, ObjectNotFound])
def test_the_limit_follows_the_setting_whoever_makes_or_deletes_it(
    fault: type[PrefectException],
) -> None:
    prefect = Prefect(size=1)
    prefect.faults = [fault(ValueError())]
    prefect.new_slots().start_limit()
    assert prefect.limit is not None
    assert prefect.limit.limit == 5


@pytest.mark.parametrize("fault", [UNREACHABLE, status_error(500), ValueError("no JSON")])
def test_a_prefect_that_does_not_answer_is_told(fault: httpx.HTTPError | ValueError) -> None:
    prefect = Prefect(size=1)
    told = re.escape(f"Prefect grants no slot. {fault_in_words(fault)}")
    prefect.faults = [fault]
    with pytest.raises(SlotsUnavailable, match=told) as raised:
        prefect.new_slots().start_limit()
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
    fast_clock: SimpleNamespace,
) -> None:
    prefect = Prefect(size=2)
    slots = prefect.new_slots()
    with slots.held(wanted) as slot:
        (lease_id,) = prefect.leases
        held_at = fast_clock.monotonic()
        assert soon(lambda: len(prefect.renewed) >= 3)
        assert fast_clock.monotonic() - held_at >= 10
        assert set(prefect.renewed) == set(prefect.leases) == {lease_id}
        assert slot.await_lease()
        assert prefect.asked == [1]
    assert soon(lambda: prefect.leases == {})


@pytest.mark.usefixtures("fast_clock")
def test_while_prefect_is_away_nothing_is_sent_once_the_lease_has_ended() -> None:
    prefect = Prefect(size=1)
    slots = prefect.new_slots()
    with ThreadPoolExecutor(1) as threads, slots.held(wanted) as slot:
        lease = slot.lease
        assert lease is not None
        prefect.is_away = True
        assert slot.await_lease()
        assert soon(lambda: not lease.is_valid)
        renewals = len(prefect.renewed)
        sending = threads.submit(slot.await_lease)
        assert not soon_within(0.3, sending.done)
        prefect.is_away = False
        assert not soon_within(0.3, sending.done), "an ended lease is not for us to end"
        assert prefect.leases.keys() == {lease.id}
        assert len(prefect.renewed) == renewals
        prefect.leases.clear()
        assert sending.result(PATIENCE)
        assert slot.lease is not lease
    slots.release_idle()


def test_a_batch_that_is_no_longer_wanted_waits_for_no_lease() -> None:
    prefect = Prefect(size=1)
    is_open = True
    with prefect.new_slots().held(lambda: is_open) as slot:
        assert slot.lease is not None
        slot.lease.valid_until = 0.0
        is_open = False
        assert not slot.await_lease()
    assert prefect.asked == [1]


def test_a_limit_that_is_deleted_while_slots_are_asked_for_grants_none() -> None:
    prefect = Prefect(size=1)

    def delete_it() -> bool:
        if not prefect.asked:
            prefect.limit = None
        return True

    slots = prefect.new_slots(size=2)
    with slots.held(delete_it):
        assert prefect.limit is not None
        assert prefect.limit.limit == 2
    slots.release_idle()
