"""No logger of this process tells a secret, whatever its level, its handlers and its formatters."""

import logging
from collections.abc import Iterator
from typing import Any

import httpcore
import pytest
from prefect.logging.formatters import JsonFormatter
from uvicorn.logging import AccessFormatter

from tasks.log_redaction import keep_out_of_logs

TOKEN = "marked-unit-token"
FOREIGN = logging.getLogger("foreign")


@pytest.fixture(autouse=True)
def _token_is_known() -> Iterator[None]:
    keep_out_of_logs([TOKEN])
    yield
    keep_out_of_logs([])


@pytest.fixture(autouse=True)
def _at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """Only here: threads of other tests, such as PyMongo's monitors, log at DEBUG at any time."""
    for logger in (FOREIGN.name, "httpcore"):
        caplog.set_level(logging.DEBUG, logger)


class Shy:
    """An object whose text raises an error."""

    def __repr__(self) -> str:
        raise AttributeError


class Telling:
    """An object whose text is the token."""

    def __str__(self) -> str:
        return TOKEN


@pytest.mark.parametrize(
    ("message", "args", "told"),
    [
        (f"sent {TOKEN}", (), "sent [redacted]"),
        ("sent %s at %d", (TOKEN, 5), "sent [redacted] at 5"),
        ("sent %(token)s", ({"token": TOKEN},), "sent [redacted]"),
        ("sent %s", ([TOKEN],), "sent ['[redacted]']"),
        ("sent %s", (Telling(),), "sent [redacted]"),
        (Telling(), (), "[redacted]"),
        (ValueError(TOKEN), (), "[redacted]"),
        ("sent %s-%s-%s", ("marked", "unit", "token"), "sent [redacted]"),
        ("sent %s", (TOKEN.encode().hex(),), "sent [redacted]"),
        ("nothing of %s: %d%%", ("it", 100), "nothing of it: 100%"),
    ],
)
def test_a_message_is_told_without_the_token(
    message: Any, args: tuple[Any, ...], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    FOREIGN.debug(message, *args)
    assert caplog.messages == [told]


@pytest.mark.parametrize("args", [(TOKEN,), (Shy(), Shy(), TOKEN)])
def test_what_can_not_be_put_into_words_is_told_by_the_handler_without_the_token(
    args: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    record = FOREIGN.makeRecord("foreign", logging.INFO, __file__, 1, "%s %s", args, None)
    logging.StreamHandler().handle(record)
    told = capsys.readouterr().err
    assert "Logging error" in told
    assert TOKEN not in told


@pytest.mark.parametrize("formatter", [logging.Formatter(), JsonFormatter("default", "", "%")])
def test_a_traceback_is_told_without_the_token(
    formatter: logging.Formatter, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise ValueError(f"{TOKEN} is wrong")
    except ValueError:
        FOREIGN.exception("it failed", stack_info=True)
    (record,) = caplog.records
    told = formatter.format(record)
    assert TOKEN not in told
    assert "[redacted] is wrong" in told
    assert "test_log_redaction.py" in told


def test_a_traceback_without_the_token_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("wrong")
    FOREIGN.error("it failed", exc_info=error)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_a_formatter_that_takes_arguments_apart_finds_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = ("127.0.0.1:1", "GET", f"/api?token={TOKEN}", "1.1", 200)
    FOREIGN.info('%s - "%s %s HTTP/%s" %d', *arguments)
    (record,) = caplog.records
    told = AccessFormatter("%(client_addr)s %(request_line)s", use_colors=False).format(record)
    assert told == "127.0.0.1:1 GET /api?token=[redacted] HTTP/1.1"


def test_what_httpcore_tells_of_an_answer_is_told_without_the_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = f"HTTP/1.1 401 no {TOKEN}\r\nX-You-Sent: {TOKEN}\r\nContent-Length: 0\r\n\r\n".encode()
    with httpcore.ConnectionPool(network_backend=httpcore.MockBackend([answer])) as pool:
        pool.request("GET", "http://hub.example/")
    assert "X-You-Sent" in caplog.text
    assert "[redacted]" in caplog.text
    assert TOKEN not in caplog.text


def test_secrets_take_the_place_of_those_before_and_nothing_piles_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    factory = logging.getLogRecordFactory()
    for number in range(100):
        keep_out_of_logs([f"marked-{number}"])
    assert logging.getLogRecordFactory() is factory
    FOREIGN.info(f"marked-99, {TOKEN}")
    assert caplog.messages == [f"[redacted], {TOKEN}"]


def test_a_secret_of_a_few_letters_shreds_no_log(caplog: pytest.LogCaptureFixture) -> None:
    keep_out_of_logs(["", "a", "admin"])
    FOREIGN.info("admin-sync began")
    assert caplog.messages == ["admin-sync began"]
