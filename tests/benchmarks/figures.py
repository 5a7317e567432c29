"""The results of the runs: figures with their goals, and the bars and lines of the plot."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from tests.benchmarks.contenders import Run


class Comparison(StrEnum):
    """The side of its goal on which a figure should be."""

    AT_LEAST = ">="
    AT_MOST = "<="


@dataclass(frozen=True)
class Goal:
    """The bound that a figure should keep."""

    comparison: Comparison
    bound: float

    def is_met_by(self, value: float) -> bool:
        if self.comparison is Comparison.AT_LEAST:
            return value >= self.bound
        return value <= self.bound


def at_least(bound: float) -> Goal:
    return Goal(Comparison.AT_LEAST, bound)


def at_most(bound: float) -> Goal:
    return Goal(Comparison.AT_MOST, bound)


@dataclass(frozen=True)
class Figure:
    """One result; without a value it was skipped, and the note says why."""

    name: str
    value: float | None
    unit: str = ""
    goal: Goal | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None where there is nothing to compare."""
        if self.value is None or self.goal is None:
            return None
        return self.goal.is_met_by(self.value)


@dataclass(frozen=True)
class Mark:
    """A named value on a panel's axis: a bar, or the line of a goal."""

    label: str
    value: float
    is_ours: bool = True


@dataclass(frozen=True)
class Panel:
    """One set of bars on one axis of the plot, and the goals among them."""

    title: str
    unit: str
    bars: Sequence[Mark]
    goals: Sequence[Mark] = ()


@dataclass(frozen=True)
class Section:
    """The results of one section of the benchmark."""

    name: str
    runs: Sequence[Run]
    figures: Sequence[Figure]
    panels: Sequence[Panel]


def pace(runs: Iterable[Run]) -> float:
    """Return the median of the runs' items per second."""
    return median(run.items_per_second for run in runs)


def peak_rss_mib(runs: Iterable[Run]) -> float:
    """Return the median of the runs' peak memory."""
    return median(run.usage.peak_rss_bytes for run in runs) / 2**20


def legible(value: float) -> str:
    """Return a number with its significant digits."""
    return f"{value:,.0f}" if isinstance(value, int) or value >= 100 else f"{value:.3g}"
