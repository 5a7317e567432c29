"""A checkout for `./scripts/run`, and one that is served all along."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.checkout import (
    FailedSync,
    Served,
    copy_repository,
    lend_environment,
    run,
    serving,
    sync_that_fails,
)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = copy_repository(tmp_path_factory.mktemp("fresh checkout") / "project")
    lend_environment(checkout)
    return checkout


@pytest.fixture(scope="session")
def first_run(checkout: Path) -> subprocess.CompletedProcess[str]:
    return run(checkout, "./scripts/run")


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


@pytest.fixture(scope="session")
def failed_sync(served: Served) -> FailedSync:
    """As it was when it had ended: the dashboard's Retry mends it."""
    return sync_that_fails(served)
