"""Contender "ours": the admin-sync flow, from its start to its terminal state."""

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

from prefect.client import base as prefect_client
from prefect.client.schemas.objects import State

from flows.admin_sync import admin_sync
from tests.benchmarks.resource_usage import measured


async def sync(parameters: dict[str, Any]) -> State[Any]:
    return await admin_sync(return_state=True, **parameters)


def main() -> None:
    (parameters,) = sys.argv[1:]
    # Prefect's sync and async client both call this before they repeat a request.
    with patch.object(prefect_client, "_record_if_maintenance_backoff") as before_retry:
        usage, state = measured(lambda: asyncio.run(sync(json.loads(parameters))))
    outcome = {
        "state": state.type.value,
        "message": state.message,
        "flow_run_id": str(state.state_details.flow_run_id),
        "client_retries": before_retry.call_count,
    }
    print(json.dumps({**asdict(usage), **outcome}))


if __name__ == "__main__":
    main()
