"""The little of HTTP/1.1 that the benchmarks' hubs need: keep-alive, bodies of a stated length.

The hubs share the machine's cores with what they measure, so they parse no more than its clients
use.
"""

import asyncio
import json
import re
from abc import abstractmethod
from typing import Any, Final, NamedTuple, cast

_END_OF_HEAD: Final = b"\r\n\r\n"
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Request(NamedTuple):
    path: str
    body: bytes


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection; a request that is none cuts it."""

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


def response(status: int, content: bytes, *headers: bytes) -> bytes:
    """Return a response of JSON, or of what is said to be JSON."""
    head = [
        b"HTTP/1.1 %d -" % status,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(content),
        *headers,
    ]
    return b"\r\n".join([*head, b"", content])


def json_response(body: Any, status: int = 200, *headers: bytes) -> bytes:
    return response(status, json.dumps(body).encode(), *headers)
