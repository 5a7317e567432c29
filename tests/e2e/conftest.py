"""One fresh checkout a session, its packages installed by its first `./scripts/run`."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.checkout import LEFT_OUT, Served, run, serving
from tests.integration.world import REPOSITORY


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh checkout") / "project"
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return folder


@pytest.fixture(scope="session")
def first_run(checkout: Path) -> subprocess.CompletedProcess[str]:
    return run(checkout, "./scripts/run")


@pytest.fixture(scope="module")
def served(checkout: Path, first_run: subprocess.CompletedProcess[str]) -> Iterator[Served]:
    assert first_run.returncode == 0, first_run.stderr
    with serving(checkout) as served:
        yield served
