"""How the hub misbehaves: faults, the requests that they match, and the answers that they give."""

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, RootModel

from scripts.local.hub.messages import Answer, json_answer, refusal
from scripts.local.hub.request_log import SeenRequest

_GARBAGE: Final = b"<html>\xff\xfe not JSON"


class Fault(BaseModel):
    """A misbehaviour.

    `entity_type`, `key` and `attempts` (counted from 1 for each item since the last reset) say
    which requests it is for; None means any. `delay_ms` comes first. Then the answer is, in this
    order: none (`drop`), `raw` (each character a byte) and the end of the connection, no JSON
    (`garbage`), a success that spaces make `body_bytes` long, `body` as it is, or a refusal with
    `status` and `code`; with delays alone the answer is the usual one. With `drip_ms` an answer
    goes out byte by byte, headers too, each that much after the one before. With `after_store` the
    item is stored first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    entity_type: str | None = None
    key: str | None = None
    attempts: tuple[int, ...] | None = None
    status: int | None = None
    code: str | None = None
    message: str = "told to misbehave"
    delay_ms: int = 0
    drip_ms: int = 0
    drop: bool = False
    raw: str | None = Field(None, pattern=r"^[\x00-\xff]*$")
    garbage: bool = False
    body_bytes: int | None = None
    body: Any | None = None
    retry_after: str | None = None
    after_store: bool = False

    def matches(self, seen: SeenRequest) -> bool:
        return (
            self.entity_type in (None, seen.entity_type)
            and self.key in (None, seen.key)
            and (self.attempts is None or seen.attempt in self.attempts)
        )

    def answer(self) -> Answer | None:
        """Return the answer that takes the place of the usual one, None where none does."""
        status = self.status or HTTPStatus.OK
        if self.drop:
            return Answer(None, outcome="dropped")
        if self.raw is not None:
            return Answer(None, self.raw.encode("latin-1"), "raw")
        if self.garbage:
            return Answer(status, _GARBAGE, "garbage", self.retry_after)
        if self.body_bytes is not None:
            success = json_answer(status, {"ok": True}, "padded", self.retry_after)
            return replace(success, padding=max(0, self.body_bytes - len(success.content)))
        if self.body is not None:
            return json_answer(status, self.body, "fault", self.retry_after)
        if self.code is not None:
            answer = refusal(status, self.code, self.message)
            return replace(answer, retry_after=self.retry_after)
        if self.status is not None:
            return json_answer(status, {"ok": False}, "fault", self.retry_after)
        return None


FaultSource = Callable[[SeenRequest], Fault | None]
"""Decides the fault of each request; None means that it is answered as usual."""


class Faults(RootModel[tuple[Fault, ...]]):
    """A fault source that gives a request the first fault of a list that matches it."""

    def __call__(self, seen: SeenRequest) -> Fault | None:
        return next((fault for fault in self.root if fault.matches(seen)), None)


NO_FAULTS: Final = Faults(())
