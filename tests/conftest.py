"""Every test starts from a machine without settings: no variables, no .env, no Prefect profile."""

import os
import tempfile
from pathlib import Path

import pytest

_FOREIGN = ("ADMIN_", "MONGODB_", "PREFECT_")

for _name in [name for name in os.environ if name.startswith(_FOREIGN)]:
    del os.environ[_name]

# Prefect reads these when it is imported, which the first test module does.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-home-")
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
os.environ["DO_NOT_TRACK"] = "1"


@pytest.fixture(autouse=True)
def _no_dot_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
