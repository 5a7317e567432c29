"""Every command says what it does, and refuses what it does not know before it does anything."""

from importlib import import_module

import pytest

COMMANDS = [
    "deployments.api.__main__",
    "deployments.deploy",
    "scripts.history",
    "scripts.local.hub.__main__",
    "scripts.local.mongod",
    "scripts.local.prefect",
    "scripts.local.run",
    "scripts.local.serve",
    "scripts.seed_source",
    "scripts.sync",
    "scripts.sync_now",
]


def exit_status(command: str, option: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr("sys.argv", [command, option])
    with pytest.raises(SystemExit) as ended:
        import_module(command).main()
    return ended.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(command, "--help", monkeypatch) == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_option(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(command, "--hepl", monkeypatch) == 2
    assert "unrecognized arguments: --hepl" in capsys.readouterr().err
