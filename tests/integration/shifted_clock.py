"""Executes a flow run in a process whose clock is off: `SECONDS FLOW_RUN_ID`, ahead if positive.

The clock is shifted for the modules of the sync and of Prefect: `time.time` and `datetime`.
"""

import asyncio
import datetime
import sys
import time
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.engine import handle_engine_signals
from prefect.flow_engine import run_flow_async
from prefect.types import _datetime

from flows.admin_sync import admin_sync

_real = datetime.datetime
_SHIFTED = ("flows", "tasks", "prefect")


class _Kind(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _real)


def shift_by(seconds: float) -> None:
    """Shift the clock of the modules that are there."""
    shift = datetime.timedelta(seconds=seconds)
    real_time, now_of_prefect = time.time, _datetime.now

    class Shifted(_real, metaclass=_Kind):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return _real.now(tz) + shift

    time.time = lambda: real_time() + seconds

    def now(tz: Any = "UTC") -> Any:
        return now_of_prefect(tz) + shift

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in _SHIFTED:
            continue
        for read, shifted in ((_real, Shifted), (now_of_prefect, now)):
            if vars(module).get(read.__name__) is read:
                setattr(module, read.__name__, shifted)


if __name__ == "__main__":
    shift_by(float(sys.argv[1]))
    with get_client(sync_client=True) as api:
        flow_run = api.read_flow_run(UUID(sys.argv[2]))
    with handle_engine_signals(flow_run.id):
        asyncio.run(run_flow_async(admin_sync, flow_run=flow_run, parameters=flow_run.parameters))
