"""The HTTP of the hub: it sends answers that no other server would."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from weakref import WeakSet

from scripts.local.hub.messages import Answer


@dataclass(frozen=True)
class HttpRequest:
    """A request; `client_left` tells whether its client has closed the connection by now."""

    method: str
    path: str
    authorization: str | None
    content: bytes
    client_left: Callable[[], bool]


class HttpServer(ThreadingHTTPServer):
    """Answers each connection on a thread of its own."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], respond: Callable[[HttpRequest], Answer]) -> None:
        super().__init__(address, _Handler)
        self.respond = respond
        self._connections: WeakSet[socket.socket] = WeakSet()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has closed its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpServer

    def do_GET(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization")
        request = HttpRequest(self.command, self.path, authorization, content, self._client_left)
        answer = self.server.respond(request)
        self.close_connection |= answer.status is None or answer.closes
        try:
            self._send(answer)
        except OSError:  # the client has closed the connection
            self.close_connection = True

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def _client_left(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError as error:
            return not isinstance(error, BlockingIOError)

    def _send(self, answer: Answer) -> None:
        for part in _parts(answer):
            if answer.drip_seconds:
                self._drip(part, answer.drip_seconds)
            else:
                self.connection.sendall(part)

    def _drip(self, content: bytes, pause_seconds: float) -> None:
        for byte in content:
            self.connection.sendall(bytes([byte]))
            time.sleep(pause_seconds)


def _parts(answer: Answer) -> Iterator[bytes]:
    """Yield the bytes of an answer, a long one in several parts."""
    if answer.status is not None:
        yield _head(answer)
    yield from answer.body()


def _head(answer: Answer) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} ", *(f"{name}: {value}" for name, value in answer.headers)]
    brought = {name.lower() for name, _ in answer.headers}
    if "content-type" not in brought:
        lines.append("Content-Type: application/json")
    if "content-length" not in brought:
        lines.append(f"Content-Length: {len(answer.content) + answer.padding}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
