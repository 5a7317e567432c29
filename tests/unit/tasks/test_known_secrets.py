"""Which parts of the environment and `.env` are secrets."""

from pathlib import Path

import pytest

from tasks.known_secrets import known_secrets

TOKENS = (
    "ADMIN_SYNC_TOKEN",
    "ADMIN_API_TOKEN",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
)


def test_without_settings_nothing_is_secret() -> None:
    assert known_secrets() <= {""}


@pytest.mark.parametrize("variable", TOKENS)
def test_a_token_is_secret_as_it_is(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "two words: even a wrong one")
    assert known_secrets() - {""} == {"two words: even a wrong one"}


def test_dot_env_is_read_too() -> None:
    Path(".env").write_text("".join(f"{variable}=of {variable}\n" for variable in TOKENS))
    assert known_secrets() - {""} == {f"of {variable}" for variable in TOKENS}


@pytest.mark.parametrize(
    ("uri", "secrets"),
    [
        ("mongodb://localhost:27017/?appName=a:b@c", set()),
        ("mongodb://user@localhost", set()),
        ("mongodb://user:pass@localhost", {"user:pass", "pass"}),
        ("mongodb+srv://u:p%2Fq+r@a,b/?w=1", {"u:p%2Fq+r", "p%2Fq+r", "p/q r"}),
        ("mongodb://[::1", set()),
        ("mongo:/user:pass@h", set()),
        ("mongo://user:pa:ss@h@h", {"user:pa:ss@h", "pa:ss@h"}),
        ("mongodb://h/?tlsCertificateKeyFilePassword=p%2Fq&w=1", {"p%2Fq", "p/q"}),
        ("mongodb://h/?authMechanismProperties=A:b,AWS_SESSION_TOKEN:t,C:d", {"t"}),
    ],
)
def test_of_a_mongodb_uri_its_credentials_are_secret(
    uri: str, secrets: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONGODB_URI", uri)
    assert known_secrets() - {""} == secrets


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://hooks.example/services/T0", {"/services/T0"}),
        ("https://hooks.example?key=k", {"?key=k"}),
        ("https://hooks.example", set()),
        ("https://u:p@hooks.example:1/a/b", {"u:p", "p", "/a/b"}),
    ],
)
def test_where_alerts_go_is_secret_and_so_is_its_path(
    url: str, parts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_ALERT_WEBHOOK_URL", url)
    assert known_secrets() - {""} == {url, *parts}
