"""Settings: defaults of the seed, and every fault told at once, by name and without its value."""

import logging
from pathlib import Path

import pytest

from tasks.entities import ENTITY_TYPES, entity_type_named
from tasks.settings import (
    Settings,
    SettingsError,
    read_alert_settings,
    read_environment_settings,
    read_mongo_settings,
    read_settings,
)

REQUIRED = {
    "ADMIN_SYNC_TOKEN": "unit-token",
    "MONGODB_URI": "mongodb://localhost:27017",
    **{
        entity_type.url_variable: f"https://hub.example/{entity_type.endpoint}"
        for entity_type in ENTITY_TYPES
    },
}
TENANTS_URL = "ADMIN_TENANTS_UPSERT_URL"


@pytest.fixture(autouse=True)
def _required(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in REQUIRED.items():
        monkeypatch.setenv(variable, value)


def faults() -> dict[str, str]:
    with pytest.raises(SettingsError) as raised:
        read_settings()
    for variable in raised.value.faults:
        assert variable in str(raised.value)
    return raised.value.faults


def test_defaults_are_the_seeds() -> None:
    settings = read_settings()
    assert settings.timeout_ms == 8000
    assert settings.retry_max == 4
    assert settings.retry_base_delay_ms == 300
    assert settings.concurrency == 3
    assert settings.mongodb_database == "identity_backoffice"
    assert settings.max_task_runs == 100
    assert settings.allow_insecure_http is False


def test_each_entity_type_has_its_url() -> None:
    settings = read_settings()
    urls = {settings.upsert_url(entity_type) for entity_type in ENTITY_TYPES}
    assert urls == {value for name, value in REQUIRED.items() if name.endswith("_URL")}


@pytest.mark.parametrize("emptied", [False, True])
def test_all_that_is_missing_is_told_at_once(
    emptied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in REQUIRED:
        if emptied:
            monkeypatch.setenv(variable, "")
        else:
            monkeypatch.delenv(variable)
    assert faults() == dict.fromkeys(REQUIRED, "is missing")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ADMIN_TIMEOUT_MS", "0"),
        ("ADMIN_TIMEOUT_MS", "8s"),
        ("ADMIN_RETRY_MAX", "-1"),
        ("ADMIN_RETRY_MAX", "51"),
        ("ADMIN_RETRY_BASE_DELAY_MS", "-1"),
        ("ADMIN_BREAKER_FAILURES", "0"),
        ("ADMIN_BREAKER_PROBE_MS", "0"),
        ("ADMIN_BREAKER_LIMIT_MS", "-1"),
        ("ADMIN_CONCURRENCY", "0"),
        ("ADMIN_CONCURRENCY", "many"),
        ("ADMIN_MAX_TASK_RUNS", "0"),
        ("ADMIN_TASK_RUNNER", "processes"),
        ("DASK_SCHEDULER_ADDRESS", "localhost"),
        ("ADMIN_STEPS_RETENTION_DAYS", "-1"),
        ("ADMIN_STEPS_RETENTION_DAYS", "10001"),
        ("ADMIN_ALLOW_INSECURE_HTTP", "perhaps"),
        ("ADMIN_SYNC_TOKEN", "two words"),
        ("ADMIN_SYNC_TOKEN", "line\nbreak"),
        ("MONGODB_URI", "localhost:27017"),
        ("MONGODB_DB", "a/b"),
        (TENANTS_URL, "hub.example/tenants"),
        (TENANTS_URL, "ftp://hub.example/tenants"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
        ("SSL_CERT_FILE", "/"),
    ],
)
def test_what_is_malformed_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert set(faults()) == {variable}


def test_wrong_and_missing_ones_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADMIN_SYNC_TOKEN")
    monkeypatch.setenv("ADMIN_CONCURRENCY", "many")
    monkeypatch.setenv(TENANTS_URL, "http://hub.example/tenants")
    assert set(faults()) == {"ADMIN_SYNC_TOKEN", "ADMIN_CONCURRENCY", TENANTS_URL}


@pytest.mark.parametrize(
    "url", ["http://hub.example/t", "http://10.0.0.1/t", "https://user:pass@hub.example/t"]
)
def test_insecure_urls_are_refused_unless_allowed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TENANTS_URL, url)
    assert set(faults()) == {TENANTS_URL}
    monkeypatch.setenv("ADMIN_ALLOW_INSECURE_HTTP", "true")
    assert "pass" not in read_settings().upsert_url(entity_type_named("tenant"))


@pytest.mark.parametrize(
    "url",
    [
        "https://hub.example/t",
        "https://hub.example/t?code=marked&v=1",
        "https://hub.example/t#marked",
        "https://marked:marked@hub.example/t",
    ],
)
def test_a_stage_1_is_known_by_its_url_without_credentials_and_query(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_ALLOW_INSECURE_HTTP", "true")
    monkeypatch.setenv(TENANTS_URL, url)
    assert read_settings().hub(entity_type_named("tenant")) == "https://hub.example/t"
    assert read_settings().hub(entity_type_named("client")) == "https://hub.example/clients"


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "127.8.8.8:1", "[::1]:9000"])
def test_plain_http_to_loopback_is_fine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TENANTS_URL, f"http://{host}/t")
    assert read_settings().upsert_url(entity_type_named("tenant")) == f"http://{host}/t"


@pytest.mark.parametrize("host", ["localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0"])
def test_what_only_looks_like_loopback_is_refused(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TENANTS_URL, f"http://{host}/t")
    assert set(faults()) == {TENANTS_URL}


def test_no_value_is_ever_told(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = {
        "ADMIN_SYNC_TOKEN": "marked secret",
        "MONGODB_URI": "mongo://user:marked@h",
        TENANTS_URL: "https://user:marked@hub.example/",
        "ADMIN_CONCURRENCY": "marked",
    }
    for variable, value in marked.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        read_settings()
    assert set(raised.value.faults) == set(marked)
    assert "marked" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", "marked-token")
    monkeypatch.setenv("MONGODB_URI", "mongodb://user:marked@localhost")
    settings = read_settings()
    assert "marked" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_dot_env_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADMIN_SYNC_TOKEN")
    Path(".env").write_text("ADMIN_SYNC_TOKEN=from-file\nMONGODB_DB=from_file\nOTHER=1\n")
    monkeypatch.setenv("MONGODB_DB", "from_environment")
    settings = read_settings()
    assert settings.token.get_secret_value() == "from-file"
    assert settings.mongodb_database == "from_environment"


@pytest.mark.parametrize(("days", "kept"), [("", None), ("0", 0), ("365", 365)])
def test_how_long_steps_are_kept(
    days: str, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_STEPS_RETENTION_DAYS", days)
    assert read_mongo_settings().steps_retention_days == kept


MARKED_LINE = "ADMIN_SYNC_TOKEN=marked\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_dot_env_in_another_encoding_is_named(encoding: str) -> None:
    Path(".env").write_text(MARKED_LINE, encoding)
    assert dot_env_fault() == "is no text in UTF-8: save it as such"


def test_what_is_no_setting_in_a_dot_env_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    Path(".env").write_text("ADMIN_CONCURENCY=9\nADMIN_WHATEVER_ELSE=x\nOTHER=1\nADMIN_API_PORT=1")
    for _ in range(2):
        read_settings()
    assert caplog.messages == [
        ".env: ADMIN_CONCURENCY is not a setting: ADMIN_CONCURRENCY?",
        ".env: ADMIN_WHATEVER_ELSE is not a setting",
    ]


def test_a_dot_env_that_is_no_file_is_named() -> None:
    Path(".env").mkdir()
    assert dot_env_fault().startswith("can't be read (Is a directory): ")


def test_a_dot_env_that_can_not_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(MARKED_LINE)

    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read any file
    assert dot_env_fault().startswith("can't be read (Permission denied): ")


def dot_env_fault() -> str:
    """Return what every reader of settings says of `.env`."""
    faults = set()
    for read in (read_settings, read_mongo_settings, read_alert_settings):
        with pytest.raises(SettingsError, match=r"\.env") as raised:
            read()
        assert "marked" not in str(raised.value)
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
        faults.add(raised.value.faults[".env"])
    (fault,) = faults
    return fault


def test_secrets_are_out_of_all_logs_once_any_settings_are_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", "marked token that is wrong")
    Path(".env").write_text("ADMIN_API_TOKEN=marked-api-token\n")
    read_mongo_settings()
    logging.getLogger("foreign").warning("marked-api-token, marked token that is wrong")
    assert caplog.messages == ["[redacted], [redacted]"]


def test_the_example_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in REQUIRED:
        monkeypatch.delenv(variable)
    example = Path(__file__).parents[3] / ".env.example"
    Path(".env").write_text(example.read_text())
    assert isinstance(read_settings(), Settings)


def test_mongodb_settings_need_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADMIN_SYNC_TOKEN")
    monkeypatch.setenv("ADMIN_CONCURRENCY", "many")
    assert read_mongo_settings().mongodb_database == "identity_backoffice"


@pytest.mark.parametrize(
    "url", ["https://hooks.example/marked", "http://127.0.0.1:1/marked", "http://[::1]:1/marked"]
)
def test_where_alerts_go_is_a_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_alert_settings().webhook_url is None
    monkeypatch.setenv("ADMIN_ALERT_WEBHOOK_URL", url)
    settings = read_alert_settings()
    assert settings.webhook_url is not None
    assert settings.webhook_url.get_secret_value() == url
    assert "marked" not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    "url", ["hooks.example/marked", "ftp://hooks.example/marked", "http://hooks.example/marked"]
)
def test_alerts_go_nowhere_in_clear(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_ALERT_WEBHOOK_URL", url)
    with pytest.raises(SettingsError) as raised:
        read_alert_settings()
    assert set(raised.value.faults) == {"ADMIN_ALERT_WEBHOOK_URL"}
    assert "marked" not in str(raised.value)


def test_an_environment_has_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = read_environment_settings()
    assert (environment.named("full"), environment.work_pool) == ("full", "backoffice")
    monkeypatch.setenv("ADMIN_ENVIRONMENT", "staging")
    environment = read_environment_settings()
    assert environment.named("full") == "full-staging"
    assert environment.work_pool == "backoffice-staging"


@pytest.mark.parametrize("name", ["Staging", "-a", "a b", "a_b", "a" * 41, "staging\n"])
def test_an_environment_has_a_plain_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_ENVIRONMENT", name)
    with pytest.raises(SettingsError) as raised:
        read_environment_settings()
    assert set(raised.value.faults) == {"ADMIN_ENVIRONMENT"}
