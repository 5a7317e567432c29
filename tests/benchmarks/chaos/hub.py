"""A Stage 1 that misbehaves as a fault plan says, and remembers all that it was sent.

It runs on a thread of this process and keeps everything in memory, so that being down or stalled
loses nothing of what it has accepted.
"""

import asyncio
import hashlib
import json
import select
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Self, TypeVar

from scripts.local.hub import upsert_path, upsert_urls
from scripts.local.process import LOCALHOST
from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.errors import NOT_FOUND, TEMPORARY_UNAVAILABLE
from tests.benchmarks.chaos.faults import Fault, FaultPlan
from tests.benchmarks.http_connection import HttpConnection, Request, json_response, response
from tests.benchmarks.workload import Document

Result = TypeVar("Result")

_ENTITY_TYPE_BY_PATH: Final = {
    upsert_path(entity_type): entity_type for entity_type in ENTITY_TYPES
}
NO_FAULT: Final = "none"
_RETRY_SOON: Final = b"Retry-After: 1"
_GARBAGE: Final = b"<html>\xff\xfe not JSON"


@dataclass(frozen=True)
class ItemKey:
    """Which item: its entity type and natural key."""

    entity_type: str
    natural_key: str

    def __str__(self) -> str:
        return f"{self.entity_type} {self.natural_key}"


@dataclass(frozen=True)
class Accepted:
    """What Stage 1 holds of an item: its body, and the request that brought it."""

    request_id: str
    body: Document


@dataclass(frozen=True)
class Upsert:
    """A request as it was sent."""

    item: ItemKey
    request_id: str
    body: Document
    digest: str

    @classmethod
    def parse(cls, request: Request) -> Self:
        entity_type = _ENTITY_TYPE_BY_PATH[request.path]
        content = json.loads(request.body)
        body = content[entity_type.name]
        return cls(
            ItemKey(entity_type.name, body[entity_type.natural_key]),
            content["request_id"],
            body,
            hashlib.sha256(request.body).hexdigest(),
        )


@dataclass
class Ledger:
    """All that Stage 1 has seen in a round, written by its thread only.

    `faults` counts the attempts by what went wrong with them. `confirmed` are the request ids
    answered with `ok` while the client was still there; `resent` counts those that came again
    nevertheless.
    """

    plan: FaultPlan
    requests: int = 0
    items: dict[ItemKey, Accepted] = field(default_factory=dict)
    digests: dict[str, set[str]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    confirmed: set[str] = field(default_factory=set)
    resent: Counter[str] = field(default_factory=Counter)
    _one_more: threading.Condition = field(default_factory=threading.Condition)

    def await_requests(self, count: int, seconds: float) -> bool:
        """Wait until so many requests have come; return whether they have, by then."""
        with self._one_more:
            return self._one_more.wait_for(lambda: self.requests >= count, seconds)

    def note(self, upsert: Upsert) -> int:
        """Note that a request has come, and return the how many-th of its id it is."""
        self.digests.setdefault(upsert.request_id, set()).add(upsert.digest)
        self.attempts[upsert.request_id] += 1
        if upsert.request_id in self.confirmed:
            self.resent[upsert.request_id] += 1
        with self._one_more:
            self.requests += 1
            self._one_more.notify()
        return self.attempts[upsert.request_id]

    def store(self, upsert: Upsert) -> ItemKey | None:
        """Take an item in; returns the parent that is missing, None when the item is in."""
        missing = self._missing_parent(upsert)
        if missing is None:
            self.items[upsert.item] = Accepted(upsert.request_id, upsert.body)
        return missing

    def _missing_parent(self, upsert: Upsert) -> ItemKey | None:
        for parent in entity_type_named(upsert.item.entity_type).parents:
            key = upsert.body.get(parent.field)
            if key is not None and ItemKey(parent.entity_type, key) not in self.items:
                return ItemKey(parent.entity_type, key)
        return None


class ChaosHub:
    """The hub on a free port of 127.0.0.1; `begin` comes before the first request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._port = 0
        self._connections: set[asyncio.Transport] = set()
        self.ledger: Ledger

    @property
    def upsert_urls(self) -> dict[str, str]:
        return upsert_urls(f"http://{LOCALHOST}:{self._port}")

    def begin(self, plan: FaultPlan) -> Ledger:
        """Forget everything and misbehave by another plan; returns what is seen from now on."""
        self.ledger = Ledger(plan)
        return self.ledger

    def open(self) -> None:
        """Listen, on the same port as before."""
        self._run(self._open())

    def close(self) -> None:
        """Refuse connections, and cut those that there are."""
        self._run(self._close())

    def go_down(self, seconds: float) -> None:
        """Be away for that long."""
        self.close()
        time.sleep(seconds)
        self.open()

    def stall(self, seconds: float) -> None:
        """Let everything wait that comes or is under way; blocks as long."""
        self._loop.call_soon_threadsafe(time.sleep, seconds)
        time.sleep(seconds)

    def connected(self, transport: asyncio.Transport) -> None:
        self._connections.add(transport)

    def disconnected(self, transport: asyncio.Transport) -> None:
        self._connections.discard(transport)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._server = await self._loop.create_server(
            lambda: _Connection(self), LOCALHOST, self._port, backlog=128
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for transport in list(self._connections):
            transport.abort()


@contextmanager
def chaos_hub() -> Iterator[ChaosHub]:
    """Run a hub until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="chaos-hub", daemon=True)
    thread.start()
    hub = ChaosHub(loop)
    hub.open()
    try:
        yield hub
    finally:
        hub.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Connection(HttpConnection):
    def __init__(self, hub: ChaosHub) -> None:
        super().__init__()
        self._hub = hub

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._hub.connected(self.transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._hub.disconnected(self.transport)

    def respond(self, request: Request) -> None:
        ledger, upsert = self._hub.ledger, Upsert.parse(request)
        treatment = ledger.plan.treatment(upsert.request_id, ledger.note(upsert))
        ledger.faults[treatment.fault or NO_FAULT] += 1
        match treatment.fault:
            case None:
                self._take_in(ledger, upsert)
            case Fault.SLOW:
                loop = asyncio.get_running_loop()
                loop.call_later(treatment.delay_seconds, self._take_in, ledger, upsert)
            case Fault.DROPPED_AFTER:
                ledger.store(upsert)
                self.transport.abort()
            case Fault.DROPPED_BEFORE:
                self.transport.abort()
            case fault:
                self.transport.write(_REFUSALS[fault])

    def _take_in(self, ledger: Ledger, upsert: Upsert) -> None:
        """Store an item whose parents are there, and say so to a client that still listens."""
        if (missing := ledger.store(upsert)) is not None:
            self.transport.write(_refusal(HTTPStatus.OK, NOT_FOUND, f"{missing} does not exist"))
        elif not _has_gone(self.transport):
            ledger.confirmed.add(upsert.request_id)
            self.transport.write(_confirmation(upsert))


def _has_gone(transport: asyncio.Transport) -> bool:
    """Whether the client has closed the connection, even if the loop has not seen it yet."""
    if transport.is_closing():
        return True
    ends = select.poll()
    ends.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(ends.poll(0))


def _confirmation(upsert: Upsert) -> bytes:
    key_field = entity_type_named(upsert.item.entity_type).natural_key
    return json_response(
        {"ok": True, "sync_id": upsert.request_id, key_field: upsert.item.natural_key}
    )


def _refusal(status: HTTPStatus, code: str, message: str, *headers: bytes) -> bytes:
    error = {"code": code, "message": message, "details": {}}
    return json_response({"ok": False, "error": error}, status, *headers)


_REFUSALS: Final = {
    Fault.SERVER_ERROR: response(HTTPStatus.INTERNAL_SERVER_ERROR, b"{}"),
    Fault.UNAVAILABLE: response(HTTPStatus.SERVICE_UNAVAILABLE, b"{}", _RETRY_SOON),
    Fault.TOO_MANY_REQUESTS: response(HTTPStatus.TOO_MANY_REQUESTS, b"{}", _RETRY_SOON),
    Fault.TEMPORARY_UNAVAILABLE: _refusal(HTTPStatus.OK, TEMPORARY_UNAVAILABLE, "try again"),
    Fault.GARBAGE: response(HTTPStatus.OK, _GARBAGE),
}
