"""Says of syncs whose worker is gone that they have crashed, in Prefect and in the audit trail."""

from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Crashed

from flows.admin_sync import admin_sync, sync_stage
from flows.dashboard import publish_results
from flows.state_mirror import mirror_run, mirror_stage

_BEGUN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def settle() -> None:
    """Settle every sync that has begun and not ended.

    Only for a Prefect server none of whose workers runs: a sync that goes on would be settled too.
    """
    with get_client(sync_client=True) as client:
        for stage in _unfinished(client, sync_stage.name):
            mirror_stage(sync_stage, stage, _crash(client, stage))
        for run in _unfinished(client, admin_sync.name):
            state = _crash(client, run)
            mirror_run(admin_sync, run, state)
            publish_results(admin_sync, run, state)


def _unfinished(client: SyncPrefectClient, flow_name: str) -> list[FlowRun]:
    begun = FlowRunFilterState(type=FlowRunFilterStateType(any_=_BEGUN))
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])),
        flow_run_filter=FlowRunFilter(state=begun),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )


def _crash(client: SyncPrefectClient, flow_run: FlowRun) -> State[Any]:
    state: State[Any] = Crashed(message="The worker that ran it was stopped")
    client.set_flow_run_state(flow_run.id, state, force=True)
    return state


if __name__ == "__main__":
    settle()
