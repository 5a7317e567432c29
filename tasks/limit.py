"""RequestLimit: Prefect's global concurrency limit of the requests to one Stage 1."""

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
)
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from tasks.entities import ENTITY_TYPES
from tasks.prefect_api import fault_in_words
from tasks.settings import Settings

_logger = logging.getLogger(__name__)

LIMIT_PREFIX: Final = "admin-sync-requests-"
"""How the names of the limits begin."""
_TAKEN_BACK_SECONDS: Final = 10.0
"""After how long a limit is on again that was switched off, if any process has slots of it."""
_LOOK_SECONDS: Final = 1.0


class SlotsUnavailable(ConnectionError):
    """Prefect's API did not say whether a batch may send; nothing of it was sent."""

    def __init__(self, cause: httpx.HTTPError | ValueError) -> None:
        super().__init__(f"Prefect grants no slot. {fault_in_words(cause)}")


def limit_name(settings: Settings) -> str:
    """Return the name of the limit of the Stage 1 that the settings name.

    It tells the host of the tenants, and all five endpoints as a hash; no credentials, no query.
    """
    hubs = [settings.hub(entity_type) for entity_type in ENTITY_TYPES]
    digest = hashlib.sha256("\n".join(hubs).encode()).hexdigest()
    host = urlsplit(hubs[0]).netloc.rpartition("@")[2]
    # Prefect takes no %, & or / in a name.
    return f"{LIMIT_PREFIX}{re.sub(r'[^a-zA-Z0-9.:_-]', '-', host)}-{digest[:8]}"


class RequestLimit:
    """The limit: brings it back where it was deleted, switched off or set to 0."""

    def __init__(self, client: SyncPrefectClient, name: str, size: int) -> None:
        self.name = name
        self._client = client
        self._size = size

    def bring_back(self, *, is_held: bool = False, is_start: bool = False) -> UUID:
        """Return the id of the limit, which is made, switched on or resized if need be.

        Args:
            is_held: whether this process holds slots of it.
            is_start: whether a run begins, whose setting the size follows; else only 0 is mended.

        Raises:
            SlotsUnavailable: Prefect's API doesn't answer.
        """
        while True:
            # Another process may have made or deleted it in between.
            with _unavailable_on_fault(), suppress(ObjectAlreadyExists, ObjectNotFound):
                limit = self._find()
                if limit is not None:
                    return self._mend(limit, is_held=is_held, is_start=is_start)
                if not is_start:
                    self._warn("deleted")
                return self._make()

    def _find(self) -> GlobalConcurrencyLimitResponse | None:
        try:
            return self._client.read_global_concurrency_limit_by_name(self.name)
        except ObjectNotFound:
            return None

    def _make(self) -> UUID:
        return self._client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=self.name, limit=self._size)
        )

    def _mend(
        self, limit: GlobalConcurrencyLimitResponse, *, is_held: bool, is_start: bool
    ) -> UUID:
        size = self._size if is_start or limit.limit == 0 else limit.limit
        if limit.active and limit.limit == size:
            return limit.id
        if not limit.active:
            self._warn("switched off")
            if limit.active_slots and not is_held and not self._is_taken_back():
                # Nobody holds these slots: Prefect doesn't count what is released meanwhile.
                self._client.delete_global_concurrency_limit_by_name(str(limit.id))
                return self._make()
        elif limit.limit == 0:
            self._warn("set to 0")
        self._client.update_global_concurrency_limit(
            str(limit.id), GlobalConcurrencyLimitUpdate(limit=size, active=True)
        )
        return limit.id

    def _is_taken_back(self) -> bool:
        """Return whether a process that holds slots switches the limit on again."""
        deadline = time.monotonic() + _TAKEN_BACK_SECONDS
        while time.monotonic() < deadline:
            limit = self._find()
            if limit is None or limit.active:
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def _warn(self, fault: str) -> None:
        _logger.warning(
            "The concurrency limit %s was %s; it is brought back, for requests are sent under it",
            self.name,
            fault,
        )


@contextmanager
def _unavailable_on_fault() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, ValueError) as error:
        raise SlotsUnavailable(error) from None
