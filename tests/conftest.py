"""Every test starts from a machine without settings: no variables, no .env, no Prefect profile."""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

_FOREIGN = ("ADMIN_", "MONGODB_", "PREFECT_")

for _name in [name for name in os.environ if name.startswith(_FOREIGN)]:
    del os.environ[_name]

# Prefect reads these when it is imported, which the first test module does.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-home-")
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
os.environ["DO_NOT_TRACK"] = "1"

# A job in the background is started with SIGINT ignored, and so would be all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

_TOGETHER = {
    "tests/integration/test_api.py": "one API and its Prefect server",
    "tests/integration/test_alerts.py": "one Prefect server with alerts",
    "tests/integration/test_intruders.py": "one API without a token",
    "tests/integration/test_chaos.py": "one set of parts that are killed",
    "tests/e2e/test_doors.py": "one ./scripts/serve",
    "tests/e2e/test_dashboard.py": "one ./scripts/serve with a browser",
    "tests/e2e/test_run_command.py": "one fresh checkout",
    "tests/e2e/test_serve_ends.py": "one fresh checkout",
}
"""Files whose tests take turns on one worker, by what they share."""


class _Scheduling(LoadScopeScheduling):
    """With `-n`, a worker takes what stays together or a single test; the largest come first."""

    def _split_scope(self, nodeid: str) -> str:
        return _TOGETHER.get(nodeid.partition("::")[0], nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Scheduling:
    return _Scheduling(config, log)


@pytest.fixture(autouse=True)
def _no_dot_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
