"""The Prefect API as an operator meets it: is there one, and why it does not do what is asked."""

import ssl
from http import HTTPStatus
from typing import Final

import httpx
from prefect.settings import get_current_settings

from tasks.settings import SettingsError

_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_NO_PREFECT: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
"""Answers of Prefect's dashboard, or of another server, to calls of Prefect's API."""


def require_prefect_api() -> None:
    """Return if a Prefect API is configured; without one, Prefect makes a temporary one.

    Raises:
        SettingsError: none is, or its address or its certificates can't be used.
    """
    api = get_current_settings().api
    if not api.url:
        raise SettingsError({"PREFECT_API_URL": "is missing"})
    try:
        httpx.URL(api.url)
    except httpx.InvalidURL:
        raise SettingsError({"PREFECT_API_URL": "is no URL"}) from None
    if api.ssl_cert_file:
        _require_certificates(api.ssl_cert_file)


def _require_certificates(path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:
        fault = "names no file of certificates that can be read"
        raise SettingsError({"PREFECT_API_SSL_CERT_FILE": fault}) from None


def fault_in_words(error: httpx.HTTPError | TimeoutError | ValueError) -> str:
    """Return what an error of Prefect's client means, and what to look at.

    A `ValueError` is an answer that is none of Prefect's API.
    """
    cause = type(error).__name__
    if isinstance(error, ValueError):
        return _no_api(cause)
    if not isinstance(error, httpx.HTTPStatusError):
        return f"Prefect does not answer ({cause}): check PREFECT_API_URL and that the server is up"
    status = error.response.status_code
    if status in _REFUSED:
        return (
            f"Prefect refuses the password (HTTP {status}): check PREFECT_API_AUTH_STRING, "
            "and PREFECT_API_KEY for Prefect Cloud"
        )
    if status in _NO_PREFECT:
        return _no_api(f"HTTP {status}")
    return f"Prefect answers with HTTP {status}: the log of its server says why"


def _no_api(cause: str) -> str:
    return f"No Prefect API answers at PREFECT_API_URL ({cause}): check that it ends in /api"
