"""This machine is reached without a proxy, and other addresses as before."""

import os
from urllib.request import getproxies, proxy_bypass

import httpx
import pytest
from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from deployments.loopback import exempt_loopback_from_proxies, with_loopback

LOOPBACK = "127.0.0.1,localhost,::1"


@pytest.fixture(autouse=True)
def _a_proxy_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", LOOPBACK),
        ("*", "*"),
        ("hub.example", f"hub.example,{LOOPBACK}"),
        ("localhost, hub.example", "localhost,hub.example,127.0.0.1,::1"),
        (LOOPBACK, LOOPBACK),
    ],
)
def test_what_is_exempt_stays_so(before: str, after: str) -> None:
    assert with_loopback(before) == after


@pytest.mark.parametrize("named", ["NO_PROXY", "no_proxy"])
def test_both_spellings_say_the_same(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv(named, "hub.example")
    exempt_loopback_from_proxies()
    expected = f"hub.example,{LOOPBACK}"
    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == (expected, expected)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_each_library_goes_straight_to_this_machine_only(host: str) -> None:
    def is_by_proxy(of: str) -> tuple[bool, bool, bool]:
        transport = httpx.Client()._transport_for_url(httpx.URL(f"http://{of}:4200"))
        return (
            not proxy_bypass(of) and "http" in getproxies(),
            get_proxy(parse_uri(f"ws://{of}:4200/events")) is not None,
            "Proxy" in type(transport._pool).__name__,  # type: ignore[attr-defined]
        )

    assert is_by_proxy(host) == (True, True, True)
    exempt_loopback_from_proxies()
    assert is_by_proxy(host) == (False, False, False)
    assert is_by_proxy("hub.example") == (True, True, True)
