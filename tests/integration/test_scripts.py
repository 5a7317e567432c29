"""The scripts as a shell starts them: what they refuse before they do anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.world import REPOSITORY

BASH_SCRIPTS = ["audit", "bootstrap", "lock", "run", "serve", "sync", "test"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without an environment and without a lock file."""
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in BASH_SCRIPTS:
        shutil.copy(REPOSITORY / "scripts" / name, checkout / "scripts")
    return checkout


def ended(*command: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("name", BASH_SCRIPTS)
def test_help(checkout: Path, name: str, option: str) -> None:
    told = ended(f"./scripts/{name}", option, cwd=checkout)
    assert told.returncode == 0
    assert told.stdout.startswith(f"usage: scripts/{name}")
    assert [path.name for path in checkout.iterdir()] == ["scripts"]


@pytest.mark.parametrize(
    "command",
    [
        ("audit", "--hepl"),
        ("bootstrap", "--hepl"),
        ("run", "--hepl"),
        ("run", "--keep", "--hepl"),
        ("serve", "--prefect-port"),
        ("serve", "--prefect-port", "here"),
        ("serve", "--prefect-port", "0", "--hepl"),
        ("sync", "--hepl"),
        ("sync", "all"),
        ("sync", "full", "--entities"),
        ("sync", "--entities", "domain", "--dry-run", "--hepl"),
    ],
)
def test_what_is_not_known_is_refused_before_an_environment_is_made(
    checkout: Path, command: tuple[str, ...]
) -> None:
    name, *arguments = command
    told = ended(f"./scripts/{name}", *arguments, cwd=checkout)
    assert told.returncode == 2
    assert f"scripts/{name} does not know: {' '.join(arguments)}\n" in told.stderr
    assert [path.name for path in checkout.iterdir()] == ["scripts"]


@pytest.mark.parametrize(
    "command",
    [
        ("run",),
        ("run", "--keep"),
        ("serve",),
        ("serve", "--prefect-port", "0"),
        ("serve", "--prefect-port=0"),
        ("sync",),
        ("sync", "full", "--entities=domain"),
        ("sync", "--dry-run", "changed", "--entities", "domain,tenant"),
    ],
)
def test_what_is_known_goes_on_to_the_environment(checkout: Path, command: tuple[str, ...]) -> None:
    name, *arguments = command
    told = ended(f"./scripts/{name}", *arguments, cwd=checkout)
    assert "requirements.lock is missing" in told.stderr


@pytest.mark.parametrize("module", ["scripts.sync_now", "deployments.deploy"])
def test_a_dot_env_that_can_not_be_read_is_told_before_prefect_reads_it(
    tmp_path: Path, module: str
) -> None:
    (tmp_path / ".env").write_text("ADMIN_SYNC_TOKEN=marked\n", encoding="utf-16")
    told = ended(sys.executable, "-m", module, cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert told.returncode == 2
    assert told.stderr == f"{tmp_path / '.env'} can't be read: it is not UTF-8 text.\n"
