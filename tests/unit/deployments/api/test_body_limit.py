"""A body is read up to 64 KiB, whatever its sender says of its length, or never says."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope

from deployments.api.body_limit import MAX_BODY_BYTES, BodyLimit
from deployments.api.errors import BODY_TOO_LARGE, ErrorResponse
from tests.unit.deployments.api.in_process import ask

CHUNK = b"x" * 1024
A_POST: Scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}


@pytest.fixture
def app() -> FastAPI:
    """An application that tells how long the body is."""
    app = FastAPI()
    app.add_middleware(BodyLimit)

    @app.post("/")
    async def measure(request: Request) -> int:
        return len(await request.body())

    return app


async def chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, len(CHUNK)):
        yield CHUNK[: size - start]


@pytest.mark.parametrize("size", [0, 1, MAX_BODY_BYTES])
def test_a_short_body_reaches_the_application_whole(app: FastAPI, size: int) -> None:
    for content in (b"x" * size, chunks(size)):
        answer = ask(app, "POST", "/", content=content)
        assert (answer.status_code, answer.json()) == (200, size)


def test_a_longer_one_is_refused(app: FastAPI) -> None:
    for content in (b"x" * (MAX_BODY_BYTES + 1), chunks(MAX_BODY_BYTES + 1)):
        answer = ask(app, "POST", "/", content=content)
        assert answer.status_code == 413
        assert ErrorResponse.model_validate(answer.json()) == BODY_TOO_LARGE.body


def status_of(app: FastAPI, scope: Scope, received: list[Message]) -> int:
    """Return the answer to a request of which no more may be received than that."""
    sent: list[Message] = []

    async def receive() -> Message:
        return received.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    status: int = sent[0]["status"]
    return status


def test_no_more_is_read_than_need_be(app: FastAPI) -> None:
    announced = {**A_POST, "headers": [(b"content-length", b"200000000")]}
    assert status_of(app, announced, []) == 413
    part: Message = {"type": "http.request", "body": CHUNK, "more_body": True}
    assert status_of(app, A_POST, [part] * (MAX_BODY_BYTES // len(CHUNK) + 1)) == 413


def test_what_has_come_of_a_body_whose_sender_hangs_up_is_none(app: FastAPI) -> None:
    part: Message = {"type": "http.request", "body": CHUNK, "more_body": True}
    gone: Message = {"type": "http.disconnect"}
    with pytest.raises(ClientDisconnect):
        status_of(app, A_POST, [part, gone, gone])
