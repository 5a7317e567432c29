"""Every test starts from a machine without settings: no variables, no .env, no Prefect profile."""

import atexit
import fcntl
import gc
import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from scripts.local.prefect import local_prefect_server, one_authority

_FOREIGN = ("ADMIN_", "MONGODB_", "PREFECT_")

for _name in [name for name in os.environ if name.startswith(_FOREIGN)]:
    del os.environ[_name]

# Prefect reads these when it is imported, which the first test module does.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-home-")
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_API_SSL_CERT_FILE"] = str(one_authority(Path(os.environ["PREFECT_HOME"])))

# Python would look for garbage each 700 new objects, among the hundred thousands of Prefect.
gc.set_threshold(50_000)

# A job in the background is started with SIGINT ignored, and one under nohup with SIGHUP, and so
# would be all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No example fails for the speed of the machine.
settings.register_profile(
    "tests", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", settings.get_profile("tests"), max_examples=5_000)
settings.load_profile("tests")

_LONGEST_FIRST = (
    (  # They wait most of the time, and leave the cores to the others.
        "tests/integration/test_slots.py",
        "tests/integration/test_mongodb_away.py",
        "tests/integration/test_prefect_away.py",
        "tests/integration/test_failures.py",
    ),
    ("tests/e2e/test_dashboard.py", "tests/e2e/test_doors.py"),
    ("tests/integration/test_chaos.py",),
    ("tests/e2e/test_run_command.py",),
    ("tests/integration/trail/test_histories.py",),
    ("tests/integration/test_replica_set.py",),
    ("tests/integration/test_api.py",),
    ("tests/integration/test_deploy.py",),
    ("tests/integration/test_dask.py",),
    ("tests/integration/test_dask_losses.py",),
    ("tests/integration/test_cargo_lambda.py",),
    ("tests/integration/test_alerts.py",),
    ("tests/integration/test_intruders.py",),
    ("tests/integration/test_mongodb_rights.py",),
)
"""What is run first, by how its ids begin; what stands in one line shares servers, in this order.

With `-n`, one worker takes all of a line, and of the rest a test at a time.
"""


def _place(nodeid: str) -> tuple[int, int]:
    """Return the line, and the place in it; what is in none comes last."""
    for line, starts in enumerate(_LONGEST_FIRST):
        for place, start in enumerate(starts):
            if nodeid.startswith(start):
                return line, place
    return len(_LONGEST_FIRST), 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.nodeid))


class _Scheduling(LoadScopeScheduling):
    """Hands the tests to workers in their order, each line of `_LONGEST_FIRST` to one."""

    def _split_scope(self, nodeid: str) -> str:
        line, _ = _place(nodeid)
        return nodeid if line == len(_LONGEST_FIRST) else _LONGEST_FIRST[line][0]

    def _reschedule(self, node: WorkerController) -> None:
        """Keep no more than one test waiting behind the one that runs, which may take long."""
        if not self.workqueue or self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Scheduling:
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


@pytest.fixture(autouse=True)
def _no_dot_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def prefect_database(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect database as the first start of a server leaves it, kept for later sessions.

    The migrations that make it are half of such a start.
    """
    assert pytestconfig.cache is not None
    database = pytestconfig.cache.mkdir("prefect") / f"{version('prefect')}.db"
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            _make_prefect_database(tmp_path_factory.mktemp("first prefect")).replace(database)
    return database


def _make_prefect_database(home: Path) -> Path:
    with local_prefect_server(home):
        """It has made its database by then."""
    made, copied = home / "prefect.db", home / "copy.db"
    with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(copied)) as target:
        source.backup(target)
    return copied


@pytest.fixture(scope="session")
def prefect_home_in(prefect_database: Path) -> Callable[[Path], Path]:
    """Make a folder the home of a Prefect server that starts soon."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(prefect_database, folder / "prefect.db")
        return folder

    return make
