"""The pool ends each request by its deadline, whichever way the peer makes it wait."""

import datetime
import ipaddress
import itertools
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.hub.client import HubAdminClient
from tasks.hub.deadline import DeadlinePool
from tasks.settings import read_settings

TIMEOUT = 0.2
SOON = 20.0
"""Seconds: far beyond the timeout, even on a busy machine, far below what the peers here take."""
ENDLESS = 60.0
"""Seconds that a peer takes which nobody stops."""
PATIENCE = 60.0
DROP_SECONDS = 0.05
QUESTION = b"?"
PUBLIC_TLS = ssl.create_default_context()
BROKEN = (httpcore.NetworkError, httpcore.ProtocolError)
FAILED = (*BROKEN, httpcore.TimeoutException)
SUCCESS = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Answer = Callable[[socket.socket], None]


@contextmanager
def peer(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answer the requests of all connections, return the port."""

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), wrapped(connection) as stream:
            while has_asked(stream):
                answer(stream)

    def wrapped(connection: socket.socket) -> socket.socket:
        return tls.wrap_socket(connection, server_side=True) if tls else connection

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def has_asked(stream: socket.socket) -> bool:
    received = b""
    while QUESTION not in received:
        part = stream.recv(4096)
        if not part:
            return False
        received += part
    return True


def succeeding(stream: socket.socket) -> None:
    stream.sendall(SUCCESS)


def dripping(head: bytes, drop: bytes) -> Answer:
    def answer(stream: socket.socket) -> None:
        stream.sendall(head)
        for _ in range(int(ENDLESS / DROP_SECONDS)):
            time.sleep(DROP_SECONDS)
            stream.sendall(drop)

    return answer


def flooding(head: bytes, flood: bytes) -> Answer:
    def answer(stream: socket.socket) -> None:
        stream.sendall(head)
        while True:
            stream.sendall(flood)

    return answer


def new_pool(tls: ssl.SSLContext = PUBLIC_TLS, *, seconds: float = TIMEOUT) -> DeadlinePool:
    return DeadlinePool(seconds, tls)


def post(pool: httpcore.ConnectionPool, url: str, content: bytes = QUESTION) -> bytes:
    with pool.stream("POST", url, content=content) as response:
        return response.read()


class Clock:
    """The pool's clock: that of the machine, or ahead of it."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tasks.hub.deadline.monotonic", clock)
    return clock


@contextmanager
def over_soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SOON


BODY_WITHOUT_END = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        dripping(b"", b""),
        dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        dripping(BODY_WITHOUT_END, b"x"),
        dripping(CHUNKED, b"1\r\nx\r\n"),
        dripping(CHUNKED + b"1;", b"x"),
        dripping(CHUNKED + b"0\r\nTrailer: ", b"x"),
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        flooding(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
        flooding(CHUNKED, b"1;" + b"x" * 1000 + b"\r\nx\r\n"),
    ],
    ids=[
        "silence",
        "header",
        "body",
        "chunks",
        "chunk-header",
        "trailer",
        "1xx",
        "1xx-flood",
        "chunk-flood",
    ],
)
def test_an_answer_without_end_is_over_in_time(answer: Answer) -> None:
    with (
        peer(answer) as port,
        new_pool() as pool,
        over_soon(),
        pytest.raises(httpcore.TimeoutException),
    ):
        post(pool, f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 ", CHUNKED + b"1;", CHUNKED + b"0\r\nX: "]
)
def test_a_header_without_end_is_given_up_before_the_time_is_over(head: bytes) -> None:
    with (
        peer(flooding(head, b"x" * 10_000)) as port,
        new_pool(seconds=PATIENCE) as pool,
        pytest.raises(BROKEN),
    ):
        post(pool, f"http://127.0.0.1:{port}/")


def test_a_peer_that_takes_the_request_in_by_drops_is_over_in_time() -> None:
    def taking_drops(stream: socket.socket) -> None:
        while stream.recv(40_000):
            time.sleep(DROP_SECONDS)

    with (
        peer(taking_drops) as port,
        new_pool() as pool,
        over_soon(),
        pytest.raises(httpcore.TimeoutException),
    ):
        post(pool, f"http://127.0.0.1:{port}/", QUESTION + b"x" * 50_000_000)


def test_a_connection_is_kept_and_each_request_has_its_own_time(clock: Clock) -> None:
    connections = set()

    def answer(stream: socket.socket) -> None:
        connections.add(stream.getpeername())
        succeeding(stream)

    with peer(answer) as port, new_pool(seconds=PATIENCE) as pool:
        assert post(pool, f"http://127.0.0.1:{port}/") == b"ok"
        clock.ahead = PATIENCE
        assert post(pool, f"http://127.0.0.1:{port}/") == b"ok"
    assert len(connections) == 1


def test_after_an_answer_without_end_the_next_request_is_answered(clock: Clock) -> None:
    def using_up_the_time(stream: socket.socket) -> None:
        clock.ahead = PATIENCE
        dripping(BODY_WITHOUT_END, b"x")(stream)

    answers = iter([using_up_the_time, succeeding])

    def answer(stream: socket.socket) -> None:
        next(answers)(stream)

    with peer(answer) as port, new_pool(seconds=PATIENCE) as pool:
        with pytest.raises(httpcore.TimeoutException):
            post(pool, f"http://127.0.0.1:{port}/")
        assert post(pool, f"http://127.0.0.1:{port}/") == b"ok"


def test_an_answer_that_nobody_asked_for_is_not_the_next_request_s() -> None:
    with (
        peer(lambda stream: stream.sendall(2 * SUCCESS)) as port,
        new_pool(seconds=PATIENCE) as pool,
    ):
        url = f"http://127.0.0.1:{port}/"
        assert post(pool, url) == b"ok"
        with pytest.raises(httpcore.ProtocolError, match="before its request"):
            post(pool, url)
        assert post(pool, url) == b"ok"


def reset(stream: socket.socket) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", SUCCESS[:-10], SUCCESS[:-1]])
def test_a_connection_that_is_reset(sent: bytes) -> None:
    def answer(stream: socket.socket) -> None:
        stream.sendall(sent)
        reset(stream)

    with (
        peer(answer) as port,
        new_pool(seconds=PATIENCE) as pool,
        pytest.raises(BROKEN),
    ):
        post(pool, f"http://127.0.0.1:{port}/")


def test_an_answer_before_the_request_is_sent_counts() -> None:
    def answer(stream: socket.socket) -> None:
        stream.sendall(SUCCESS)
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(1 << 20):
            pass

    with peer(answer) as port, new_pool(seconds=PATIENCE) as pool:
        url = f"http://127.0.0.1:{port}/"
        assert post(pool, url, QUESTION + b"x" * 5_000_000) == b"ok"


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port at 127.0.0.2 that never takes a connection: its backlog is full."""
    with socket.create_server(("127.0.0.2", 0), backlog=0) as listener:
        waiting = []
        for _ in range(8):
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
            waiting.append(caller)
        time.sleep(0.05)
        yield listener.getsockname()[1]
        for caller in waiting:
            caller.close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    look_up = socket.getaddrinfo

    def look_up_hub(host: str, *args: object, **kwargs: object) -> list[object]:
        hosts = addresses if host == "hub.test" else [host]
        return list(itertools.chain(*(look_up(each, *args, **kwargs) for each in hosts)))

    monkeypatch.setattr(socket, "getaddrinfo", look_up_hub)


def test_addresses_that_do_not_answer_share_the_time(
    deaf_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, *["127.0.0.2"] * int(ENDLESS / TIMEOUT))
    with new_pool() as pool, over_soon(), pytest.raises(httpcore.TimeoutException):
        post(pool, f"http://hub.test:{deaf_port}/")


def test_the_next_address_of_a_host_is_tried(
    deaf_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = int(PATIENCE / TIMEOUT)
    resolve_to(monkeypatch, "127.0.0.2", *["127.0.0.3"] * (shares - 1))
    with (
        socket.create_server(("127.0.0.3", deaf_port)) as listener,
        new_pool(seconds=PATIENCE) as pool,
    ):

        def serve() -> None:
            connection, _ = listener.accept()
            if has_asked(connection):
                succeeding(connection)

        threading.Thread(target=serve, daemon=True).start()
        assert post(pool, f"http://hub.test:{deaf_port}/") == b"ok"


def test_a_slow_look_up_is_over_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    def look_up_slowly(*_: object, **__: object) -> None:
        is_over.wait(ENDLESS)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up_slowly)
    with new_pool() as pool, over_soon(), pytest.raises(httpcore.TimeoutException):
        post(pool, "http://hub.test/")
    is_over.set()


@pytest.mark.parametrize("host", ["hub.invalid", "a..b", "x" * 64 + ".test"])
def test_a_host_that_is_not_found(host: str) -> None:
    with new_pool() as pool, over_soon(), pytest.raises(FAILED):
        post(pool, f"http://{host}/")


def make_certificate(
    path: Path,
    *,
    address: str = "127.0.0.1",
    issuer: str = "hub",
    lasts: datetime.timedelta = datetime.timedelta(hours=1),
) -> Path:
    """Write a certificate for an address, and its key; its own key vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + lasts)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def server_tls_with(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that only itself vouches for, with its key."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "peer.pem")


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    return server_tls_with(certificate)


@pytest.fixture
def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


def test_https(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    with (
        peer(succeeding, server_tls) as port,
        new_pool(client_tls, seconds=PATIENCE) as pool,
    ):
        assert post(pool, f"https://127.0.0.1:{port}/") == b"ok"


def test_a_certificate_that_nobody_vouches_for(server_tls: ssl.SSLContext) -> None:
    with (
        peer(succeeding, server_tls) as port,
        new_pool(seconds=PATIENCE) as pool,
        pytest.raises(httpcore.NetworkError, match="certificate"),
    ):
        post(pool, f"https://127.0.0.1:{port}/")


def test_stage_1_is_not_told_the_token_without_a_sound_certificate(
    server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", "token")
    monkeypatch.setenv("MONGODB_URI", "mongodb://localhost")
    monkeypatch.setenv("ADMIN_TIMEOUT_MS", str(int(PATIENCE * 1000)))
    with peer(succeeding, server_tls) as port:
        for entity_type in ENTITY_TYPES:
            monkeypatch.setenv(entity_type.url_variable, f"https://127.0.0.1:{port}/")
        client = HubAdminClient(read_settings())
        error = client.upsert(entity_type_named("tenant"), "0" * 32, {"id": "a"}).error
        client.close()
    assert error is not None
    assert error.code == "CONNECTION_ERROR"
    assert "certificate" in error.message


def test_a_dripping_answer_over_https_is_over_in_time(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    with (
        peer(dripping(BODY_WITHOUT_END, b"x"), server_tls) as port,
        new_pool(client_tls) as pool,
        over_soon(),
        pytest.raises(httpcore.TimeoutException),
    ):
        post(pool, f"https://127.0.0.1:{port}/")


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x03\x40\x00"])
def test_a_tls_handshake_without_end_is_over_in_time(hello: bytes) -> None:
    with (
        peer(dripping(hello, b"\x02")) as port,
        new_pool() as pool,
        over_soon(),
        pytest.raises(FAILED),
    ):
        post(pool, f"https://127.0.0.1:{port}/")


class Requests:
    """The requests that a peer has seen, by connection; it meets each as `answers` tells.

    `answers` is called with the number of the connection and that of the request on it, from 1 on.
    """

    def __init__(self, answers: Callable[[int, int], Answer]) -> None:
        self._answers = answers
        self._seen: dict[object, int] = {}

    def __call__(self, stream: socket.socket) -> None:
        caller = stream.getpeername()
        self._seen[caller] = self._seen.get(caller, 0) + 1
        self._answers(list(self._seen).index(caller) + 1, self._seen[caller])(stream)

    @property
    def seen(self) -> list[int]:
        """How many requests came on each connection."""
        return list(self._seen.values())


def one_a_connection(closes: Answer) -> Requests:
    """Answer the first request of each connection, and close it when the next one comes."""
    return Requests(lambda _, request: succeeding if request == 1 else closes)


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    scheme: str = request.param
    return scheme


@pytest.mark.parametrize("closes", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_stale_connection_is_replaced_at_once(
    scheme: str, closes: Answer, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    requests = one_a_connection(closes)
    with (
        peer(requests, server_tls if scheme == "https" else None) as port,
        new_pool(client_tls, seconds=PATIENCE) as pool,
    ):
        for _ in range(4):
            assert post(pool, f"{scheme}://127.0.0.1:{port}/") == b"ok"
    assert requests.seen == [2, 2, 2, 1]


def test_an_outcome_tells_that_its_request_went_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", "token")
    monkeypatch.setenv("MONGODB_URI", "mongodb://localhost")
    with peer(one_a_connection(socket.socket.close)) as port:
        for entity_type in ENTITY_TYPES:
            monkeypatch.setenv(entity_type.url_variable, f"http://127.0.0.1:{port}/")
        client = HubAdminClient(read_settings())
        tenant, body = entity_type_named("tenant"), {"id": "?"}
        outcomes = [client.upsert(tenant, "0" * 32, body) for _ in range(2)]
        client.close()
    assert [outcome.was_resent for outcome in outcomes] == [False, True]


def test_a_stale_connection_that_has_served_many_is_replaced() -> None:
    requests = Requests(lambda _, request: socket.socket.close if request == 4 else succeeding)
    with peer(requests) as port, new_pool(seconds=PATIENCE) as pool:
        for _ in range(5):
            assert post(pool, f"http://127.0.0.1:{port}/") == b"ok"
    assert requests.seen == [4, 2]


def test_a_stale_connection_to_a_proxy_is_replaced() -> None:
    requests = one_a_connection(socket.socket.close)
    with peer(requests) as port:
        proxy = httpcore.Proxy(f"http://127.0.0.1:{port}/")
        with DeadlinePool(PATIENCE, PUBLIC_TLS, proxy) as pool:
            for _ in range(2):
                assert post(pool, "http://hub.test/") == b"ok"
    assert requests.seen == [2, 1]


def test_a_stale_connection_that_breaks_while_a_long_request_is_sent_is_replaced() -> None:
    requests = one_a_connection(reset)
    content = QUESTION + b"x" * 1_000_000
    with peer(requests) as port, new_pool(seconds=PATIENCE) as pool:
        assert post(pool, f"http://127.0.0.1:{port}/") == b"ok"
        assert post(pool, f"http://127.0.0.1:{port}/", content) == b"ok"
    assert requests.seen == [2, 1]


@pytest.mark.parametrize("closes", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_new_connection_that_brings_no_answer_is_not_replaced(
    scheme: str, closes: Answer, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    requests = Requests(lambda *_: closes)
    with (
        peer(requests, server_tls if scheme == "https" else None) as port,
        new_pool(client_tls, seconds=PATIENCE) as pool,
        pytest.raises(BROKEN),
    ):
        post(pool, f"{scheme}://127.0.0.1:{port}/")
    assert requests.seen == [1]


@pytest.mark.parametrize(
    "start",
    [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 Early\r\n\r\n", SUCCESS[:-1], b"no HTTP\r\n\r\n"],
)
def test_a_request_is_not_sent_again_once_its_answer_has_begun(
    scheme: str, start: bytes, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    def breaking_off(stream: socket.socket) -> None:
        stream.sendall(start)
        stream.close()

    requests = one_a_connection(breaking_off)
    with (
        peer(requests, server_tls if scheme == "https" else None) as port,
        new_pool(client_tls, seconds=PATIENCE) as pool,
    ):
        assert post(pool, f"{scheme}://127.0.0.1:{port}/") == b"ok"
        with pytest.raises(BROKEN):
            post(pool, f"{scheme}://127.0.0.1:{port}/")
    assert requests.seen == [2]


def test_what_replaces_a_stale_connection_is_not_replaced() -> None:
    requests = Requests(lambda *at: succeeding if at in ((1, 1), (3, 1)) else socket.socket.close)
    with peer(requests) as port, new_pool(seconds=PATIENCE) as pool:
        assert post(pool, f"http://127.0.0.1:{port}/") == b"ok"
        with pytest.raises(BROKEN):
            post(pool, f"http://127.0.0.1:{port}/")
        assert requests.seen == [2, 1]
        assert post(pool, f"http://127.0.0.1:{port}/") == b"ok"


def test_the_request_that_is_sent_again_has_no_more_time(clock: Clock) -> None:
    def use_up_the_time(event: str, _: object) -> None:
        if event == "http11.receive_response_headers.failed":
            clock.ahead = PATIENCE

    requests = one_a_connection(socket.socket.close)
    with peer(requests) as port, new_pool(seconds=PATIENCE) as pool:
        url = f"http://127.0.0.1:{port}/"
        assert post(pool, url) == b"ok"
        with pytest.raises(httpcore.TimeoutException):
            pool.request("POST", url, content=QUESTION, extensions={"trace": use_up_the_time})
        assert clock.ahead == PATIENCE
    assert requests.seen == [2]
