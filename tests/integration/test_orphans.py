"""With `skip_orphans`, an item whose parent failed for good in this run is not sent."""

from typing import Any

import pytest

from tests.integration.world import World

TENANT = {"name": "T", "version": 1}
SUBTENANT = {"name": "S", "version": 1}


@pytest.fixture
def family(world: World) -> World:
    """Two tenants, and what hangs on each."""
    for tenant in ("good", "bad"):
        world.add("tenant", {"id": tenant, **TENANT})
        world.add("subtenant", {"id": f"sub-{tenant}", "tenant_id": tenant, **SUBTENANT})
        world.add("domain", {"host": f"{tenant}.example", "tenant_id": tenant, "version": 1})
        world.add("branding", {"id": f"brand-{tenant}", "subtenant_id": f"sub-{tenant}"})
    world.add("branding", {"id": "brand-of-nobody"})
    return world


def sent_keys(world: World) -> set[str]:
    return {request["key"] for request in world.hub.requests()}


def test_orphans_are_skipped_with_their_parent_s_key(family: World) -> None:
    family.hub.misbehave({"key": "bad", "code": "VALIDATION_ERROR"})
    run = family.sync(skip_orphans=True)
    assert run.document["status"] == "partial"
    assert run.document["parameters"]["skip_orphans"] is True
    assert run.document["totals"] == {"total": 9, "success": 5, "failed": 1, "skipped": 3}
    orphans = {
        "sub-bad": "tenant bad",
        "bad.example": "tenant bad",
        "brand-bad": "subtenant sub-bad",
    }
    for key, parent in orphans.items():
        step = run.step(key)
        assert step["state"] == "Skipped"
        assert step["attempts"] == 0
        assert step["error"] == {
            "code": "PARENT_FAILED",
            "message": f"not sent: {parent} failed in this run",
            "class": "skipped",
        }
    assert sent_keys(family).isdisjoint(orphans)


def test_by_default_they_are_sent(family: World) -> None:
    family.hub.misbehave({"key": "bad", "code": "VALIDATION_ERROR"})
    run = family.sync()
    assert {"sub-bad", "bad.example", "brand-bad"} <= sent_keys(family)
    assert "PARENT_FAILED" not in run.codes().values()


@pytest.mark.parametrize(
    "fault",
    [
        {"key": "bad", "attempts": [1], "status": 503},
        {"key": "bad", "status": 503},
    ],
)
def test_a_transient_error_makes_no_orphans(
    family: World, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_RETRY_MAX", "1")
    family.hub.misbehave(fault)
    codes = family.sync(skip_orphans=True).codes()
    assert "PARENT_FAILED" not in (codes["sub-bad"], codes["bad.example"])


def test_a_parent_that_is_invalid_and_one_that_is_there_twice(family: World) -> None:
    family.add("tenant", {"id": "invalid", "version": 1}, {"id": "good", **TENANT})
    family.add("subtenant", {"id": "sub-invalid", "tenant_id": "invalid", **SUBTENANT})
    codes = family.sync(skip_orphans=True).codes()
    assert codes["invalid"] == "VALIDATION_ERROR"
    assert codes["sub-invalid"] == "PARENT_FAILED"
    assert codes["sub-good"] is None


def test_a_dry_run_decides_the_same(family: World) -> None:
    family.add("tenant", {"id": "invalid", "version": 1})
    family.add("subtenant", {"id": "sub-invalid", "tenant_id": "invalid", **SUBTENANT})
    run = family.sync(skip_orphans=True, dry_run=True)
    codes = {key: code for key, code in run.codes().items() if code != "WOULD_SEND"}
    assert codes == {"invalid": "VALIDATION_ERROR", "sub-invalid": "PARENT_FAILED"}
    assert family.hub.requests() == []
