"""Keeps the way to the parts on this machine free of proxies, whatever the environment names."""

import os
from typing import Final

_HOSTS: Final = ("127.0.0.1", "localhost", "::1")


def exempt_loopback_from_proxies() -> None:
    """Let this process, and all that it starts, reach this machine without a proxy."""
    lower, upper = os.environ.get("no_proxy", ""), os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = with_loopback(lower or upper)
    os.environ["NO_PROXY"] = with_loopback(upper or lower)


def with_loopback(no_proxy: str) -> str:
    """Return a value of `NO_PROXY` that exempts this machine, too."""
    if no_proxy.strip() == "*":
        return no_proxy
    exempt = [host for each in no_proxy.split(",") if (host := each.strip())]
    return ",".join([*exempt, *(host for host in _HOSTS if host not in exempt)])
