"""Where the batches of a stage run: threads of this process, or the workers of a Dask cluster."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.settings import Settings, SettingsError

_LOCALHOST: Final = "127.0.0.1"


@contextmanager
def stage_runner(settings: Settings) -> Iterator[TaskRunner[Any]]:
    """Yield the task runner of a run's stages.

    Raises:
        SettingsError: Dask is asked for, and is not installed.
    """
    if settings.task_runner == "threads":
        yield ThreadPoolTaskRunner(max_workers=settings.concurrency)
        return
    try:
        from distributed import LocalCluster
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError:
        raise SettingsError({"ADMIN_TASK_RUNNER": _DASK_IS_MISSING}) from None
    if settings.dask_scheduler is not None:
        yield DaskTaskRunner(address=settings.dask_scheduler)
        return
    workers = min(os.cpu_count() or 1, settings.concurrency)
    with LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=workers,
        threads_per_worker=math.ceil(settings.concurrency / workers),
        host=_LOCALHOST,
        dashboard_address=f"{_LOCALHOST}:0",
    ) as cluster:
        yield DaskTaskRunner(address=cluster.scheduler_address)


_DASK_IS_MISSING: Final = "is dask, but prefect-dask is not installed: install the extra 'dask'"
