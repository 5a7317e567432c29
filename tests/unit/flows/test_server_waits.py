"""Server waits: a run says once for how long Prefect's server let it wait, and what ends that."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import anyio
import httpx
import pytest
import respx
from bson import ObjectId
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_RETRY_JITTER_FACTOR,
    temporary_settings,
)

from flows import server_waits as module
from flows.server_waits import ServerWaits, notice_of, server_waits_told

API = "http://prefect.example/api"
RUN, OTHER_RUN = ObjectId(), ObjectId()
CLIENT_LOGGER = logging.getLogger("prefect.client")
BUSY = httpx.Response(503)
OK = httpx.Response(200, json=True)
Ask = Callable[[], None]


def ask() -> None:
    with get_client(sync_client=True) as prefect:
        prefect.request("GET", "/health")


def ask_in_a_loop() -> None:
    async def look() -> None:
        async with get_client() as prefect:
            await prefect.request("GET", "/health")

    asyncio.run(look())


@pytest.fixture(autouse=True)
def _sleepless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Prefect's clients wait no time, and each for as long as they say."""

    async def sleep(_seconds: float) -> None:
        """Not at all."""

    monkeypatch.setattr("prefect.client.base.time", SimpleNamespace(sleep=lambda _seconds: None))
    monkeypatch.setattr(
        "prefect.client.base.anyio", SimpleNamespace(sleep=sleep, CancelScope=anyio.CancelScope)
    )


@pytest.fixture(autouse=True)
def server() -> Iterator[respx.Route]:
    without_jitter = {PREFECT_API_URL: API, PREFECT_CLIENT_RETRY_JITTER_FACTOR: 0.0}
    with temporary_settings(without_jitter), respx.mock:
        yield respx.get(f"{API}/health")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The log of the run."""
    logger = Mock()
    monkeypatch.setattr(module, "get_run_logger", lambda: logger)
    return logger.warning


@pytest.mark.parametrize("asked", [ask, ask_in_a_loop])
def test_a_run_says_for_how_long_a_busy_server_let_it_wait_and_what_ends_that(
    server: respx.Route, log: Mock, asked: Ask
) -> None:
    server.side_effect = [BUSY, OK]
    with server_waits_told(RUN):
        asked()
        log.assert_not_called()
    log.assert_called_once_with(
        "Requests of this run waited 2.0 s, because Prefect's server was busy (HTTP 503). A stock "
        "server on SQLite often is: put PostgreSQL under it, or use this project's own server, "
        "python -m scripts.local.prefect"
    )
    assert notice_of(RUN) == log.call_args.args[0]
    assert notice_of(OTHER_RUN) is None


def test_all_waits_of_a_run_are_told_at_once(server: respx.Route, log: Mock) -> None:
    server.side_effect = [BUSY, BUSY, OK, BUSY, OK]
    with server_waits_told(RUN):
        ask()
        ask()
    log.assert_called_once()


def test_a_run_that_fails_says_it_too(server: respx.Route, log: Mock) -> None:
    server.side_effect = [BUSY, OK]

    def fail() -> None:
        with server_waits_told(RUN):
            ask()
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    log.assert_called_once()


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        httpx.Response(429),
        httpx.Response(502),
        httpx.ReadTimeout("away"),
        httpx.Response(503, headers={"Retry-After": "0.9"}),
    ],
    ids=["at once", "too many requests", "proxy", "away", "less than a second"],
)
def test_other_waits_are_not_told(server: respx.Route, log: Mock, answer: Any) -> None:
    server.side_effect = [answer, OK]
    with server_waits_told(RUN):
        ask()
    log.assert_not_called()
    assert notice_of(RUN) is None


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_the_log_of_prefects_client_stays_as_it_is(
    server: respx.Route, log: Mock, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    server.side_effect = [BUSY, OK]
    with caplog.at_level(level, "prefect.client"):
        CLIENT_LOGGER.addHandler(caplog.handler)
        try:
            with server_waits_told(RUN):
                ask()
                CLIENT_LOGGER.info("as ever")
        finally:
            CLIENT_LOGGER.removeHandler(caplog.handler)
        assert CLIENT_LOGGER.level == level
    told = [record.getMessage() for record in caplog.records if record.name == "prefect.client"]
    assert "as ever" in told
    assert any("status code 503" in message for message in told) is (level == logging.DEBUG)
    log.assert_called_once()


@pytest.mark.parametrize(
    ("waits", "seconds"),
    [
        ([(0, 2), (10, 4)], 6),
        ([(0, 2), (0, 2), (0, 2)], 2),
        ([(0, 4), (1, 2)], 4),
        ([(0, 4), (3, 2), (4.5, 2)], 6.5),
    ],
    ids=["one after the other", "at once", "inside", "overlapping"],
)
def test_waits_of_several_requests_at_once_count_once(
    waits: list[tuple[float, float]], seconds: float
) -> None:
    counted = ServerWaits()
    for at, wait in waits:
        counted.add(at, wait)
    assert counted.seconds == seconds
