"""What an operator reads of a Prefect API that is not configured, away, or refuses."""

from json import JSONDecodeError
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, temporary_settings

from tasks.prefect_api import fault_in_words, require_prefect_api
from tasks.settings import SettingsError

_REQUEST = httpx.Request("GET", "http://prefect.example/api")


def _status(code: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError(
        "whatever", request=_REQUEST, response=httpx.Response(code, request=_REQUEST)
    )


@pytest.mark.parametrize("code", [401, 403])
def test_a_wrong_password_is_called_one(code: int) -> None:
    told = fault_in_words(_status(code))
    assert "refuses the password" in told
    assert "PREFECT_API_AUTH_STRING" in told
    assert "does not answer" not in told


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), TimeoutError()])
def test_a_server_that_is_away(error: httpx.HTTPError | TimeoutError) -> None:
    told = fault_in_words(error)
    assert told.startswith(f"Prefect does not answer ({type(error).__name__})")
    assert "PREFECT_API_URL" in told


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (JSONDecodeError("whatever", "<html>", 0), "JSONDecodeError"),
        (_status(404), "HTTP 404"),
        (_status(405), "HTTP 405"),
    ],
)
def test_a_server_that_is_another_one(error: httpx.HTTPError | JSONDecodeError, cause: str) -> None:
    told = fault_in_words(error)
    assert told == (
        f"No Prefect API answers at PREFECT_API_URL ({cause}): check that it ends in /api"
    )


def test_a_server_that_fails_is_up() -> None:
    told = fault_in_words(_status(503))
    assert told == "Prefect answers with HTTP 503: the log of its server says why"


def test_no_api_is_a_missing_setting() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(SettingsError, match="PREFECT_API_URL is missing"),
    ):
        require_prefect_api()


def test_an_address_that_is_none_is_told() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:abc/api"}),
        pytest.raises(SettingsError, match="PREFECT_API_URL is no URL"),
    ):
        require_prefect_api()


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_certificates_that_can_not_be_read_are_told(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    settings = {
        PREFECT_API_URL: "https://prefect.example/api",
        PREFECT_API_SSL_CERT_FILE: str(path),
    }
    with (
        temporary_settings(settings),
        pytest.raises(SettingsError, match="PREFECT_API_SSL_CERT_FILE names no file of cert"),
    ):
        require_prefect_api()


def test_an_api_that_is_configured_will_do() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}):
        require_prefect_api()
