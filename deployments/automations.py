"""The automations of the Prefect server: alerts, and an end for runs that died without a word."""

from datetime import timedelta
from string import Template
from typing import Final, cast
from uuid import UUID

from prefect.automations import (
    Automation,
    CallWebhook,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
    RunDeployment,
)
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.admin_sync import admin_sync, sync_stage
from flows.conclusion import PARTIAL, STOPPED
from tasks.settings import AlertSettings

ALERTS: Final = "admin-sync: failed, crashed or late"
DIED: Final = "admin-sync: crashed without a word"
ALERT_BLOCK: Final = "admin-sync-alerts"
"""Name of the Webhook block that holds the URL that alerts go to."""
SWEEP_DEPLOYMENT: Final = "audit-sweep/audit-sweep"
"""Deployment that carries what Prefect says of dead runs into the audit trail."""
HEARTBEATS_MISSED_AFTER: Final = timedelta(seconds=80)
"""More than two heartbeats, which come every 30 seconds (pyproject.toml, prefect.yaml)."""

_HEARTBEAT: Final = "heartbeat"
_FAILED: Final = ("Failed", PARTIAL, STOPPED, "TimedOut", "Crashed")
_ENDED: Final = ("Completed", "Cancelled", *_FAILED)
_SUSPENDED: Final = ("Suspended", "Paused")
_ALERTING: Final = (*_FAILED, "Late")
_ALERT: Final = Template("""\
{%- set text -%}
admin-sync is {{ flow_run.state.name }}: {{ flow_run.name }}
{% if flow_run.state.message %}{{ flow_run.state.message | truncate(1000) }}
{% endif %}${dashboard}/runs/flow-run/{{ flow_run.id }}
{%- endset -%}
{"text": {{ text | tojson }}}""")
"""Payload of the webhook, a template of Prefect's (Jinja) but for the dashboard's address."""


def put_automations(client: SyncPrefectClient, alerts: AlertSettings) -> None:
    """Make the automations, or bring them to what they should be; one that is off stays off."""
    _put(client, died_automation(_deployment_id(client, SWEEP_DEPLOYMENT)))
    if alerts.webhook_url is None:
        _remove_alerts(client)
    else:
        _put(client, _alert_automation(_webhook(alerts.webhook_url)))


def died_automation(
    sweep_deployment_id: UUID | None, within: timedelta = HEARTBEATS_MISSED_AFTER
) -> Automation:
    """Return what turns a sync or stage to Crashed that neither lives nor says how it ended.

    Args:
        sweep_deployment_id: run then, to carry it into the audit trail; None for nothing.
        within: how long a run may be silent; at least 10 seconds.
    """
    crash = ChangeFlowRunState(
        state=StateType.CRASHED,
        message=f"No heartbeat for {within.total_seconds():g} seconds: its process was killed, "
        "or its machine is gone",
    )
    sweep = [RunDeployment(deployment_id=sweep_deployment_id)] if sweep_deployment_id else []
    return Automation(
        name=DIED,
        description="A run whose heartbeats stop before it ends is Crashed.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after=_events(_HEARTBEAT),
            expect=_events(_HEARTBEAT, *_ENDED, *_SUSPENDED),
            for_each={"prefect.resource.id"},
            match_related=_of_flows(admin_sync.name, sync_stage.name),
            threshold=1,
            within=within,
        ),
        actions=[crash, *sweep],
    )


def _alert_automation(webhook_block_id: UUID) -> Automation:
    return Automation(
        name=ALERTS,
        description="Tells the webhook of ADMIN_ALERT_WEBHOOK_URL.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect=_events(*_ALERTING),
            match_related=_of_flows(admin_sync.name),
            threshold=1,
        ),
        actions=[
            CallWebhook(
                block_document_id=webhook_block_id,
                payload=_ALERT.substitute(dashboard=get_current_settings().ui_url),
            )
        ],
    )


def _events(*names: str) -> set[str]:
    return {f"prefect.flow-run.{name}" for name in names}


def _of_flows(*names: str) -> ResourceSpecification:
    return ResourceSpecification(
        {"prefect.resource.role": "flow", "prefect.resource.name": list(names)}
    )


def _deployment_id(client: SyncPrefectClient, name: str) -> UUID | None:
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound:
        return None


def _webhook(url: SecretStr) -> UUID:
    webhook = Webhook(url=url, headers=SecretDict({"Content-Type": "application/json"}))
    return cast(UUID, webhook.save(ALERT_BLOCK, overwrite=True))


def _put(client: SyncPrefectClient, automation: Automation) -> None:
    present = client.read_automations_by_name(automation.name)
    if not present:
        automation.create()
        return
    automation.id, automation.enabled = present[0].id, present[0].enabled
    automation.update()


def _remove_alerts(client: SyncPrefectClient) -> None:
    for automation in client.read_automations_by_name(ALERTS):
        client.delete_automation(automation.id)
    try:
        block = client.read_block_document_by_name(ALERT_BLOCK, Webhook.get_block_type_slug())
    except ObjectNotFound:
        return
    client.delete_block_document(block.id)
