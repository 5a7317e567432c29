"""Where items are sent: the address as httpcore takes it, the headers, and the proxy on the way."""

from base64 import b64encode
from collections.abc import Callable

import httpcore
import pytest

from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.hub.endpoint import Endpoint, endpoint_of, proxy_at
from tasks.settings import read_settings

TOKEN = "marked-token"
EndpointAt = Callable[[str], Endpoint]
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in PROXY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture
def endpoint_at(monkeypatch: pytest.MonkeyPatch) -> EndpointAt:
    """Return the endpoint of tenants where their upsert URL is this one."""
    monkeypatch.setenv("MONGODB_URI", "mongodb://localhost")
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", TOKEN)
    monkeypatch.setenv("ADMIN_ALLOW_INSECURE_HTTP", "true")
    for entity_type in ENTITY_TYPES:
        url = f"https://{entity_type.name}.example/"
        monkeypatch.setenv(entity_type.url_variable, url)

    def endpoint_at(url: str) -> Endpoint:
        monkeypatch.setenv("ADMIN_TENANTS_UPSERT_URL", url)
        return endpoint_of(read_settings(), entity_type_named("tenant"))

    return endpoint_at


def headers_of(endpoint: Endpoint) -> dict[bytes, bytes]:
    return dict(endpoint.headers)


@pytest.mark.parametrize(
    ("address", "url", "host"),
    [
        ("https://hub.example/a?b=c", b"https://hub.example/a?b=c", b"hub.example"),
        ("https://hub.example:443", b"https://hub.example/", b"hub.example"),
        ("http://hub.example:8080/ü", b"http://hub.example:8080/%C3%BC", b"hub.example:8080"),
        ("https://user:pass@hub.example/", b"https://hub.example/", b"hub.example"),
        ("https://ü.example/", b"https://xn--tda.example/", b"xn--tda.example"),
    ],
)
def test_an_address(endpoint_at: EndpointAt, address: str, url: bytes, host: bytes) -> None:
    endpoint = endpoint_at(address)
    assert bytes(endpoint.url) == url
    assert headers_of(endpoint)[b"Host"] == host


def test_an_ipv6_address_stands_in_brackets_only_where_a_port_may_follow(
    endpoint_at: EndpointAt,
) -> None:
    endpoint = endpoint_at("http://[::1]:9/")
    assert endpoint.url.host == b"::1"
    assert headers_of(endpoint)[b"Host"] == b"[::1]:9"


def test_the_headers_of_a_request(endpoint_at: EndpointAt) -> None:
    endpoint = endpoint_at("https://hub.example/")
    assert headers_of(endpoint) == {
        b"Host": b"hub.example",
        b"Authorization": b"Bearer marked-token",
        b"Content-Type": b"application/json",
        b"Accept-Encoding": b"identity",
    }


def test_an_endpoint_is_named_without_credentials_and_query(endpoint_at: EndpointAt) -> None:
    endpoint = endpoint_at("https://user:pass-word@hub.example/a/b?key=secret#part")
    assert endpoint.variable == "ADMIN_TENANTS_UPSERT_URL"
    assert endpoint.address == "https://hub.example/a/b"


def test_each_type_has_its_endpoint(endpoint_at: EndpointAt) -> None:
    endpoint_at("https://tenant.example/")
    for entity_type in ENTITY_TYPES:
        endpoint = endpoint_of(read_settings(), entity_type)
        assert endpoint.variable == entity_type.url_variable
        assert endpoint.url.host == f"{entity_type.name}.example".encode()


def test_an_endpoint_does_not_show_its_secrets(
    endpoint_at: EndpointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:pass-word@proxy.example")
    endpoint = endpoint_at("https://hub.example/")
    assert endpoint.proxy
    assert TOKEN not in repr(endpoint)
    assert "pass-word" not in repr(endpoint)


def test_the_proxy_is_that_of_the_scheme(
    endpoint_at: EndpointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example")
    assert endpoint_at("http://hub.example/").proxy == "http://proxy.example"
    assert endpoint_at("https://hub.example/").proxy is None


def test_a_host_that_is_exempt_has_no_proxy(
    endpoint_at: EndpointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    monkeypatch.setenv("no_proxy", "hub.example")
    assert endpoint_at("https://hub.example/").proxy is None
    assert endpoint_at("https://other.example/").proxy == "http://proxy.example"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_this_machine_has_no_proxy(
    endpoint_at: EndpointAt, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example")
    assert endpoint_at(f"http://{host}:9000/").proxy is None


@pytest.mark.parametrize(
    ("address", "scheme", "port"),
    [
        ("http://proxy.example:3128", b"http", 3128),
        ("https://proxy.example", b"https", None),
        ("proxy.example:3128", b"http", 3128),
    ],
)
def test_a_proxy_without_credentials(address: str, scheme: bytes, port: int | None) -> None:
    proxy = proxy_at(address)
    wanted = httpcore.URL(scheme=scheme, host=b"proxy.example", port=port, target=b"/")
    assert proxy.url == wanted
    assert proxy.headers == []


def test_a_proxy_is_given_its_credentials() -> None:
    (header,) = proxy_at("http://user:p%40ss@proxy.example").headers
    assert header == (b"Proxy-Authorization", b"Basic " + b64encode(b"user:p@ss"))


@pytest.mark.parametrize(
    "address",
    [
        "socks5://user:pass-word@proxy.example:1",
        "http://user:pass-word@proxy.example:port",
        "http://user:pass-word@[::1",
    ],
)
def test_a_proxy_that_can_not_be_used_is_told_without_its_credentials(address: str) -> None:
    with pytest.raises(httpcore.UnsupportedProtocol) as raised:
        proxy_at(address)
    assert str(raised.value)
    assert "pass-word" not in str(raised.value)
