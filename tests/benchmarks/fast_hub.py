"""A faster hub for the throughput benchmark, which would otherwise measure the local hub's MongoDB.

It answers each upsert and keeps only keys and counts. All contenders send to it.
"""

import argparse
import asyncio
import json
import selectors
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from scripts.local.hub import upsert_urls
from scripts.local.hub.local_hub import ENTITY_TYPE_BY_PATH
from scripts.local.process import LOCALHOST, answers, free_port, running
from tasks.entities import ENTITY_TYPES
from tests.benchmarks.http_connection import HttpConnection, Request, json_response

_REPOSITORY: Final = Path(__file__).parents[2]
_STATS_PATH: Final = "/_hub/stats"


class _Hub:
    """The keys that have come in so far, and how many requests."""

    def __init__(self, latency_seconds: float) -> None:
        self.latency_seconds = latency_seconds
        self._keys: dict[str, set[str]] = {entity_type.name: set() for entity_type in ENTITY_TYPES}
        self._requests = self._in_flight = self._max_in_flight = 0

    def stats(self) -> bytes:
        distinct_keys = {name: len(keys) for name, keys in self._keys.items() if keys}
        return json_response(
            {
                "requests": self._requests,
                "max_in_flight": self._max_in_flight,
                "distinct_keys": distinct_keys,
            }
        )

    def accept(self, request: Request) -> bytes:
        """Record an upsert and return the response that is due after the latency."""
        entity_type = ENTITY_TYPE_BY_PATH[request.path]
        body = json.loads(request.body)
        key = body[entity_type.name][entity_type.natural_key]
        self._keys[entity_type.name].add(key)
        self._requests += 1
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        return json_response(
            {"ok": True, "sync_id": body["request_id"], entity_type.natural_key: key}
        )

    def answered(self) -> None:
        self._in_flight -= 1


class _Connection(HttpConnection):
    def __init__(self, hub: _Hub) -> None:
        super().__init__()
        self._hub = hub

    def respond(self, request: Request) -> None:
        if request.path == _STATS_PATH:
            self.transport.write(self._hub.stats())
            return
        response = self._hub.accept(request)
        if self._hub.latency_seconds:
            loop = asyncio.get_running_loop()
            loop.call_later(self._hub.latency_seconds, self._send, response)
        else:
            self._send(response)

    def _send(self, response: bytes) -> None:
        self.transport.write(response)
        self._hub.answered()


@dataclass(frozen=True)
class HubStats:
    """The requests of a hub since its start."""

    requests: int
    max_in_flight: int
    distinct_keys: Mapping[str, int]


@dataclass(frozen=True)
class FastHub:
    """A hub in a process of its own."""

    base_url: str
    pid: int

    @property
    def upsert_urls(self) -> dict[str, str]:
        return upsert_urls(self.base_url)

    def stats(self) -> HubStats:
        return HubStats(**httpx.get(f"{self.base_url}{_STATS_PATH}").json())


@contextmanager
def fast_hub(log_path: Path, latency_ms: int) -> Iterator[FastHub]:
    """Run a hub on a free port of 127.0.0.1."""
    port = free_port()
    base_url = f"http://{LOCALHOST}:{port}"
    command = [sys.executable, "-m", "tests.benchmarks.fast_hub"]
    with running(
        [*command, "--port", str(port), "--latency-ms", str(latency_ms)],
        name="The fast hub",
        ready=lambda: answers(f"{base_url}{_STATS_PATH}", within_seconds=2),
        log_path=log_path,
        cwd=_REPOSITORY,
    ) as process:
        yield FastHub(base_url, process.pid)


async def _serve(port: int, latency_seconds: float) -> None:
    hub = _Hub(latency_seconds)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(hub), LOCALHOST, port, backlog=128)
    async with server:
        await server.serve_forever()


def _precise_loop() -> asyncio.AbstractEventLoop:
    """Return a loop that wakes within microseconds: epoll waits for the next full millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency-ms", type=int, default=0)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        runner.run(_serve(arguments.port, arguments.latency_ms / 1000))


if __name__ == "__main__":
    main()
