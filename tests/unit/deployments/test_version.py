"""pyproject.toml says the version, and the rest follows."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deployments.api.app import create_app
from deployments.version import VERSION
from tasks.settings import read_api_settings, read_mongo_settings

REPOSITORY = Path(__file__).parents[3]


def test_it_is_that_of_the_newest_release() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    releases = re.findall(
        r"^## \[(.+)\] - \d{4}-\d\d-\d\d$", (REPOSITORY / "CHANGELOG.md").read_text(), re.M
    )
    assert project["version"] == VERSION == releases[0]


def test_the_api_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:9")
    document = create_app(read_api_settings(), read_mongo_settings()).openapi()
    assert document["info"]["version"] == VERSION


def test_a_command_prints_it_for_the_image() -> None:
    command = [sys.executable, "-m", "deployments.version"]
    assert subprocess.check_output(command, cwd=REPOSITORY, text=True) == f"{VERSION}\n"
