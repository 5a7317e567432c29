"""Limits how much of a request's body the API reads."""

from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import BODY_TOO_LARGE, error_response

MAX_BODY_BYTES: Final = 64 * 1024


class BodyLimit:
    """Middleware that reads a body before the application does, and refuses one that is longer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await _body_of(Request(scope, receive))
        except ClientDisconnect:
            await self._app(scope, receive, send)
            return
        if body is None:
            await error_response(BODY_TOO_LARGE)(scope, receive, send)
        else:
            await self._app(scope, _after(body, receive), send)


async def _body_of(request: Request) -> bytes | None:
    """Return the body, None for one that is too long; of that one, no more is read than need be."""
    if int(request.headers.get("Content-Length", 0)) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _after(body: bytes, receive: Receive) -> Receive:
    """Return a function that receives the body first, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_next() -> Message:
        return messages.pop() if messages else await receive()

    return receive_next
