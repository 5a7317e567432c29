"""How the hub misbehaves: faults, the requests that they match, and the answers that they give."""

from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from scripts.local.hub.messages import Answer, Compression, json_answer, refusal
from scripts.local.hub.request_log import SeenRequest

_GARBAGE: Final = b"<html>\xff\xfe not JSON"

_Latin1 = Annotated[str, Field(pattern=r"^[\x00-\xff]*$")]
"""Text in which each character is a byte."""


class Fault(BaseModel):
    """A misbehaviour.

    It is for the requests that match all of `entity_type`, `key` and `attempts`, and with
    `requests_per_second` only for those of them that come too early. The answer is the first of
    `drop`, `raw`, `garbage`, `body_bytes`, `text`, `body`, `code` and `status` that is there, and
    the usual one without any of these. `headers`, `retry_after`, `compress`, `close` and `drip_ms`
    hold for the usual answer too; of these, `drop` and `raw` take only `drip_ms`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    entity_type: str | None = Field(
        None, description="only for requests of this type, such as client; by default of any"
    )
    key: str | None = Field(
        None, description="only for the item with this natural key; by default for any"
    )
    attempts: tuple[int, ...] | None = Field(
        None,
        description="only for these requests for an item, counted from 1 since the last reset;"
        " by default for all",
    )
    requests_per_second: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="only for requests that come sooner than 1/this seconds after the last one"
        " that was let through, as with limit_req of nginx; what is let through, the faults after"
        " this one decide; makes 503 the default of status",
    )
    burst: int = Field(
        0,
        ge=0,
        description="with requests_per_second: let this many more pass at once, as limit_req does"
        " with nodelay",
    )
    delay_ms: int = Field(0, description="wait before the answer")
    status: int | None = Field(
        None, description='status of the answer; alone, with the body {"ok": false}; by default 200'
    )
    code: str | None = Field(None, description="refuse with this error code in the body")
    message: str = Field("told to misbehave", description="error message to the code")
    body: Any | None = Field(None, description="body of the answer, any JSON")
    text: str | None = Field(None, description="body of the answer as it is, JSON or not")
    body_bytes: int | None = Field(
        None, description="answer with a success that spaces make this long"
    )
    garbage: bool = Field(False, description="answer with what is no JSON")
    raw: _Latin1 | None = Field(
        None,
        description="send this in place of an HTTP response, each character a byte, and close the"
        " connection",
    )
    drop: bool = Field(False, description="close the connection without an answer")
    retry_after: _Latin1 | None = Field(None, description="header Retry-After of the answer")
    headers: tuple[tuple[_Latin1, _Latin1], ...] = Field(
        (),
        description="list of [name, value]: more headers of the answer; a name may repeat, and"
        " Content-Type and Content-Length take the place of the hub's own",
    )
    compress: Compression | None = Field(
        None, description="gzip or deflate: compress the body of the answer"
    )
    close: bool = Field(
        False, description="close the connection after the answer without saying so in it"
    )
    drip_ms: int = Field(
        0, description="send the answer byte by byte, headers too, each this long after the last"
    )
    after_store: bool = Field(
        False, description="store the item first, as if the answer were the usual one"
    )

    def matches(self, seen: SeenRequest) -> bool:
        return (
            self.entity_type in (None, seen.entity_type)
            and self.key in (None, seen.key)
            and (self.attempts is None or seen.attempt in self.attempts)
        )

    def answer(self) -> Answer | None:
        """Return the answer that takes the place of the usual one, None where none does."""
        own_status = self._own_status()
        status = own_status or HTTPStatus.OK
        if self.drop:
            return Answer(None, outcome="dropped")
        if self.raw is not None:
            return Answer(None, self.raw.encode("latin-1"), "raw")
        if self.garbage:
            return Answer(status, _GARBAGE, "garbage")
        if self.body_bytes is not None:
            success = json_answer(status, {"ok": True}, "padded")
            return replace(success, padding=max(0, self.body_bytes - len(success.content)))
        if self.text is not None:
            return Answer(status, self.text.encode(), "fault")
        if self.body is not None:
            return json_answer(status, self.body, "fault")
        if self.code is not None:
            return refusal(status, self.code, self.message)
        if own_status is not None:
            return json_answer(own_status, {"ok": False}, "fault")
        return None

    def sent(self, answer: Answer) -> Answer:
        """Return an answer, of this fault or the usual one, in the way that it shall go out."""
        sent = replace(answer, drip_seconds=self.drip_ms / 1000)
        if answer.status is None:
            return sent
        if self.compress is not None:
            sent = sent.compressed(self.compress)
        return replace(sent, headers=sent.headers + self._headers(), closes=self.close)

    def _own_status(self) -> int | None:
        if self.status is None and self.requests_per_second is not None:
            return HTTPStatus.SERVICE_UNAVAILABLE
        return self.status

    def _headers(self) -> tuple[tuple[str, str], ...]:
        if self.retry_after is None:
            return self.headers
        return ("Retry-After", self.retry_after), *self.headers
