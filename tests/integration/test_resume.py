"""A flow run that is retried goes on in its own run, and sends only what is not in yet."""

from pathlib import Path

from tests.integration.executed import executed
from tests.integration.served import forget_slots, served
from tests.integration.world import PATIENCE_SECONDS, World, wait_until


def test_a_retry_sends_what_is_not_in_and_nothing_else(world: World, tmp_path: Path) -> None:
    world.add_seed()
    world.add_tenants(20)
    world.add("client", {"id": "invalid", "version": 1})
    world.hub.misbehave(
        {"key": "tenant-0003", "code": "NOT_FOUND"},
        {"entity_type": "subtenant", "code": "INVALID_TOKEN"},
    )
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create()
        deployment.execute_here(flow_run_id)
        first = deployment.ended(flow_run_id)
        sent_before = len(world.hub.requests())
        world.hub.misbehave()
        deployment.retry(flow_run_id)
        with deployment.execute(flow_run_id) as retried:
            assert retried.wait(PATIENCE_SECONDS) == 0
        second = deployment.ended(flow_run_id)

    assert first.document["status"] == "failed"
    assert first.step("rcsa")["error"]["code"] == "INVALID_TOKEN"
    assert first.step("pagos.semperaltius.edu.mx")["error"]["code"] == "RUN_STOPPED"

    assert world.database.sync_runs.count_documents({}) == 1
    sent = {request["key"] for request in world.hub.requests()[sent_before:]}
    assert sent == {"tenant-0003", "rcsa", "pagos.semperaltius.edu.mx", "branding_rcsa_001"}
    assert second.state.is_failed()
    assert second.document["status"] == "partial"
    assert second.codes()["invalid"] == "VALIDATION_ERROR"
    assert second.document["totals"] == {"total": 26, "success": 25, "failed": 1, "skipped": 0}
    assert len(second.steps) == 26
    assert second.step("tenant-0003")["attempts"] == 2
    stages = ["success", "partial", "success", "success", "success"]
    assert [stage["status"] for stage in second.document["stages"]] == stages
    assert [error["natural_key"] for error in second.document["errors"]] == ["invalid"]


def test_a_killed_run_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    world.add_seed()
    keys = world.add_tenants(120)
    world.hub.misbehave({"entity_type": "tenant", "delay_ms": 200})
    with served(world, tmp_path / "serve.log") as deployment:
        flow_run_id = deployment.start()
        wait_until(lambda: len(world.hub.requests()) >= 60)
        deployment.kill()
        killed = deployment.ended(flow_run_id)
        forget_slots()
        world.hub.misbehave()
        deployment.prefect("flow-run", "retry", str(flow_run_id))
        wait_until(lambda: deployment.flow_run(flow_run_id).run_count == 2)
        resumed = deployment.ended(flow_run_id)

    assert killed.document["status"] == "crashed"
    assert {stage["status"] for stage in killed.document["stages"]} == {"crashed", "pending"}
    assert killed.document["totals"]["total"] == len(killed.steps) < 125

    assert resumed.state.is_completed()
    assert world.database.sync_runs.count_documents({}) == 1
    assert resumed.document["status"] == "success"
    assert {stage["status"] for stage in resumed.document["stages"]} == {"success"}
    assert resumed.document["totals"]["success"] == len(resumed.steps) == 125
    sent = [request["key"] for request in world.hub.requests()]
    assert set(keys) <= set(sent)
    assert len(sent) - 125 <= 100, "more was sent again than records can be lost"
