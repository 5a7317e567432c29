"""PunctualTransport: an httpx transport whose requests are over in time, whatever the peer does."""

import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any, Final, cast

import httpcore
import httpx

_KEEPALIVE_SECONDS: Final = 5.0
_WRITE_BYTES: Final = 4096
"""So little is taken by a socket in one go; more could need several waits."""


class PunctualTransport(httpx.BaseTransport):
    """Sends one request at a time, each within `timeout_seconds` from its start.

    A timeout of httpx bounds each wait; a peer that sends a byte now and then makes any number of
    them. Here all of a request's waits together are bounded: looking up the name, connecting, TLS,
    sending, and receiving up to the last byte of the body. Only TLS inside the TLS of an https
    proxy is bounded by the wait. Connections are kept for the next request.

    Args:
        timeout_seconds: the `timeout` extension of a request is not heeded.
        tls: for https hosts.
        proxy: address of an http or https proxy, with its credentials; without a scheme it is http.

    Raises:
        httpx.UnsupportedProtocol: the proxy is neither, or its address is no URL.
    """

    def __init__(self, timeout_seconds: float, tls: ssl.SSLContext, proxy: str | None) -> None:
        self._timeout_seconds = timeout_seconds
        self._deadline = _Deadline()
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            proxy=_proxy(proxy) if proxy else None,
            keepalive_expiry=_KEEPALIVE_SECONDS,
            network_backend=_PunctualBackend(self._deadline),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the response, whose body is still to be read, then closed.

        Raises:
            httpx.TimeoutException: the time was over; reading the body may raise it too.
            httpx.TransportError: there was no response, or it broke off, or it was no HTTP.
        """
        self._deadline.begin(self._timeout_seconds)
        with _httpx_errors():
            response = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    _httpcore_url(request.url),
                    headers=request.headers.raw,
                    content=cast(httpx.SyncByteStream, request.stream),
                )
            )
            _refuse_unasked(response)
        return httpx.Response(
            response.status, headers=response.headers, stream=_ResponseStream(response)
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class _Deadline:
    """When the request that is under way has to be over."""

    def __init__(self) -> None:
        self._at = 0.0

    def begin(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def seconds_left(self) -> float:
        left = self._at - time.monotonic()
        if left <= 0:
            raise httpcore.TimeoutException
        return left


class _PunctualStream(httpcore.NetworkStream):
    """A connection that never waits longer than the deadline lets it."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline
        self.has_read_since_write = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        self.has_read_since_write = True
        return self._stream.read(max_bytes, self._deadline.seconds_left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self.has_read_since_write = False
        for start in range(0, len(buffer), _WRITE_BYTES):
            part = buffer[start : start + _WRITE_BYTES]
            self._stream.write(part, self._deadline.seconds_left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        left = self._deadline.seconds_left()
        encrypted = self._stream.start_tls(ssl_context, server_hostname, left)
        return _PunctualStream(encrypted, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _PunctualBackend(httpcore.NetworkBackend):
    """Connects by the deadline: each address of a host gets its share of what is left."""

    def __init__(self, deadline: _Deadline) -> None:
        self._deadline = deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _addresses(host, port, self._deadline.seconds_left())
        while True:
            share = self._deadline.seconds_left() / len(addresses)
            try:
                stream = self._sockets.connect_tcp(
                    addresses.pop(0), port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses:
                    raise
            else:
                return _PunctualStream(stream, self._deadline)


class _ResponseStream(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _httpx_errors():
            yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


def _refuse_unasked(response: httpcore.Response) -> None:
    """Don't take what a peer sent behind its last answer for the answer to this request."""
    stream = response.extensions.get("network_stream")
    if isinstance(stream, _PunctualStream) and not stream.has_read_since_write:
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


def _httpcore_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _proxy(address: str) -> httpcore.Proxy:
    try:
        url = httpx.URL(address if "://" in address else f"http://{address}")
    except httpx.InvalidURL:  # its text may hold a part of the credentials
        raise httpx.UnsupportedProtocol("the proxy's address is no URL") from None
    if url.scheme not in ("http", "https"):
        raise httpx.UnsupportedProtocol(f"a proxy of scheme {url.scheme}, not http or https")
    credentials = (url.username.encode(), url.password.encode())
    return httpcore.Proxy(_httpcore_url(url), auth=credentials if any(credentials) else None)


@contextmanager
def _httpx_errors() -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException as error:
        raise httpx.TimeoutException(str(error)) from error
    except _FAILURES as error:
        raise httpx.TransportError(str(error) or type(error).__name__) from error


_FAILURES: Final = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
