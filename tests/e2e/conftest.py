"""A fresh checkout, installed by its first `./scripts/run`, and one that is served all along."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.checkout import Served, copy_repository, lend_environment, run, serving


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_repository(tmp_path_factory.mktemp("fresh checkout") / "project")


@pytest.fixture(scope="session")
def first_run(checkout: Path) -> subprocess.CompletedProcess[str]:
    # Most of what pip would compile no test imports. (pip takes the variable for its opposite.)
    return run(checkout, "./scripts/run", PIP_NO_COMPILE="0")


@pytest.fixture(scope="session")
def installed_checkout(
    prefect_home_in: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    checkout = copy_repository(tmp_path_factory.mktemp("installed checkout") / "project")
    lend_environment(checkout)
    prefect_home_in(checkout / ".local" / "prefect")
    return checkout


@pytest.fixture(scope="session")
def served(installed_checkout: Path) -> Iterator[Served]:
    """The doors of an installed checkout; the last test of test_doors.py closes them."""
    with serving(installed_checkout) as served:
        yield served
