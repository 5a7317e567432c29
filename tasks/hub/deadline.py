"""DeadlinePool: HTTP connections whose requests end by a deadline, whatever the peer does."""

import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import Future
from threading import Thread
from time import monotonic
from typing import Any, Final

import httpcore

_KEEPALIVE_SECONDS: Final = 5.0
RESENT: Final = "resent"
"""Extension of a response whose request was sent twice."""
_WRITE_BYTES: Final = 4096
"""A socket takes so little in one go; more could need several waits."""


class DeadlinePool(httpcore.ConnectionPool):
    """Sends one request at a time, each within `timeout_seconds` from its start.

    A timeout of httpcore bounds each wait; a peer that sends a byte now and then makes any number
    of them. Here all of a request's waits together are bounded: looking up the name, connecting,
    TLS, sending, and receiving up to the last byte of the body. Only TLS inside the TLS of an https
    proxy is bounded by the wait. Connections are kept for the next request. One that the peer has
    closed in the meantime, as it may at any time, is replaced, and the request sent again.

    Args:
        timeout_seconds: the `timeout` extension of a request is not heeded.
        tls: for https hosts.
        proxy: an http or https proxy.
    """

    def __init__(
        self, timeout_seconds: float, tls: ssl.SSLContext, proxy: httpcore.Proxy | None = None
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._exchange = _Exchange()
        super().__init__(
            ssl_context=tls,
            proxy=proxy,
            keepalive_expiry=_KEEPALIVE_SECONDS,
            network_backend=_DeadlineBackend(self._exchange),
        )

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return the response, whose body is still to be read, then closed.

        Raises:
            httpcore.TimeoutException: the time was over; reading the body may raise it too.
            httpcore.NetworkError: there was no response, or it broke off.
            httpcore.ProtocolError: the response is no HTTP, or came before its request.
            httpcore.ProxyError: the proxy refused.
        """
        self._exchange.begin(self._timeout_seconds)
        try:
            response = super().handle_request(request)
        except (httpcore.NetworkError, httpcore.RemoteProtocolError):
            if not self._exchange.met_stale_connection:
                raise
            # httpcore has dropped that connection, so this one is new.
            response = super().handle_request(request)
            response.extensions[RESENT] = True
        _refuse_unasked(response)
        return response


class _Exchange:
    """The request that is under way: when it has to be over, and which connection carries it."""

    def __init__(self) -> None:
        self._ends_at = 0.0
        self._stream: _DeadlineStream | None = None

    def begin(self, seconds: float) -> None:
        self._ends_at = monotonic() + seconds
        self._stream = None

    def goes_over(self, stream: "_DeadlineStream") -> None:
        self._stream = stream

    @property
    def met_stale_connection(self) -> bool:
        """Whether its connection has carried others, and has not brought a byte of its answer."""
        stream = self._stream
        return stream is not None and stream.has_served and not stream.has_read_since_write

    def seconds_left(self) -> float:
        left = self._ends_at - monotonic()
        if left <= 0:
            raise httpcore.TimeoutException
        return left


class _DeadlineStream(httpcore.NetworkStream):
    """A connection that never waits beyond the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, exchange: _Exchange) -> None:
        self._stream = stream
        self._exchange = exchange
        self.has_served = False
        """Whether it has brought an answer before its last request."""
        self.has_read_since_write = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        received = self._stream.read(max_bytes, self._exchange.seconds_left())
        self.has_read_since_write |= bool(received)
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._exchange.goes_over(self)
        self.has_served |= self.has_read_since_write
        self.has_read_since_write = False
        for start in range(0, len(buffer), _WRITE_BYTES):
            part = buffer[start : start + _WRITE_BYTES]
            self._stream.write(part, self._exchange.seconds_left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        left = self._exchange.seconds_left()
        encrypted = self._stream.start_tls(ssl_context, server_hostname, left)
        return _DeadlineStream(encrypted, self._exchange)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _DeadlineBackend(httpcore.NetworkBackend):
    """Connects by the deadline: each address of a host gets its share of what is left."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _addresses(host, port, self._exchange.seconds_left())
        while True:
            share = self._exchange.seconds_left() / len(addresses)
            try:
                stream = self._sockets.connect_tcp(
                    addresses.pop(0), port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses:
                    raise
            else:
                return _DeadlineStream(stream, self._exchange)


def _refuse_unasked(response: httpcore.Response) -> None:
    """Don't take what a peer sent behind its last answer for the answer to this request."""
    stream = response.extensions.get("network_stream")
    if isinstance(stream, _DeadlineStream) and not stream.has_read_since_write:
        response.close()
        raise httpcore.RemoteProtocolError("an answer came before its request")


def _addresses(host: str, port: int, seconds: float) -> list[str]:
    """Look a host up, on a thread: the operating system's look-up takes no time limit."""
    lookup: Future[list[str]] = Future()
    Thread(target=_look_up, args=(lookup, host, port), daemon=True).start()
    try:
        return lookup.result(seconds)
    except TimeoutError:
        raise httpcore.ConnectTimeout from None
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error


def _look_up(lookup: Future[list[str]], host: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        lookup.set_exception(error)
    else:
        lookup.set_result([str(address[0]) for *_, address in found])
