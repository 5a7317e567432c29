"""A user of MongoDB that may not do what is asked is told which right it lacks, and on what.

A mongod with `--auth`, and no Prefect: the rights are those of MongoDB alone.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from scripts.local.mongod import find_mongod
from scripts.local.process import LOCALHOST, answers, free_port, running
from tasks.mongo import database, mongo_retry
from tasks.mongo_errors import MongoForbidden
from tasks.settings import read_mongo_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.history import run_history
from tasks.trail.runs import Runs
from tests.integration.world import REPOSITORY
from tests.trail_documents import OPTIONS

PASSWORD = "marked-password"
DATABASE = "backoffice"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A MongoDB whose user `reader` may read one database, and do nothing else."""
    folder, port = tmp_path_factory.mktemp("mongod-auth"), free_port()
    options = ["--port", str(port), "--bind_ip", LOCALHOST, "--auth", "--nounixsocket"]
    with running(
        [str(find_mongod()), "--dbpath", str(folder), *options],
        name="mongod",
        ready=lambda: answers(f"http://{LOCALHOST}:{port}", within_seconds=5),
        log_path=folder / "mongod.log",
    ):
        address = f"{LOCALHOST}:{port}"
        with MongoClient[dict[str, Any]](f"mongodb://{address}") as first:
            first.admin.command("createUser", "owner", pwd=PASSWORD, roles=["root"])
        with MongoClient[dict[str, Any]](uri_of(address, "owner")) as owner:
            may_read = {"role": "read", "db": DATABASE}
            owner.admin.command("createUser", "reader", pwd=PASSWORD, roles=[may_read])
        yield address


def uri_of(address: str, user: str, password: str = PASSWORD) -> str:
    return f"mongodb://{user}:{password}@{address}"


@pytest.fixture
def as_reader(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_URI", uri_of(address, "reader"))
    monkeypatch.setenv("MONGODB_DB", DATABASE)


@pytest.mark.usefixtures("as_reader")
def test_a_run_that_can_not_be_opened() -> None:
    settings = read_mongo_settings()
    runs = Runs(database(settings)["sync_runs"], mongo_retry(settings))
    with pytest.raises(MongoForbidden, match=f"findAndModify on {DATABASE}.sync_runs") as raised:
        runs.open("a flow run", "its name", OPTIONS)
    assert PASSWORD not in str(raised.value)


@pytest.mark.usefixtures("as_reader")
def test_a_trail_whose_indexes_can_not_be_made() -> None:
    with pytest.raises(MongoForbidden, match=f"createIndexes on {DATABASE}.sync_runs"):
        audit_trail(read_mongo_settings())


@pytest.mark.usefixtures("as_reader")
def test_what_a_reader_may_do_is_done() -> None:
    history = run_history(read_mongo_settings())
    history.ping()
    assert history.runs(1, 10).items == []


def told_by(command: str, uri: str, database_name: str = DATABASE) -> tuple[int, str]:
    """Run a command of the operator's and return its exit status and what it says."""
    ended = subprocess.run(
        [sys.executable, "-m", command],
        cwd=REPOSITORY,
        env={**os.environ, "MONGODB_URI": uri, "MONGODB_DB": database_name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def test_commands_say_which_right_is_missing_and_where(address: str) -> None:
    reader = uri_of(address, "reader")
    grant = "(OperationFailure): grant the user of MONGODB_URI that right\n"
    assert told_by("scripts.seed_source", reader) == (
        1,
        f"MongoDB does not allow update on {DATABASE}.source_tenants {grant}",
    )
    assert told_by("scripts.history", reader, "other") == (
        2,
        f"MongoDB does not allow find on other.sync_runs {grant}",
    )
    assert told_by("scripts.history", uri_of(address, "reader", "wrong")) == (
        2,
        "MongoDB does not let the user of MONGODB_URI in (OperationFailure): "
        "check name, password and authSource in MONGODB_URI\n",
    )
    assert told_by("scripts.history", f"mongodb://{address}") == (
        2,
        "MongoDB does not allow this without a user that may (OperationFailure): "
        "check that MONGODB_URI names one\n",
    )
