"""Orders: what Prefect's record of a flow run tells the process that executes it."""

from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from tasks.errors import (
    FLOW_RUN_DELETED,
    RUN_CANCELLED,
    RUN_SUSPENDED,
    RUN_TAKEN_OVER,
    StopReason,
)


async def flow_run_in_prefect(prefect: PrefectClient, flow_run_id: UUID) -> FlowRun | None:
    """Return a flow run as Prefect has it now, None where it was deleted.

    Raises:
        httpx.HTTPError: Prefect's API doesn't answer.
    """
    try:
        return await prefect.read_flow_run(flow_run_id)
    except ObjectNotFound:
        return None


def time_of(headers: Mapping[str, str]) -> datetime:
    """Return when Prefect's API gave an answer with these headers, by its clock, to the second."""
    return parsedate_to_datetime(headers["Date"])


def leased_slot_of(flow_run: FlowRun) -> UUID | None:
    """Return the lease of the slot that a flow run has of its deployment's limit, if it has one.

    The limit goes with the deployment when that is deleted. Prefect 3.9 then answers 500 to every
    end of the flow run, until the lease has ended or was given back.
    """
    return flow_run.state.state_details.deployment_concurrency_lease_id if flow_run.state else None


def order_of(flow_run: FlowRun | None) -> StopReason | None:
    """Return why the process that executes a flow run has to stop; None lets it go on.

    So does an end that somebody else has noted: a process that lives ends its run itself.
    """
    if flow_run is None:
        return FLOW_RUN_DELETED
    state = flow_run.state
    if state is None:
        return None
    if state.is_cancelling() or state.is_cancelled():
        return RUN_CANCELLED
    if state.is_paused():
        return RUN_SUSPENDED
    if state.is_scheduled() or state.is_pending():
        return RUN_TAKEN_OVER
    return None
