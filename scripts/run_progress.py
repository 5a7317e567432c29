"""Shows a run while it goes on: a bar for each stage, how its items stand, what it waits for."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flows.dashboard import progress_in_words
from scripts.run_tables import literal_console
from tasks.mongo_errors import MongoError
from tasks.trail.history import RunHistory
from tasks.trail.runs import RunRecord
from tasks.trail.stages import RunStatus, StageRecord

REFRESH_SECONDS: Final = 0.5
_BAR_WIDTH: Final = 12
_COLUMNS: Final = (
    BarColumn(_BAR_WIDTH),
    TimeElapsedColumn(),
    TextColumn("{task.description}"),
)
console: Final = literal_console()
"""Where the bars are; what is printed there meanwhile appears above them."""


async def show_until_done(
    done: "asyncio.Future[Any]", history: RunHistory, flow_run_id: str, entities: Iterable[str]
) -> None:
    """Show a run until that is done, and once more then.

    Its record tells how it stands: a MongoDB that is away stops nothing.
    """
    with Progress(*_COLUMNS, console=console) as progress:
        bars = _Bars(progress, entities)
        is_done = False
        while not is_done:
            is_done = done.done()
            if run := await asyncio.to_thread(_run_of, history, flow_run_id):
                bars.show(run)
            if not is_done:
                await asyncio.wait({done}, timeout=REFRESH_SECONDS)


class _Bars:
    """The bars of a run's stages, and above them what the run waits for."""

    def __init__(self, progress: Progress, entities: Iterable[str]) -> None:
        self._progress = progress
        self._bars = {name: progress.add_task(name, total=None, start=False) for name in entities}
        self._told: str | None = None

    def show(self, run: RunRecord) -> None:
        if run.status is RunStatus.PENDING and run.message and run.message != self._told:
            self._told = run.message
            self._progress.console.print(run.message)
        for stage in run.stages:
            if stage.started_at and stage.entity_type in self._bars:
                self._advance(stage)

    def _advance(self, stage: StageRecord) -> None:
        bar = self._bars[stage.entity_type]
        self._progress.start_task(bar)
        told = progress_in_words(stage)
        self._progress.update(bar, total=stage.total, completed=stage.done, description=told)
        if stage.finished_at:
            self._progress.stop_task(bar)


def _run_of(history: RunHistory, flow_run_id: str) -> RunRecord | None:
    try:
        return history.run_of(flow_run_id)
    except MongoError:
        return None
