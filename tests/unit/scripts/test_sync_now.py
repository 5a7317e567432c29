"""What a sync from the command line says before it makes a run."""

from collections.abc import Iterator
from json import JSONDecodeError
from unittest.mock import AsyncMock, MagicMock, Mock
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from scripts.local.hub import upsert_urls
from scripts.sync_now import main


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sync_now"])
    monkeypatch.setattr("scripts.sync_now.audit_trail", Mock())
    monkeypatch.setattr(
        "scripts.sync_now.run_history", lambda _settings: Mock(run_of=Mock(return_value=None))
    )
    settings = {"MONGODB_URI": "mongodb://127.0.0.1", "ADMIN_SYNC_TOKEN": "a-token"}
    exempt = {"NO_PROXY": "", "no_proxy": ""}
    for variable, value in {**settings, **exempt, **upsert_urls("http://127.0.0.1:9")}.items():
        monkeypatch.setenv(variable, value)


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mock]:
    """What the making of Prefect's client comes to."""
    get_client = Mock()
    monkeypatch.setattr("scripts.sync_now.get_client", get_client)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}):
        yield get_client


def test_no_prefect_api_is_a_missing_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main() == 2
    assert "PREFECT_API_URL is missing" in capsys.readouterr().err


def test_a_wrong_password_is_called_one(prefect: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    request = httpx.Request("POST", "http://127.0.0.1:4200/api/flows/")
    response = httpx.Response(401, request=request)
    prefect.side_effect = httpx.HTTPStatusError("401", request=request, response=response)
    assert main() == 2
    assert "Prefect refuses the password (HTTP 401)" in capsys.readouterr().err


def test_an_address_without_a_prefect_api_is_told(
    prefect: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    prefect.side_effect = JSONDecodeError("Expecting value", "<html>", 0)
    assert main() == 2
    assert "PREFECT_API_URL" in capsys.readouterr().err


def test_a_server_that_is_away_is_told(prefect: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    prefect.side_effect = httpx.ConnectError("refused")
    assert main() == 2
    told = capsys.readouterr().err
    assert told.startswith("Prefect does not answer (ConnectError): check PREFECT_API_URL")


def test_a_server_that_goes_away_when_the_run_begins_is_told(
    prefect: Mock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefect.return_value = MagicMock()
    prefect.return_value.__aenter__.return_value.create_flow_run = AsyncMock()
    wrapped = RuntimeError("Failed to reach API")
    wrapped.__cause__ = httpx.ConnectError("refused")
    monkeypatch.setattr("scripts.sync_now.run_flow_async", AsyncMock(side_effect=wrapped))
    assert main() == 1
    assert capsys.readouterr().err == (
        "The sync did not come to its end here: Prefect does not answer (ConnectError): "
        "check PREFECT_API_URL and that the server is up.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "trigger"),
    [([], "scripts.sync_now"), (["--trigger", "scripts/run"], "scripts/run")],
)
def test_a_run_says_what_has_triggered_it(
    prefect: Mock, monkeypatch: pytest.MonkeyPatch, arguments: list[str], trigger: str
) -> None:
    flow_run = FlowRun(id=UUID(int=1), flow_id=UUID(int=2), name="a run")
    prefect.return_value = MagicMock()
    create = prefect.return_value.__aenter__.return_value.create_flow_run = AsyncMock()
    create.return_value = flow_run
    run = AsyncMock(return_value=Completed())
    monkeypatch.setattr("scripts.sync_now.run_flow_async", run)
    monkeypatch.setattr("scripts.sync_now.tell_outcome", lambda *_: 0)
    monkeypatch.setattr("sys.argv", ["sync_now", *arguments])
    assert main() == 0
    assert create.await_args is not None
    assert run.await_args is not None
    for asked in (create.await_args, run.await_args):
        assert asked.kwargs["parameters"]["trigger"] == trigger
