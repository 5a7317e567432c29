"""The part of HTTP/1.1 that the fast hub needs: keep-alive, and bodies with a Content-Length.

The hub shares the machine's cores with what it measures, so it parses no more than its clients use.
"""

import asyncio
import json
import re
from abc import abstractmethod
from typing import Any, Final, NamedTuple, cast

_END_OF_HEAD: Final = b"\r\n\r\n"
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Request(NamedTuple):
    """The path and the body of a request."""

    path: str
    body: bytes


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection; a malformed request ends it."""

    def __init__(self) -> None:
        self._received = b""

    @abstractmethod
    def respond(self, request: Request) -> None:
        """Answer a request, now or later, through `transport`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (request := self._next_request()) is not None:
            self.respond(request)

    def _next_request(self) -> Request | None:
        head_end = self._received.find(_END_OF_HEAD)
        if head_end < 0:
            return None
        length = _CONTENT_LENGTH.search(self._received, 0, head_end)
        start = head_end + len(_END_OF_HEAD)
        end = start + (int(length[1]) if length else 0)
        if len(self._received) < end:
            return None
        path = self._received[:head_end].split(b" ", 2)[1].decode()
        request = Request(path, self._received[start:end])
        self._received = self._received[end:]
        return request


def json_response(body: Any) -> bytes:
    """Return a success."""
    content = json.dumps(body).encode()
    head = (
        b"HTTP/1.1 200 -",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(content),
    )
    return b"\r\n".join([*head, b"", content])
