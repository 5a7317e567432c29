"""The settings of a sync: environment and `.env`, read once, validated, all faults told at once."""

import ipaddress
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    Field,
    MongoDsn,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.entities import ENTITY_TYPES, EntityType
from tasks.known_secrets import known_secrets
from tasks.log_redaction import keep_out_of_logs

MAX_RETRIES = 50
"""Prefect takes at most 50 retry delays for a task."""

_http_url: TypeAdapter[AnyHttpUrl] = TypeAdapter(AnyHttpUrl)
_mongo_dsn: TypeAdapter[MongoDsn] = TypeAdapter(MongoDsn)


_logger = logging.getLogger(__name__)
_DOTENV = ".env"
_OURS = "ADMIN_"
_FROM_ENVIRONMENT = SettingsConfigDict(
    env_file=_DOTENV, env_ignore_empty=True, extra="ignore", frozen=True
)
SettingsType = TypeVar("SettingsType", bound=BaseSettings)


class SettingsError(ValueError):
    """Settings are missing or malformed; the message names every variable, and no value."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        self.faults = dict(faults)
        listing = "; ".join(f"{variable} {fault}" for variable, fault in self.faults.items())
        super().__init__(
            f"Wrong settings, nothing was sent. Mend these in the environment or in .env: {listing}"
        )


def _mongodb_uri(uri: SecretStr) -> SecretStr:
    try:
        _mongo_dsn.validate_python(uri.get_secret_value())
    except ValidationError:
        raise ValueError("is not a MongoDB URI such as mongodb://localhost:27017") from None
    return uri


def _header_safe(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("must be printable ASCII without spaces")
    return token


def _hub_url(url: str, info: ValidationInfo) -> str:
    try:
        _http_url.validate_python(url)
    except ValidationError:
        raise ValueError("is not an http or https URL") from None
    parts = urlsplit(url)
    has_credentials = "@" in parts.netloc
    if not info.data.get("allow_insecure_http", False):
        if has_credentials:
            raise ValueError("holds credentials: Stage 1 takes only ADMIN_SYNC_TOKEN")
        if _is_in_clear(url):
            raise ValueError("would send the token over plain http: use https")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _webhook_url(url: SecretStr) -> SecretStr:
    try:
        _http_url.validate_python(url.get_secret_value())
    except ValidationError:
        raise ValueError("is not an http or https URL") from None
    if _is_in_clear(url.get_secret_value()):
        raise ValueError("would go over plain http: use https")
    return url


def _ca_file(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"names a file that can't be read ({error.strerror})") from None
    return path


def _guarded_host(host: str, info: ValidationInfo) -> str:
    if not is_loopback(host) and info.data.get("token") is None:
        raise ValueError("is not a loopback address: set ADMIN_API_TOKEN, or let it be 127.0.0.1")
    return host


def _is_in_clear(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme.lower() == "http" and not is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class MongoSettings(BaseSettings):
    """Where the source collections and the audit trail are."""

    model_config = _FROM_ENVIRONMENT

    mongodb_uri: Annotated[SecretStr, AfterValidator(_mongodb_uri)] = Field(
        validation_alias="MONGODB_URI"
    )
    mongodb_database: str = Field(
        "identity_backoffice",
        validation_alias="MONGODB_DB",
        pattern=r'^[^/\\. "$*<>:|?\x00]{1,63}$',
    )
    steps_retention_days: int | None = Field(
        None, validation_alias="ADMIN_STEPS_RETENTION_DAYS", ge=0, le=10_000
    )
    """Days that a step is kept, 0 for ever; None leaves that to the other processes."""


class Settings(MongoSettings):
    """All settings of a sync run, times in milliseconds."""

    token: Annotated[SecretStr, AfterValidator(_header_safe)] = Field(
        validation_alias="ADMIN_SYNC_TOKEN"
    )
    ca_file: Annotated[Path, AfterValidator(_ca_file)] | None = Field(
        None, validation_alias="SSL_CERT_FILE"
    )
    timeout_ms: int = Field(8000, validation_alias="ADMIN_TIMEOUT_MS", ge=1)
    retry_max: int = Field(4, validation_alias="ADMIN_RETRY_MAX", ge=0, le=MAX_RETRIES)
    retry_base_delay_ms: int = Field(300, validation_alias="ADMIN_RETRY_BASE_DELAY_MS", ge=0)
    retry_after_max_ms: int = Field(60_000, validation_alias="ADMIN_RETRY_AFTER_MAX_MS", ge=0)
    breaker_failures: int = Field(20, validation_alias="ADMIN_BREAKER_FAILURES", ge=1)
    breaker_probe_ms: int = Field(2000, validation_alias="ADMIN_BREAKER_PROBE_MS", ge=1)
    breaker_limit_ms: int = Field(60_000, validation_alias="ADMIN_BREAKER_LIMIT_MS", ge=0)
    concurrency: int = Field(3, validation_alias="ADMIN_CONCURRENCY", ge=1, le=256)
    task_runner: Literal["threads", "dask"] = Field("threads", validation_alias="ADMIN_TASK_RUNNER")
    dask_scheduler: str | None = Field(
        None, validation_alias="DASK_SCHEDULER_ADDRESS", pattern=r"^[a-z]+://\S+:\d+$"
    )
    max_task_runs: int = Field(100, validation_alias="ADMIN_MAX_TASK_RUNS", ge=1)
    allow_insecure_http: bool = Field(False, validation_alias="ADMIN_ALLOW_INSECURE_HTTP")

    def upsert_url(self, entity_type: EntityType) -> str:
        """Return where items of that type are sent; without credentials."""
        url: str = getattr(self, _url_field(entity_type))
        return url

    def hub(self, entity_type: EntityType) -> str:
        """Return the name that `sync_items` has for that Stage 1: its upsert URL, without query."""
        return _without_query(self.upsert_url(entity_type))


class EnvironmentSettings(BaseSettings):
    """Which of several environments on one Prefect server this is; the only one has no name."""

    model_config = _FROM_ENVIRONMENT

    environment: str | None = Field(
        None, validation_alias="ADMIN_ENVIRONMENT", pattern=r"^[a-z0-9][a-z0-9-]{0,39}$"
    )

    @property
    def suffix(self) -> str:
        """Return what its names in Prefect end in: `-staging` for `staging`, nothing for none."""
        return f"-{self.environment}" if self.environment else ""

    @property
    def work_pool(self) -> str:
        """Return the name of its work pool."""
        return self.named("backoffice")

    def named(self, name: str) -> str:
        """Return what that is called here: `full` is `full-staging` in `staging`."""
        return f"{name}{self.suffix}"


class ApiSettings(EnvironmentSettings):
    """Where the REST API listens, what it asks its callers for, and what it starts."""

    token: Annotated[SecretStr, AfterValidator(_header_safe)] | None = Field(
        None, validation_alias="ADMIN_API_TOKEN"
    )
    host: Annotated[str, AfterValidator(_guarded_host)] = Field(
        "127.0.0.1", validation_alias="ADMIN_API_HOST"
    )
    port: int = Field(3000, validation_alias="ADMIN_API_PORT", ge=0, le=65535)


class AlertSettings(BaseSettings):
    """Where alerts go; without an address there are none."""

    model_config = _FROM_ENVIRONMENT

    webhook_url: Annotated[SecretStr, AfterValidator(_webhook_url)] | None = Field(
        None, validation_alias="ADMIN_ALERT_WEBHOOK_URL"
    )


@cache
def _without_query(url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


def _url_field(entity_type: EntityType) -> str:
    return f"{entity_type.name}_upsert_url"


_url_fields: dict[str, Any] = {
    _url_field(entity_type): (
        Annotated[str, AfterValidator(_hub_url)],
        Field(validation_alias=entity_type.url_variable),
    )
    for entity_type in ENTITY_TYPES
}
_SettingsWithUrls = create_model("Settings", __base__=Settings, **_url_fields)


def read_settings() -> Settings:
    """Read all settings of a sync from the environment and `.env`.

    Raises:
        SettingsError: at least one variable is missing or malformed; all of them are named.
    """
    settings = _read(_SettingsWithUrls)
    for name in _unknown_in_dotenv():
        _warn_of_unknown(name)
    return settings


def _unknown_in_dotenv() -> list[str]:
    names = dotenv_values(_DOTENV) if Path(_DOTENV).is_file() else {}
    return [name for name in names if name.startswith(_OURS) and name not in _known_variables()]


@cache
def _warn_of_unknown(name: str) -> None:
    """Tell of a variable once a process."""
    close = get_close_matches(name, _known_variables(), n=1)
    hint = f": {close[0]}?" if close else ""
    _logger.warning(".env: %s is not a setting%s", name, hint)


@cache
def _known_variables() -> frozenset[str]:
    all_settings = (_SettingsWithUrls, ApiSettings, AlertSettings)
    fields = (field for each in all_settings for field in each.model_fields.values())
    return frozenset(str(field.validation_alias) for field in fields)


def read_mongo_settings() -> MongoSettings:
    """Read where MongoDB is from the environment and `.env`; the rest may be missing.

    Raises:
        SettingsError: `MONGODB_URI` or `MONGODB_DB` is missing or malformed.
    """
    return _read(MongoSettings)


def read_api_settings() -> ApiSettings:
    """Read the settings of the REST API from the environment and `.env`.

    Raises:
        SettingsError: a variable is malformed, or the API would be open to other machines.
    """
    return _read(ApiSettings)


def read_alert_settings() -> AlertSettings:
    """Read where alerts go from the environment and `.env`.

    Raises:
        SettingsError: `ADMIN_ALERT_WEBHOOK_URL` is malformed.
    """
    return _read(AlertSettings)


def read_environment_settings() -> EnvironmentSettings:
    """Read which environment this is from the environment and `.env`.

    Raises:
        SettingsError: `ADMIN_ENVIRONMENT` is malformed.
    """
    return _read(EnvironmentSettings)


def _read(settings_type: type[SettingsType]) -> SettingsType:
    _require_readable_dotenv()
    try:
        keep_out_of_logs(known_secrets())
        return settings_type()
    except ValidationError as error:
        raise SettingsError(_faults_by_variable(error)) from None


def _require_readable_dotenv() -> None:
    try:
        is_utf_8 = "\0" not in Path(_DOTENV).read_text("utf-8")
    except FileNotFoundError:
        return
    except UnicodeDecodeError:
        is_utf_8 = False
    except OSError as error:
        fault = f"can't be read ({error.strerror}): make it a file that this user may read"
        raise SettingsError({_DOTENV: fault}) from None
    if not is_utf_8:
        raise SettingsError({_DOTENV: "is no text in UTF-8: save it as such"})


def _faults_by_variable(error: ValidationError) -> dict[str, str]:
    return {
        str(fault["loc"][0]): _in_words(fault["type"], fault["msg"]) for fault in error.errors()
    }


def _in_words(fault_type: str, message: str) -> str:
    if fault_type == "missing":
        return "is missing"
    if fault_type == "value_error":
        return message.removeprefix("Value error, ")
    return f"is wrong ({message})"
