"""The automations: what they wait for, what they do then, and that each is there once."""

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from jinja2 import Environment
from prefect.automations import Automation, CompoundTrigger, EventTrigger
from prefect.exceptions import ObjectNotFound

from deployments.automations import (
    alert_block,
    alerts_name,
    late_sweeps_name,
    put_automations,
)
from tasks.settings import AlertSettings, read_alert_settings, read_environment_settings

NOT_FOUND = ObjectNotFound(ValueError())
BLOCK_ID, PRESENT_ID, OLD_ID = uuid4(), uuid4(), uuid4()
ALERTS = "admin-sync: failed, crashed or late"
LATE_SWEEPS = "audit-sweep: skip what is late"
DIED = "admin-sync: crashed without a word"


class Prefect:
    """A Prefect server as its client shows it, with the automations that are put there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.present: dict[str, Any] = {}
        self.put: dict[str, tuple[str, Automation]] = {}
        self.deleted: list[UUID] = []
        self.blocks: dict[str, Any] = {}
        for how in ("create", "update"):
            monkeypatch.setattr(Automation, how, self._put_as(how))
        monkeypatch.setattr("deployments.automations.Webhook.save", self._save)

    def read_automations_by_name(self, name: str) -> list[Any]:
        return [self.present[name]] if name in self.present else []

    def read_block_document_by_name(self, name: str, block_type: str) -> Any:
        assert block_type == "webhook"
        if name not in self.blocks:
            raise NOT_FOUND
        return self.blocks[name]

    def delete_automation(self, automation_id: UUID) -> None:
        self.deleted.append(automation_id)

    def delete_block_document(self, block_id: UUID) -> None:
        self.deleted.append(block_id)

    def _save(self, name: str, *, overwrite: bool) -> UUID:
        assert overwrite
        self.blocks[name] = SimpleNamespace(id=BLOCK_ID)
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


def triggers_of(automation: Automation) -> list[EventTrigger]:
    if isinstance(automation.trigger, CompoundTrigger):
        triggers = automation.trigger.triggers
    else:
        triggers = [automation.trigger]
    return [trigger for trigger in triggers if isinstance(trigger, EventTrigger)]


def states_expected(trigger: EventTrigger) -> set[str]:
    return {event.removeprefix("prefect.flow-run.") for event in trigger.expect}


def test_it_is_made_once_and_then_updated(prefect: Any, alerts: AlertSettings) -> None:
    put_automations(prefect, read_environment_settings(), alerts)
    assert {name: how for name, (how, _) in prefect.put.items()} == {
        ALERTS: "create",
        LATE_SWEEPS: "create",
    }
    prefect.present[ALERTS] = SimpleNamespace(id=PRESENT_ID, enabled=False)
    put_automations(prefect, read_environment_settings(), alerts)
    how, automation = prefect.put[ALERTS]
    assert (how, automation.id, automation.enabled) == ("update", PRESENT_ID, False)
    assert prefect.deleted == []


def test_an_alert_is_json_and_names_the_run_but_not_its_address(
    prefect: Any, alerts: AlertSettings
) -> None:
    put_automations(prefect, read_environment_settings(), alerts)
    _, automation = prefect.put[ALERTS]
    ended_badly, late = triggers_of(automation)
    assert states_expected(ended_badly) == {"Failed", "Partial", "Stopped", "TimedOut", "Crashed"}
    assert states_expected(late) == {"Late"}
    assert (ended_badly.within, late.within) == (timedelta(0), timedelta(hours=1))
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


def test_an_environment_has_alerts_of_its_own(
    prefect: Any, alerts: AlertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_ENVIRONMENT", "staging")
    environment = read_environment_settings()
    put_automations(prefect, environment, alerts)
    names = {alerts_name(environment), late_sweeps_name(environment)}
    assert set(prefect.put) == names
    assert not names & {ALERTS, LATE_SWEEPS}
    assert set(prefect.blocks) == {alert_block(environment)} == {"admin-sync-alerts-staging"}
    _, automation = prefect.put[alerts_name(environment)]
    for trigger in triggers_of(automation):
        of_flow, of_deployments = trigger.model_dump()["match_related"]
        assert of_flow["prefect.resource.name"] == ["admin-sync"]
        assert of_deployments == {
            "prefect.resource.role": "deployment",
            "prefect.resource.name": ["full-staging", "changed-staging"],
        }
    assert "admin-sync-staging is" in automation.actions[0].payload


@pytest.mark.parametrize("are_there", [True, False])
def test_without_an_address_there_are_no_alerts(prefect: Any, are_there: bool) -> None:
    if are_there:
        prefect.present[ALERTS] = SimpleNamespace(id=PRESENT_ID)
        prefect.blocks["admin-sync-alerts"] = SimpleNamespace(id=BLOCK_ID)
    put_automations(prefect, read_environment_settings(), read_alert_settings())
    assert prefect.deleted == ([PRESENT_ID, BLOCK_ID] if are_there else [])
    assert set(prefect.put) == {LATE_SWEEPS}


def test_a_sweep_that_is_late_is_skipped(prefect: Any) -> None:
    put_automations(prefect, read_environment_settings(), read_alert_settings())
    _, automation = prefect.put[LATE_SWEEPS]
    (trigger,) = triggers_of(automation)
    assert states_expected(trigger) == {"Late"}
    _, of_deployment = trigger.model_dump()["match_related"]
    assert of_deployment["prefect.resource.name"] == ["audit-sweep"]
    (skip,) = automation.actions
    assert (skip.state, skip.name) == ("CANCELLED", "Skipped")


def test_what_earlier_versions_crashed_silent_runs_with_is_deleted(prefect: Any) -> None:
    prefect.present[DIED] = SimpleNamespace(id=OLD_ID)
    put_automations(prefect, read_environment_settings(), read_alert_settings())
    assert prefect.deleted == [OLD_ID]
