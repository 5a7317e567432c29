"""What `./scripts/serve` tells once everything is up."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from scripts.local.hub import upsert_urls
from scripts.local.serve import main

API = "http://127.0.0.1:3000/api"
PREFECT = "http://127.0.0.1:4200/api"
MONGODB = "mongodb://127.0.0.1:50077"
STARTED = {"PREFECT_API_URL": PREFECT, "MONGODB_URI": MONGODB}


@pytest.fixture(autouse=True)
def _parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def rest_api() -> Iterator[str]:
        yield API

    def print_once(server: AbstractContextManager[str]) -> int:
        with server as told:
            print(told)
        return 0

    monkeypatch.setattr("sys.argv", ["serve"])
    monkeypatch.setattr("scripts.local.serve._run_module", lambda _name: None)
    monkeypatch.setattr("scripts.local.serve._worker", nullcontext)
    monkeypatch.setattr("scripts.local.serve._rest_api", rest_api)
    monkeypatch.setattr("scripts.local.serve.serve_until_stopped", print_once)
    monkeypatch.setattr("scripts.local.serve.SERVERS", tmp_path / "serve.json")
    settings = {"ADMIN_SYNC_TOKEN": "a-token", **upsert_urls("http://127.0.0.1:9")}
    exempt = {"NO_PROXY": "", "no_proxy": ""}
    for variable, value in {**settings, **exempt}.items():
        monkeypatch.setenv(variable, value)


def started_by_serve(monkeypatch: pytest.MonkeyPatch, started: dict[str, str]) -> None:
    for setting, address in started.items():
        monkeypatch.setenv(setting, address)
    monkeypatch.setattr("scripts.local.serve.start_missing_parts", lambda *_: started)


def commands(told: str) -> list[str]:
    block = told.partition("in whichever of these ways:\n\n")[2]
    return block.partition("\n\n")[0].splitlines()


def test_what_it_tells_works_when_it_is_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started_by_serve(monkeypatch, STARTED)
    (tmp_path / "a folder" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "a folder" / ".venv" / "bin" / "activate").touch()
    monkeypatch.setattr("scripts.local.serve._REPOSITORY", tmp_path / "a folder")
    assert main() == 0
    *settings, sync, watch, post = commands(capsys.readouterr().out)
    shell = "\n".join([*settings, 'echo "$PWD $PREFECT_API_URL $MONGODB_URI"'])
    pasted = subprocess.run(
        ["bash", "-c", shell],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert pasted.stdout == f"{tmp_path / 'a folder'} {PREFECT} {MONGODB}\n"
    assert sync == "./scripts/sync"
    assert watch == "prefect deployment run admin-sync/full --watch"
    assert post == f"curl -X POST {API}/admin/sync/run"


def test_it_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADMIN_API_TOKEN", "secret-of-the-api")
    monkeypatch.setenv("MONGODB_URI", "mongodb://me:secret-of-mine@127.0.0.1:9")
    started_by_serve(monkeypatch, {"PREFECT_API_URL": PREFECT})
    assert main() == 0
    told = capsys.readouterr().out
    assert "secret" not in told
    assert "MONGODB_URI" not in told
    assert commands(told)[-1].startswith(
        'curl -X POST -H "Authorization: Bearer $ADMIN_API_TOKEN" http'
    )


def test_a_prefect_server_that_dot_env_names_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".env").write_text("PREFECT_API_URL=http://prefect.example/api\n")
    started_by_serve(monkeypatch, {"MONGODB_URI": MONGODB})
    assert main() == 0
    told = capsys.readouterr().out
    assert "Dashboard      http://prefect.example/deployments" in told
    assert "export PREFECT_API_URL=http://prefect.example/api" in commands(told)
