"""Which secrets a process has from its environment and `.env`, whatever else it reads there."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_plus

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_CREDENTIALS: Final = re.compile(r"//([^/?#:]*:([^/?#]*))@")
_OPTION: Final = re.compile(r"(?:password=|aws_session_token:)([^&,#]+)", re.IGNORECASE)
"""An option of a MongoDB URI that is a secret."""
_PATH: Final = re.compile(r"//[^/?#]*([/?#].+)")


class _Secrets(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore")

    sync_token: SecretStr = Field(SecretStr(""), validation_alias="ADMIN_SYNC_TOKEN")
    api_token: SecretStr = Field(SecretStr(""), validation_alias="ADMIN_API_TOKEN")
    webhook_url: SecretStr = Field(SecretStr(""), validation_alias="ADMIN_ALERT_WEBHOOK_URL")
    mongodb_uri: SecretStr = Field(SecretStr(""), validation_alias="MONGODB_URI")
    prefect_key: SecretStr = Field(SecretStr(""), validation_alias="PREFECT_API_KEY")
    prefect_password: SecretStr = Field(SecretStr(""), validation_alias="PREFECT_API_AUTH_STRING")


def known_secrets() -> frozenset[str]:
    """Return the secrets that this process may come to log.

    Of a URL these are its credentials, of that of the alerts also its path and the whole of it.
    What Prefect has from a profile is not known.

    Raises:
        ValidationError: a variable is no text.
    """
    return frozenset(_secrets_in(_Secrets()))


def _secrets_in(settings: _Secrets) -> Iterator[str]:
    webhook_url = settings.webhook_url.get_secret_value()
    yield webhook_url
    yield from _PATH.findall(webhook_url)
    for token in (settings.sync_token, settings.api_token):
        yield token.get_secret_value()
    for password in (settings.prefect_key, settings.prefect_password):
        yield password.get_secret_value()
    for url in (webhook_url, settings.mongodb_uri.get_secret_value()):
        yield from _credentials_in(url)


def _credentials_in(url: str) -> Iterator[str]:
    """Yield user and password, each password alone, and it as it is meant."""
    passwords = _OPTION.findall(url)
    for credentials, password in _CREDENTIALS.findall(url):
        yield credentials
        passwords.append(password)
    yield from passwords
    yield from map(unquote_plus, passwords)
