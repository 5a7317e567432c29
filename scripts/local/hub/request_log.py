"""The requests that the hub has seen."""

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from scripts.local.hub.messages import Upsert

_REQUESTS_KEPT: Final = 200_000


@dataclass
class SeenRequest:
    """One upsert request as the hub saw it; times are seconds since the epoch.

    `digest` is the SHA-256 of the body. `attempt` counts the requests for the item from 1.
    `client_left` says whether the client had closed the connection before the answer was ready.
    """

    entity_type: str
    key: str | None
    request_id: str | None
    digest: str
    attempt: int
    received_at: float
    answered_at: float | None = None
    status: int | None = None
    outcome: str | None = None
    client_left: bool = False


class RequestLog:
    """The newest requests, and counts of all since the log was last cleared."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._requests: deque[SeenRequest] = deque(maxlen=_REQUESTS_KEPT)
            self._attempts: Counter[tuple[str, str | None]] = Counter()
            self._count = self._in_flight = self._max_in_flight = 0

    @contextmanager
    def record(self, upsert: Upsert, content: bytes) -> Iterator[SeenRequest]:
        """Record a request, and count it as in flight until the block ends."""
        received_at, digest = time.time(), hashlib.sha256(content).hexdigest()
        item = upsert.entity_type.name, upsert.key
        with self._lock:
            self._attempts[item] += 1
            seen = SeenRequest(*item, upsert.request_id, digest, self._attempts[item], received_at)
            self._requests.append(seen)
            self._count += 1
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            yield seen
        finally:
            with self._lock:
                self._in_flight -= 1

    def requests(self) -> list[SeenRequest]:
        with self._lock:
            return list(self._requests)

    def stats(self) -> dict[str, int]:
        with self._lock:
            return {
                "requests": self._count,
                "in_flight": self._in_flight,
                "max_in_flight": self._max_in_flight,
            }
