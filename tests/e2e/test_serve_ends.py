"""Ctrl-C ends `./scripts/serve` and all that it started, a sync in its midst too."""

from pathlib import Path

from pymongo import MongoClient

from scripts.local.mongod import local_mongod
from tests.e2e.checkout import processes_of, serving
from tests.integration.world import http, wait_until


def test_ctrl_c_in_the_middle_of_a_sync(installed_checkout: Path) -> None:
    with serving(installed_checkout) as doors:
        doors.hub.misbehave({"delay_ms": 3000})
        started = http.post(f"{doors.api_url}/admin/sync/run")
        assert started.status_code == 202
        wait_until(lambda: doors.hub.stats()["in_flight"])
    assert doors.process.returncode == 0
    wait_until(lambda: not processes_of(installed_checkout))
    with local_mongod(installed_checkout / ".local" / "mongodb") as uri, MongoClient(uri) as client:
        (run,) = client["identity_backoffice"].sync_runs.find().sort({"started_at": -1}).limit(1)
    assert str(run["_id"]) == started.json()["run_id"]
    assert run["status"] == "crashed"
