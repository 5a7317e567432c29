"""The automations of the Prefect server: alerts, and an end of sweeps that nobody has run."""

from datetime import timedelta
from string import Template
from typing import Final, cast
from uuid import UUID

from prefect.automations import (
    Automation,
    CallWebhook,
    ChangeFlowRunState,
    CompoundTrigger,
    EventTrigger,
    Posture,
    ResourceSpecification,
)
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.admin_sync import admin_sync
from flows.audit_sweep import audit_sweep
from flows.conclusion import PARTIAL, SKIPPED, STOPPED
from tasks.settings import AlertSettings, EnvironmentSettings
from tasks.trail.runs import SyncMode

_ENDED_BADLY: Final = ("Failed", PARTIAL, STOPPED, "TimedOut", "Crashed")
_LATE: Final = "Late"
_LATE_ALERT_EACH: Final = timedelta(hours=1)
"""How often a deployment tells that its runs are late: each of them is while no worker is up."""
_USED_NO_MORE: Final = "admin-sync: crashed without a word"
"""Automation of earlier versions, which would crash runs that live."""
_ALERT: Final = Template("""\
{%- set text -%}
${sync} is {{ flow_run.state.name }}: {{ flow_run.name }}
{% if flow_run.state.message %}{{ flow_run.state.message | truncate(1000) }}
{% endif %}${dashboard}/runs/flow-run/{{ flow_run.id }}
{%- endset -%}
{"text": {{ text | tojson }}}""")
"""Payload of the webhook, a template of Prefect's (Jinja) but for `sync` and the dashboard."""


def alerts_name(environment: EnvironmentSettings) -> str:
    """Return the name of the automation that alerts."""
    return f"{environment.named(admin_sync.name)}: failed, crashed or late"


def alert_block(environment: EnvironmentSettings) -> str:
    """Return the name of the Webhook block that holds the URL that alerts go to."""
    return environment.named("admin-sync-alerts")


def late_sweeps_name(environment: EnvironmentSettings) -> str:
    """Return the name of the automation that skips sweeps which are late."""
    return f"{environment.named(audit_sweep.name)}: skip what is late"


def put_automations(
    client: SyncPrefectClient, environment: EnvironmentSettings, alerts: AlertSettings
) -> None:
    """Make the automations, or bring them to what they should be; one that is off stays off.

    Where alerts go nowhere, there is none of them.
    """
    _remove(client, _USED_NO_MORE)
    _put(client, _late_sweeps_automation(environment))
    if alerts.webhook_url is None:
        _remove(client, alerts_name(environment))
        _remove_block(client, alert_block(environment))
    else:
        block_id = _save_block(alert_block(environment), alerts.webhook_url)
        _put(client, _alert_automation(environment, block_id))


def _late_sweeps_automation(environment: EnvironmentSettings) -> Automation:
    sweep = environment.named(audit_sweep.name)
    return Automation(
        name=late_sweeps_name(environment),
        description="Skips a sweep that no worker took in time: none has to catch up.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={_event(_LATE)},
            match_related=[_related("flow", audit_sweep.name), _related("deployment", sweep)],
            threshold=1,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CANCELLED, name=SKIPPED, message="No worker took it in time"
            )
        ],
    )


def _alert_automation(environment: EnvironmentSettings, webhook_block_id: UUID) -> Automation:
    dashboard = get_current_settings().ui_url
    sync = environment.named(admin_sync.name)
    syncs: list[ResourceSpecification | dict[str, str | list[str]]] = [
        _related("flow", admin_sync.name),
        _related("deployment", *(environment.named(mode.value) for mode in SyncMode)),
    ]
    return Automation(
        name=alerts_name(environment),
        description="Tells the webhook of ADMIN_ALERT_WEBHOOK_URL.",
        trigger=CompoundTrigger(
            require="any",
            within=None,
            triggers=[
                EventTrigger(
                    posture=Posture.Reactive,
                    expect={_event(name) for name in _ENDED_BADLY},
                    match_related=syncs,
                    threshold=1,
                ),
                EventTrigger(
                    posture=Posture.Reactive,
                    expect={_event(_LATE)},
                    match_related=syncs,
                    for_each={"related:deployment:prefect.resource.id"},
                    threshold=1,
                    within=_LATE_ALERT_EACH,
                ),
            ],
        ),
        actions=[
            CallWebhook(
                block_document_id=webhook_block_id,
                payload=_ALERT.substitute(sync=sync, dashboard=dashboard),
            )
        ],
    )


def _event(state_name: str) -> str:
    return f"prefect.flow-run.{state_name}"


def _related(role: str, *names: str) -> ResourceSpecification:
    return ResourceSpecification(
        {"prefect.resource.role": role, "prefect.resource.name": list(names)}
    )


def _put(client: SyncPrefectClient, automation: Automation) -> None:
    present = client.read_automations_by_name(automation.name)
    if not present:
        automation.create()
        return
    automation.id, automation.enabled = present[0].id, present[0].enabled
    automation.update()


def _remove(client: SyncPrefectClient, name: str) -> None:
    for automation in client.read_automations_by_name(name):
        client.delete_automation(automation.id)


def _save_block(name: str, url: SecretStr) -> UUID:
    webhook = Webhook(url=url, headers=SecretDict({"Content-Type": "application/json"}))
    return cast(UUID, webhook.save(name, overwrite=True))


def _remove_block(client: SyncPrefectClient, name: str) -> None:
    try:
        block = client.read_block_document_by_name(name, Webhook.get_block_type_slug())
    except ObjectNotFound:
        return
    client.delete_block_document(block.id)
