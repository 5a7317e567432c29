"""Endpoint: the address that items of one type are sent to, and the proxy on the way."""

from dataclasses import dataclass, field
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from tasks.entities import EntityType
from tasks.settings import Settings, is_loopback


@dataclass(frozen=True)
class Endpoint:
    """Where and how items of one type are sent; without `proxy` they go straight there.

    `variable` is the setting that names it, `address` its URL without credentials and query.
    """

    variable: str
    address: str
    url: httpcore.URL
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    proxy: str | None = field(repr=False)


def endpoint_of(settings: Settings, entity_type: EntityType) -> Endpoint:
    """Return the endpoint of a type, with the proxy that the environment names for it.

    On this machine it has none, whatever the environment says.
    """
    url = httpx.URL(settings.upsert_url(entity_type))
    token = settings.token.get_secret_value()
    headers = (
        (b"Host", url.netloc),
        (b"Authorization", f"Bearer {token}".encode("ascii")),
        (b"Content-Type", b"application/json"),
        (b"Accept-Encoding", b"identity"),
    )
    is_direct = is_loopback(url.host) or proxy_bypass(url.host)
    proxy = None if is_direct else getproxies().get(url.scheme)
    return Endpoint(
        entity_type.url_variable, settings.hub(entity_type), _httpcore_url(url), headers, proxy
    )


def proxy_at(address: str) -> httpcore.Proxy:
    """Return the proxy at an address with its credentials; without a scheme it is an http proxy.

    Raises:
        httpcore.UnsupportedProtocol: the scheme is neither http nor https, or it is no URL. The
            text is free of credentials.
    """
    try:
        url = httpx.URL(address if "://" in address else f"http://{address}")
    except httpx.InvalidURL:  # its text may hold a part of the credentials
        raise httpcore.UnsupportedProtocol("the proxy's address is no URL") from None
    if url.scheme not in ("http", "https"):
        raise httpcore.UnsupportedProtocol(f"a proxy of scheme {url.scheme}, not http or https")
    credentials = (url.username.encode(), url.password.encode())
    return httpcore.Proxy(_httpcore_url(url), auth=credentials if any(credentials) else None)


def _httpcore_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
