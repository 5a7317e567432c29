"""The automations: what they wait for, what they do then, and that each is there once."""

import json
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from jinja2 import Environment
from prefect.automations import Automation, EventTrigger
from prefect.exceptions import ObjectNotFound

from deployments.automations import ALERTS, DIED, died_automation, put_automations
from tasks.settings import AlertSettings, read_alert_settings

NOT_FOUND = ObjectNotFound(ValueError())
SWEEP_ID, BLOCK_ID, PRESENT_ID = uuid4(), uuid4(), uuid4()


class Prefect:
    """A Prefect server as its client shows it, with the automations that are put there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.present: dict[str, Any] = {}
        self.put: dict[str, tuple[str, Automation]] = {}
        self.deleted: list[UUID] = []
        self.sweep: UUID | None = SWEEP_ID
        self.block: Any = None
        for how in ("create", "update"):
            monkeypatch.setattr(Automation, how, self._put_as(how))
        monkeypatch.setattr("deployments.automations.Webhook.save", self._save)

    def read_automations_by_name(self, name: str) -> list[Any]:
        return [self.present[name]] if name in self.present else []

    def read_deployment_by_name(self, name: str) -> Any:
        assert name == "audit-sweep/audit-sweep"
        if self.sweep is None:
            raise NOT_FOUND
        return SimpleNamespace(id=self.sweep)

    def read_block_document_by_name(self, name: str, block_type: str) -> Any:
        assert (name, block_type) == ("admin-sync-alerts", "webhook")
        if self.block is None:
            raise NOT_FOUND
        return self.block

    def delete_automation(self, automation_id: UUID) -> None:
        self.deleted.append(automation_id)

    def delete_block_document(self, block_id: UUID) -> None:
        self.deleted.append(block_id)

    def _save(self, name: str, *, overwrite: bool) -> UUID:
        assert (name, overwrite) == ("admin-sync-alerts", True)
        return BLOCK_ID

    def _put_as(self, how: str) -> Any:
        def put(automation: Automation) -> None:
            self.put[automation.name] = (how, automation)

        return put


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Any:
    return Prefect(monkeypatch)


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> AlertSettings:
    monkeypatch.setenv("ADMIN_ALERT_WEBHOOK_URL", "https://alerts.example/marked")
    return read_alert_settings()


def trigger_of(automation: Automation) -> EventTrigger:
    assert isinstance(automation.trigger, EventTrigger)
    return automation.trigger


def test_a_run_that_is_silent_is_crashed_and_swept() -> None:
    automation = died_automation(SWEEP_ID)
    trigger = trigger_of(automation)
    assert trigger.after == {"prefect.flow-run.heartbeat"}
    expected = {event.removeprefix("prefect.flow-run.") for event in trigger.expect}
    assert expected >= {"heartbeat", "Completed", "Failed", "Partial", "Stopped", "Crashed"}
    assert expected >= {"Cancelled", "TimedOut", "Suspended", "Paused"}
    assert trigger.within.total_seconds() == 80
    of_flows = {
        "prefect.resource.role": "flow",
        "prefect.resource.name": ["admin-sync", "sync-stage"],
    }
    assert trigger.model_dump()["match_related"] == of_flows
    crash, sweep = automation.actions
    assert (crash.type, sweep.type) == ("change-flow-run-state", "run-deployment")
    assert sweep.model_dump()["deployment_id"] == SWEEP_ID
    assert len(died_automation(None).actions) == 1


def test_automations_are_made_once_and_then_updated(prefect: Any, alerts: AlertSettings) -> None:
    put_automations(prefect, alerts)
    assert {name: how for name, (how, _) in prefect.put.items()} == {
        DIED: "create",
        ALERTS: "create",
    }
    for name in (DIED, ALERTS):
        prefect.present[name] = SimpleNamespace(id=PRESENT_ID, enabled=False)
    put_automations(prefect, alerts)
    for how, automation in prefect.put.values():
        assert (how, automation.id, automation.enabled) == ("update", PRESENT_ID, False)


def test_an_alert_is_json_and_names_the_run_but_not_its_address(
    prefect: Any, alerts: AlertSettings
) -> None:
    put_automations(prefect, alerts)
    _, automation = prefect.put[ALERTS]
    expected = {event.removeprefix("prefect.flow-run.") for event in trigger_of(automation).expect}
    assert expected == {"Failed", "Partial", "Stopped", "TimedOut", "Crashed", "Late"}
    (call,) = automation.actions
    assert call.block_document_id == BLOCK_ID
    assert "marked" not in automation.model_dump_json()
    state = SimpleNamespace(name="Partial", message='1 of 2 "items" failed\n')
    flow_run = SimpleNamespace(id="f-1", name="all entities - schedule", state=state)
    payload = json.loads(Environment().from_string(call.payload).render(flow_run=flow_run))
    first, second, *_, last = payload["text"].splitlines()
    assert first == "admin-sync is Partial: all entities - schedule"
    assert second == '1 of 2 "items" failed'
    assert last.endswith("/runs/flow-run/f-1")


@pytest.mark.parametrize("are_there", [True, False])
def test_without_an_address_there_are_no_alerts(prefect: Any, are_there: bool) -> None:
    if are_there:
        prefect.present[ALERTS] = SimpleNamespace(id=PRESENT_ID)
        prefect.block = SimpleNamespace(id=BLOCK_ID)
    put_automations(prefect, read_alert_settings())
    assert prefect.deleted == ([PRESENT_ID, BLOCK_ID] if are_there else [])
    assert set(prefect.put) == {DIED}


def test_without_a_sweep_that_is_deployed_a_silent_run_is_still_crashed(
    prefect: Any, alerts: AlertSettings
) -> None:
    prefect.sweep = None
    put_automations(prefect, alerts)
    _, automation = prefect.put[DIED]
    assert [action.type for action in automation.actions] == ["change-flow-run-state"]
