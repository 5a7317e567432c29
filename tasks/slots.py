"""Slots: how many batches may be in flight, over all workers, runs and machines.

They are those of a Prefect global concurrency limit. A batch holds one from its first request to
its last. A process hands a slot that it has on to its next batch, so that Prefect is asked once a
slot and not once a batch; one that no batch takes within `IDLE_SECONDS` is released. Slots of a
killed process are free again when their lease ends.
"""

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse
from prefect.exceptions import ObjectAlreadyExists

LIMIT_NAME: Final = "admin-sync-requests"
"""Name of the global concurrency limit; its size is `ADMIN_CONCURRENCY`."""
LEASE_SECONDS: Final = 60.0
"""How long a killed process may block its slots: the shortest lease that Prefect grants."""
IDLE_SECONDS: Final = 1.0
"""How long a slot waits for the next batch of its process."""
_RENEWAL_SECONDS: Final = LEASE_SECONDS / 3
_RETRY_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 30.0


class SlotsUnavailable(ConnectionError):
    """Prefect's API did not say whether a batch may send; nothing of it was sent."""

    def __init__(self, cause: httpx.HTTPError) -> None:
        super().__init__(
            f"Prefect grants no slot of {LIMIT_NAME} ({type(cause).__name__}): "
            "check PREFECT_API_URL and that the server is up"
        )


@dataclass
class _Lease:
    """Slots that were granted together, and are released together."""

    id: UUID
    size: int
    renewed_at: float = field(default_factory=time.monotonic)
    idle: int = 0
    idle_since: float = 0.0

    def is_idle_since(self, moment: float) -> bool:
        return self.idle == self.size and self.idle_since <= moment


class Slots:
    """The slots that this process has of the limit."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client
        self._leases: list[_Lease] = []
        self._expected = 0
        self._waiting = 0
        self._changed = threading.Condition()
        self._asking = threading.Lock()
        self._keeper: threading.Thread | None = None

    def limit_to(self, size: int) -> None:
        """Create the limit if it is missing, and let it be that large.

        Raises:
            SlotsUnavailable: Prefect's API doesn't answer.
        """
        try:
            self._limit_to(size)
        except ObjectAlreadyExists:  # another run has made it just now
            self._limit_to(size)

    def expect(self, batches: int) -> None:
        """Say how many batches are about to want a slot, so that Prefect is asked once for all."""
        self._expected = batches

    @contextmanager
    def held(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """Hold a slot while the block runs; wait for one as long as `is_wanted` says so.

        Raises:
            SlotsUnavailable: Prefect's API doesn't answer.
        """
        lease = self._take(is_wanted)
        try:
            yield
        finally:
            if lease is not None:
                self._put_down(lease)

    def release_idle(self) -> None:
        """Release all idle slots at once."""
        self._release_idle_since(time.monotonic())

    def _limit_to(self, size: int) -> None:
        try:
            self._client.upsert_global_concurrency_limit_by_name(LIMIT_NAME, size)
        except httpx.HTTPError as error:
            raise SlotsUnavailable(error) from None

    def _take(self, is_wanted: Callable[[], bool]) -> _Lease | None:
        while is_wanted():
            if lease := self._take_idle():
                return lease
            with self._changed:
                self._waiting += 1
            try:
                self._ask_for_more()
            finally:
                with self._changed:
                    self._waiting -= 1
        return None

    def _take_idle(self) -> _Lease | None:
        with self._changed:
            for lease in self._leases:
                if lease.idle:
                    lease.idle -= 1
                    return lease
            return None

    def _put_down(self, lease: _Lease) -> None:
        with self._changed:
            lease.idle += 1
            lease.idle_since = time.monotonic()
            self._changed.notify()

    def _ask_for_more(self) -> None:
        """Ask for a slot for each batch that waits, or wait while another thread asks."""
        if not self._asking.acquire(blocking=False):
            self._wait(_POLL_SECONDS)
            return
        try:
            with self._changed:
                idle = sum(lease.idle for lease in self._leases)
                leased = sum(lease.size for lease in self._leases)
                wanted = max(self._waiting - idle, self._expected - leased)
                self._expected = 0
            if wanted <= 0:
                return
            wait_seconds = self._lease(wanted)
            if wait_seconds and wanted > 1:
                wait_seconds = self._lease(1)
        finally:
            self._asking.release()
        self._wait(min(wait_seconds, _RETRY_SECONDS))

    def _wait(self, seconds: float) -> None:
        with self._changed:
            if seconds and not any(lease.idle for lease in self._leases):
                self._changed.wait(seconds)

    def _lease(self, size: int) -> float:
        """Lease that many slots; return 0, or after how many seconds Prefect wants to be asked."""
        try:
            response = self._client.increment_concurrency_slots_with_lease(
                [LIMIT_NAME], size, "concurrency", LEASE_SECONDS
            )
        except httpx.HTTPStatusError as error:
            match error.response.status_code:
                case HTTPStatus.LOCKED:
                    return float(error.response.headers["Retry-After"])
                case HTTPStatus.UNPROCESSABLE_ENTITY if size > 1:
                    return _RETRY_SECONDS  # more than the limit has
            raise SlotsUnavailable(error) from None
        except httpx.HTTPError as error:
            raise SlotsUnavailable(error) from None
        granted = ConcurrencyLimitWithLeaseResponse.model_validate(response.json())
        with self._changed:
            self._leases.append(_Lease(granted.lease_id, size, idle=size))
            self._changed.notify_all()
            if self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep, name="concurrency-slots", daemon=True
                )
                self._keeper.start()
        return 0.0

    def _keep(self) -> None:
        """Renew the leases and release idle ones, as long as there is any."""
        while True:
            time.sleep(IDLE_SECONDS)
            self._release_idle_since(time.monotonic() - IDLE_SECONDS)
            with self._changed:
                leases = list(self._leases)
                if not leases:
                    self._keeper = None
                    return
            for lease in leases:
                self._renew(lease)

    def _release_idle_since(self, moment: float) -> None:
        with self._changed:
            surplus = [lease for lease in self._leases if lease.is_idle_since(moment)]
            self._leases = [lease for lease in self._leases if lease not in surplus]
        for lease in surplus:
            # A slot that can't be released is free when its lease ends: Prefect may be away, or the
            # client closed, since a batch can outlive a flow run that was interrupted.
            with suppress(httpx.HTTPError, RuntimeError):
                self._client.release_concurrency_slots_with_lease(lease.id)

    def _renew(self, lease: _Lease) -> None:
        if time.monotonic() - lease.renewed_at < _RENEWAL_SECONDS:
            return
        with suppress(httpx.HTTPError, RuntimeError):
            self._client.renew_concurrency_lease(lease.id, LEASE_SECONDS)
            lease.renewed_at = time.monotonic()


@lru_cache(maxsize=1)
def slots_of_process() -> Slots:
    """Return the slots of a process that works for flow runs elsewhere."""
    # A client of its own: that of a task run is closed when the task run ends.
    slots = Slots(get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True))
    atexit.register(slots.release_idle)
    return slots
