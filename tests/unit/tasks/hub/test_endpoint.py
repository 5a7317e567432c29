"""Where items are sent: the address as httpcore takes it, the headers, and the proxy on the way."""

from base64 import b64encode

import httpcore
import pytest

from tasks.hub.endpoint import Endpoint, endpoint_at, proxy_at

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in PROXY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


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
def test_an_address(address: str, url: bytes, host: bytes) -> None:
    endpoint = endpoint_at(address, "token")
    assert bytes(endpoint.url) == url
    assert headers_of(endpoint)[b"Host"] == host


def test_an_ipv6_address_stands_in_brackets_only_where_a_port_may_follow() -> None:
    endpoint = endpoint_at("http://[::1]:9/", "token")
    assert endpoint.url.host == b"::1"
    assert headers_of(endpoint)[b"Host"] == b"[::1]:9"


def test_the_headers_of_a_request() -> None:
    endpoint = endpoint_at("https://hub.example/", "token")
    assert headers_of(endpoint) == {
        b"Host": b"hub.example",
        b"Authorization": b"Bearer token",
        b"Content-Type": b"application/json",
    }


def test_an_endpoint_does_not_show_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:pass-word@proxy.example")
    endpoint = endpoint_at("https://hub.example/", "marked-token")
    assert endpoint.proxy
    assert "marked-token" not in repr(endpoint)
    assert "pass-word" not in repr(endpoint)


def test_the_proxy_is_that_of_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example")
    assert endpoint_at("http://hub.example/", "token").proxy == "http://proxy.example"
    assert endpoint_at("https://hub.example/", "token").proxy is None


def test_a_host_that_is_exempt_has_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    monkeypatch.setenv("no_proxy", "hub.example")
    assert endpoint_at("https://hub.example/", "token").proxy is None
    assert endpoint_at("https://other.example/", "token").proxy == "http://proxy.example"


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
