"""Counting: a stage is counted when it ends, and a run is the sum of its stages."""

from collections.abc import Collection
from datetime import UTC, datetime

from tasks.trail.fields import RunId
from tasks.trail.runs import Runs
from tasks.trail.stages import RunStatus, StageRecord, StageTotals, Tally
from tasks.trail.step_buffer import StepBuffer
from tasks.trail.steps import Steps


class Counting:
    """Counts stages from their steps, and ends runs with what their stages come to."""

    def __init__(self, runs: Runs, steps: Steps, buffer: StepBuffer) -> None:
        self._runs = runs
        self._steps = steps
        self._buffer = buffer

    def tally(self, run_id: RunId, entity_type: str, left_alone: StageTotals) -> Tally:
        """Count a stage: its steps, and the items that it left alone."""
        self._buffer.flush()
        return self._steps.tally(run_id, entity_type) + Tally(left_alone)

    def tally_besides(self, run_id: RunId, entity_types: Collection[str]) -> Tally:
        """Count the stages of a run but these: those that only earlier attempts were asked for."""
        run = self._runs.find(run_id)
        tallies = (
            self._steps.tally(run_id, stage.entity_type) + Tally(stage.left_alone)
            for stage in (run.stages if run else ())
            if stage.entity_type not in entity_types and stage.started_at is not None
        )
        return sum(tallies, Tally())

    def end_run(
        self,
        run_id: RunId,
        status: RunStatus,
        message: str,
        at: datetime | None,
        attempt: int | None = None,
        state_name: str | None = None,
    ) -> None:
        """Note how a run ended, unless that is older news.

        Stages that it left open are counted, and end with it. Where batches run on other machines,
        they may go on a little: so those stages are counted again.

        Args:
            run_id: the run.
            status: how it ended.
            message: why, in words.
            at: when Prefect has noted this end, by its clock; None where it has not.
            attempt: number of the attempt that ended so; None for whichever is the last.
            state_name: Prefect's name of the end; None where it says no more than the status.
        """
        self._buffer.flush()
        run = self._runs.find(run_id)
        if run is None or attempt not in (None, run.attempt) or _is_older(at, run.mirrored_at):
            return
        self._steps.fail_awaiting(run_id)
        ended_at = at or datetime.now(UTC)
        stages = [
            self._counted(run_id, stage).ended(status, ended_at) if stage.is_open else stage
            for stage in run.stages
        ]
        errors = self._steps.first_errors(run_id)
        if self._runs.end(run, status, message, at, stages, errors, state_name):
            for stage in run.stages:
                if stage.is_open:
                    self.recount(run_id, stage.entity_type)

    def recount(self, run_id: RunId, entity_type: str) -> None:
        """Count a stage anew if its run has ended: another process may have recorded steps since.

        Several processes may do so at once: each looks again after it has written.
        """
        while (run := self._runs.find(run_id)) and run.status.is_terminal:
            stages = [
                self._counted(run_id, stage) if stage.entity_type == entity_type else stage
                for stage in run.stages
            ]
            if not self._runs.correct(run, stages, self._steps.first_errors(run_id)):
                return

    def _counted(self, run_id: RunId, stage: StageRecord) -> StageRecord:
        tally = self._steps.tally(run_id, stage.entity_type) + Tally(stage.left_alone)
        return stage.model_copy(update=tally.totals.model_dump())


def _is_older(at: datetime | None, known: datetime | None) -> bool:
    return at is not None and known is not None and at < known
