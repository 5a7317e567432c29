"""Slots: how many batches may send at once, over all workers, runs and machines.

They are those of a Prefect global concurrency limit. A batch holds one from its first request to
its last. A process hands a slot that it has on to its next batch, so that Prefect is asked once a
slot and not once a batch; one that no batch takes within `IDLE_SECONDS` is released. Slots of a
killed process are free again when their lease ends.

A process counts a lease as ended before Prefect does, and leaves an ended one alone: Prefect frees
its slots by itself, and would free them twice, or free renewed ones, if it were asked meanwhile.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse
from prefect.context import SettingsContext, get_settings_context

from tasks.limit import RequestLimit, SlotsUnavailable

_logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 60.0
"""How long a killed process may block its slots: the shortest lease that Prefect grants."""
IDLE_SECONDS: Final = 1.0
"""How long a slot waits for the next batch of its process."""
_VALID_SECONDS: Final = LEASE_SECONDS - 10.0
"""How long requests are sent on a lease; the last one has its answer before the lease ends."""
_RENEWAL_SECONDS: Final = 5.0
"""How often a process renews its leases, and looks whether the limit is still the same."""
_RETRY_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.1
_LOST: Final = 0.0
_ANSWER_SECONDS: Final = 30.0


@dataclass(eq=False)
class _Lease:
    """Slots that were granted together, and are released together."""

    id: UUID
    limit_id: UUID
    size: int
    valid_until: float
    idle: int = 0
    idle_since: float = 0.0

    @property
    def is_valid(self) -> bool:
        return time.monotonic() < self.valid_until

    @property
    def is_due(self) -> bool:
        """Whether it is time to renew it."""
        return self.valid_until - time.monotonic() < _VALID_SECONDS - _RENEWAL_SECONDS

    def is_idle_since(self, moment: float) -> bool:
        return self.idle == self.size and self.idle_since <= moment


class HeldSlot:
    """A slot that a batch holds while it sends."""

    def __init__(
        self, lease: _Lease | None, regain: Callable[[_Lease | None], _Lease | None]
    ) -> None:
        self.lease = lease
        self._regain = regain

    def await_lease(self) -> bool:
        """Return True once a request may be sent: at once, without asking, as long as all is well.

        A slot whose lease is lost is replaced by another one, for which the call waits as long as
        the batch is wanted. Returns False when it no longer is: nothing may be sent.
        """
        if self.lease is None or not self.lease.is_valid:
            self.lease = self._regain(self.lease)
        return self.lease is not None


class Slots:
    """The slots that this process has of a limit.

    Args:
        client: of Prefect's API.
        name: of the limit.
        size: of the limit, where this process has to make it or bring it back.
    """

    def __init__(self, client: SyncPrefectClient, name: str, size: int) -> None:
        self._client = client
        self._limit = RequestLimit(client, name, size)
        self._leases: list[_Lease] = []
        self._expected = 0
        self._waiting = 0
        self._has_told_loss = False
        self._changed = threading.Condition()
        self._asking = threading.Lock()
        self._keeper: threading.Thread | None = None

    def start_limit(self) -> None:
        """Let the limit be there, be switched on and be as large as the setting says.

        Raises:
            SlotsUnavailable: Prefect's API doesn't answer.
        """
        self._limit.bring_back(is_start=True)

    def expect(self, batches: int) -> None:
        """Say how many batches are about to want a slot, so that Prefect is asked once for all."""
        self._expected = batches

    @contextmanager
    def held(self, is_wanted: Callable[[], bool]) -> Iterator[HeldSlot]:
        """Hold a slot while the block runs; wait for one as long as `is_wanted` says so.

        Raises:
            SlotsUnavailable: Prefect's API doesn't answer.
        """
        slot = HeldSlot(self._take(is_wanted), lambda lost: self._regain(lost, is_wanted))
        try:
            yield slot
        finally:
            if slot.lease is not None:
                self._put_down(slot.lease)

    def release_idle(self) -> None:
        """Release all idle slots at once."""
        self._release_idle_since(time.monotonic())

    def _take(self, is_wanted: Callable[[], bool]) -> _Lease | None:
        while is_wanted():
            if lease := self._take_idle() or self._ask_and_take():
                return lease
        return None

    def _regain(self, lost: _Lease | None, is_wanted: Callable[[], bool]) -> _Lease | None:
        """Take another slot; wait for it even while Prefect is away."""
        if lost is not None and is_wanted():
            self._tell_loss()
        while is_wanted():
            try:
                with _few_repeats():
                    return self._take(is_wanted)
            except (SlotsUnavailable, RuntimeError):  # the latter once the client is closed
                self._wait(_RETRY_SECONDS)
        return None

    def _tell_loss(self) -> None:
        with self._changed:
            has_told, self._has_told_loss = self._has_told_loss, True
        if not has_told:
            _logger.warning(
                "Sending waits for new slots of %s: the lease of the old ones has ended, since "
                "this process was held up, or Prefect was away or has withdrawn it",
                self._limit.name,
            )

    def _take_idle(self) -> _Lease | None:
        with self._changed:
            self._drop_lost()
            for lease in self._leases:
                if lease.idle:
                    lease.idle -= 1
                    return lease
            return None

    def _drop_lost(self) -> None:
        self._leases = [lease for lease in self._leases if lease.is_valid]

    def _put_down(self, lease: _Lease) -> None:
        with self._changed:
            lease.idle += 1
            lease.idle_since = time.monotonic()
            self._changed.notify()

    def _ask_and_take(self) -> _Lease | None:
        with self._changed:
            self._waiting += 1
        try:
            self._ask_for_more()
        finally:
            with self._changed:
                self._waiting -= 1
        return self._take_idle()

    def _ask_for_more(self) -> None:
        """Ask for a slot for each batch that waits, or wait while another thread asks."""
        if not self._asking.acquire(blocking=False):
            self._wait(_POLL_SECONDS)
            return
        try:
            with self._changed:
                self._drop_lost()
                idle = sum(lease.idle for lease in self._leases)
                leased = sum(lease.size for lease in self._leases)
                wanted = max(self._waiting - idle, self._expected - leased)
                self._expected = 0
            if wanted <= 0:
                return
            # Prefect grants slots of a limit that is switched off or missing, and doesn't count.
            self._limit.bring_back(is_held=leased > 0)
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
        asked_at = time.monotonic()
        try:
            response = self._client.increment_concurrency_slots_with_lease(
                [self._limit.name], size, "concurrency", LEASE_SECONDS
            )
            granted = ConcurrencyLimitWithLeaseResponse.model_validate(response.json())
        except httpx.HTTPStatusError as error:
            match error.response.status_code:
                case HTTPStatus.LOCKED:
                    return float(error.response.headers["Retry-After"])
                case HTTPStatus.UNPROCESSABLE_ENTITY:
                    return _RETRY_SECONDS  # more than the limit has
            raise SlotsUnavailable(error) from None
        except (httpx.HTTPError, ValueError) as error:
            raise SlotsUnavailable(error) from None
        if not granted.limits:  # the limit was deleted just now
            return _RETRY_SECONDS
        valid_until = asked_at + _VALID_SECONDS
        lease = _Lease(granted.lease_id, granted.limits[0].id, size, valid_until, idle=size)
        with self._changed:
            self._leases.append(lease)
            self._has_told_loss = False
            self._changed.notify_all()
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(
                    target=self._keep, name="concurrency-slots", daemon=True
                )
                self._keeper.start()
        return 0.0

    def _keep(self) -> None:
        """Renew the leases and release idle ones, as long as there is any."""
        with _few_repeats():
            while self._has_leases():
                time.sleep(IDLE_SECONDS)
                self._release_idle_since(time.monotonic() - IDLE_SECONDS)
                self._renew()

    def _has_leases(self) -> bool:
        with self._changed:
            self._drop_lost()
            if not self._leases:
                self._keeper = None
            return bool(self._leases)

    def _release_idle_since(self, moment: float) -> None:
        with self._changed:
            self._drop_lost()
            surplus = [lease for lease in self._leases if lease.is_idle_since(moment)]
            self._leases = [lease for lease in self._leases if lease not in surplus]
        if not surplus:
            return
        # A slot that can't be released is free when its lease ends: Prefect may be away, or the
        # client closed, since a batch can outlive a flow run that was interrupted.
        with suppress(SlotsUnavailable, RuntimeError):
            # Prefect doesn't count what is released while the limit is switched off.
            self._limit.bring_back(is_held=True)
            for lease in surplus:
                self._release(lease)

    def _release(self, lease: _Lease) -> None:
        with suppress(httpx.HTTPError):
            if lease.is_valid:
                self._client.release_concurrency_slots_with_lease(lease.id)

    def _renew(self) -> None:
        with self._changed:
            due = [lease for lease in self._leases if lease.is_due]
        if not due:
            return
        with suppress(SlotsUnavailable, httpx.HTTPError, RuntimeError):
            limit_id = self._limit.bring_back(is_held=True)
            for lease in due:
                asked_at = time.monotonic()
                is_renewed = lease.limit_id == limit_id and self._is_renewed(lease)
                if lease.is_valid:  # what was lost meanwhile stays lost
                    lease.valid_until = asked_at + _VALID_SECONDS if is_renewed else _LOST

    def _is_renewed(self, lease: _Lease) -> bool:
        try:
            self._client.renew_concurrency_lease(lease.id, LEASE_SECONDS)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == HTTPStatus.GONE:
                return False
            raise
        return True


@contextmanager
def _few_repeats() -> Iterator[None]:
    """Let Prefect's client repeat a call once: by default it does so for a minute.

    `temporary_settings` of Prefect reads its files anew, in which it may fail.
    """
    context = get_settings_context()
    client = context.settings.client.model_copy(update={"max_retries": 1})
    settings = context.settings.model_copy(update={"client": client})
    with SettingsContext(profile=context.profile, settings=settings):
        yield


@cache
def slots_of_process(name: str, size: int) -> Slots:
    """Return the slots that a process has of a limit while it works for flow runs elsewhere."""
    # A client of its own: that of a task run is closed when the task run ends.
    client = get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True)
    slots = Slots(client, name, size)
    atexit.register(slots.release_idle)
    return slots
