"""LiveCounts: each step changes the counts of its stage, and they are written in a second."""

from collections.abc import Mapping

import pytest

from tasks.errors import ItemError
from tasks.trail import live_counts
from tasks.trail.fields import RunAttempt
from tasks.trail.live_counts import LiveCounts, changes_by
from tasks.trail.stages import Stages
from tasks.trail.steps import PriorStep
from tests.trail_documents import (
    PERMANENT,
    RUN,
    SKIPPED,
    STOPPING,
    SUPERSEDED,
    TRANSIENT,
    WOULD_SEND,
    new_step,
)

ATTEMPT = RunAttempt(RUN, 2)


def prior(error: ItemError | None, run_attempt: int = 2) -> PriorStep:
    return PriorStep(error=error, run_attempt=run_attempt)


@pytest.mark.parametrize(
    ("error", "replaced", "changes"),
    [
        (None, None, {"success": 1}),
        (TRANSIENT, None, {"retrying": 1}),
        (PERMANENT, None, {"failed": 1}),
        (STOPPING, None, {"failed": 1}),
        (SKIPPED, None, {"skipped": 1}),
        (SUPERSEDED, None, {"skipped": 1, "superseded": 1}),
        (WOULD_SEND, None, {"skipped": 1, "would_send": 1}),
        (None, prior(TRANSIENT), {"success": 1, "retrying": -1}),
        (TRANSIENT, prior(TRANSIENT), {}),
        (PERMANENT, prior(TRANSIENT), {"failed": 1, "retrying": -1}),
        (WOULD_SEND, prior(WOULD_SEND), {}),
        # What an earlier attempt has not brought in counts for nothing when the next one begins.
        (None, prior(TRANSIENT, run_attempt=1), {"success": 1}),
        (PERMANENT, prior(PERMANENT, run_attempt=1), {"failed": 1}),
        (PERMANENT, prior(None, run_attempt=1), {"failed": 1, "success": -1}),
    ],
)
def test_a_step_changes_the_counts_of_its_stage(
    error: ItemError | None, replaced: PriorStep | None, changes: Mapping[str, int]
) -> None:
    told = changes_by(new_step(RUN, error=error, run_attempt=2), replaced)
    assert {name: change for name, change in told.items() if change} == changes


class Written(Stages):
    """Stages that keep what they are told, and may be away."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, int]]] = []
        self.is_away = False

    def count(self, attempt: RunAttempt, entity_type: str, changes: Mapping[str, int]) -> bool:
        assert attempt == ATTEMPT
        if not self.is_away:
            self.told.append((entity_type, dict(changes)))
        return not self.is_away


class Clock:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live_counts, "time", clock)
    return clock


def test_what_is_added_is_written_once_a_second(clock: Clock) -> None:
    stages = Written()
    live = LiveCounts(stages)
    live.add(ATTEMPT, "tenant", {"success": 1})
    assert stages.told == [("tenant", {"success": 1})]
    for _ in range(3):
        clock.now += 0.3
        live.add(ATTEMPT, "tenant", {"success": 1, "retrying": -1})
    assert len(stages.told) == 1
    clock.now += 0.2
    live.add(ATTEMPT, "client", {"failed": 1})
    assert stages.told[1:] == [
        ("tenant", {"success": 3, "retrying": -3}),
        ("client", {"failed": 1}),
    ]


@pytest.mark.usefixtures("clock")
def test_the_last_of_it_is_written_when_asked_and_once() -> None:
    stages = Written()
    live = LiveCounts(stages)
    live.add(ATTEMPT, "tenant", {"success": 1})
    live.add(ATTEMPT, "tenant", {"success": 2})
    live.write()
    live.write()
    assert stages.told == [("tenant", {"success": 1}), ("tenant", {"success": 2})]


@pytest.mark.usefixtures("clock")
def test_what_can_not_be_written_is_added_to_what_comes_next() -> None:
    stages = Written()
    live = LiveCounts(stages)
    stages.is_away = True
    live.add(ATTEMPT, "tenant", {"success": 1})
    stages.is_away = False
    live.add(ATTEMPT, "tenant", {"success": 2})
    live.write()
    assert stages.told == [("tenant", {"success": 3})]
