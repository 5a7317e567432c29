"""Waits until something has come true, also while Prefect does not answer."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import httpx

_POLL_SECONDS: Final = 0.2


def within(
    seconds: float, condition: Callable[[], bool], poll_seconds: float = _POLL_SECONDS
) -> bool:
    """Whether the condition holds within this time; not while Prefect does not answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if condition():
                return True
        time.sleep(poll_seconds)
    return False
