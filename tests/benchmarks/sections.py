"""The sections of the benchmark: which contenders run on which workload, and their goals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from tests.benchmarks.contenders import (
    BARE_LOOP,
    NAIVE_MAPPING,
    NAIVE_WITH_ONE_CLIENT,
    OURS,
    OURS_UNCHANGED,
    Contender,
    Run,
    node_loop,
)
from tests.benchmarks.figures import (
    Figure,
    Mark,
    Panel,
    Section,
    at_least,
    at_most,
    pace,
    peak_rss_mib,
)
from tests.benchmarks.parts import Parts
from tests.benchmarks.testbed import new_testbed
from tests.benchmarks.workload import CONCURRENCY, SEED, Workload, five_types, one_type

_ITEMS_PER_SECOND: Final = "items/s"
_LATENCY_MS: Final = 20
_SEED_RUNS: Final = 10
_MAX_TASK_RUNS: Final = 100
LARGE: Final = 100_000
MILLION: Final = 1_000_000


@dataclass(frozen=True)
class Bench:
    """Runs contenders side by side, `rounds` times each."""

    parts: Parts
    rounds: int
    node_driver: Path
    log: Callable[[str], None]

    def once(self, contender: Contender, workload: Workload) -> Run:
        (run,) = self.in_turn([contender], workload)
        return run

    def alternating(self, *pairs: tuple[Contender, Workload]) -> list[list[Run]]:
        """Run all pairs round by round, so that noise hits all alike; returns the runs by pair."""
        rounds = [[self.once(*pair) for pair in pairs] for _ in range(self.rounds)]
        return [list(runs) for runs in zip(*rounds, strict=True)]

    def in_turn(self, contenders: Sequence[Contender], workload: Workload) -> list[Run]:
        """Run the contenders one after the other on the same testbed."""
        with new_testbed(self.parts, workload) as testbed:
            return [self._logged(contender.run(testbed)) for contender in contenders]

    def _logged(self, run: Run) -> Run:
        self.log(
            f"{run.workload}, {run.contender}: "
            f"{run.usage.seconds:.2f} s, {run.items_per_second:,.0f} items/s"
        )
        return run


def at_once(bench: Bench) -> Section:
    """The hub answers at once: the cost of our own work, against loops that do less."""
    workload = five_types(1_000)
    node = node_loop(bench.node_driver)
    contenders = [BARE_LOOP, OURS, *([node] if node else [])]
    bare, ours, *nodes = bench.alternating(*((contender, workload) for contender in contenders))
    figures = [Figure("ours / bare loop", pace(ours) / pace(bare), "", at_least(0.85))]
    goals = [Mark("0.85 x bare loop", 0.85 * pace(bare))]
    if node:
        ratio = pace(ours) / pace(nodes[0])
        figures.append(Figure("ours / Node loop", ratio, "", at_least(1.1), _node_note(node)))
        goals.append(Mark("1.1 x Node loop", 1.1 * pace(nodes[0])))
    else:
        figures.append(Figure("ours / Node loop", None, note="no node"))
    series = [bare, ours, *nodes]
    return Section("at-once", _all(series), figures, [_paces(workload.name, series, goals)])


def latency(bench: Bench) -> Section:
    """The hub answers in 20 ms: how close we come to the limit that the concurrency sets."""
    workload = five_types(1_000, latency_ms=_LATENCY_MS)
    bare, ours = bench.alternating((BARE_LOOP, workload), (OURS, workload))
    limit = CONCURRENCY / (_LATENCY_MS / 1_000)
    figures = [
        Figure("ours / bare loop", pace(ours) / pace(bare), "", at_least(0.92)),
        Figure("ours / limit", pace(ours) / limit, "", at_least(0.82), f"{limit:,.0f} items/s"),
    ]
    goals = [
        Mark("0.92 x bare loop", 0.92 * pace(bare)),
        Mark("0.82 x limit", 0.82 * limit),
    ]
    series = [bare, ours]
    return Section("latency", _all(series), figures, [_paces(workload.name, series, goals)])


def seed(bench: Bench) -> Section:
    """The seed's five documents: the cost of a run that has next to nothing to send."""
    runs = [bench.once(OURS, SEED) for _ in range(max(_SEED_RUNS, bench.rounds))]
    records = [run.prefect for run in runs if run.prefect]
    seconds = [record.seconds for record in records]
    retries = sum(record.client_retries for record in records)
    figures = [
        Figure("duration, median", median(seconds), "s", at_most(1.5), f"{len(runs)} runs"),
        Figure("duration, max", max(seconds), "s"),
        Figure("retries against the Prefect API", retries, "", at_most(0)),
    ]
    bars = [Mark("median", median(seconds)), Mark("max", max(seconds))]
    return Section("seed", runs, figures, [Panel(SEED.name, "s", bars, [Mark("1.5 s", 1.5)])])


def naive(bench: Bench) -> Section:
    """One mapped task run for each item, as in Prefect's tutorials."""
    few, many = five_types(200), five_types(1_000)
    mapped = [bench.once(NAIVE_MAPPING, few)]
    with_one_client = [bench.once(NAIVE_WITH_ONE_CLIENT, few)]
    ours, ours_of_many = bench.alternating((OURS, few), (OURS, many))
    at_many = f"ours at {many.name}"
    figures = [
        Figure("ours / naive mapping", pace(ours) / pace(mapped), "", at_least(30)),
        Figure(f"{at_many} / naive mapping", pace(ours_of_many) / pace(mapped), "", at_least(30)),
        Figure("ours / naive, one client", pace(ours) / pace(with_one_client)),
        Figure(f"{at_many} / naive, one client", pace(ours_of_many) / pace(with_one_client)),
    ]
    goals = [Mark("30 x naive mapping", 30 * pace(mapped))]
    series = [mapped, with_one_client, ours]
    panel = _paces(few.name, series, goals)
    bars = [*panel.bars, Mark(at_many, pace(ours_of_many))]
    return Section("naive", _all([*series, ours_of_many]), figures, [replace(panel, bars=bars)])


def large(bench: Bench, items: int = LARGE) -> Section:
    """Very many items of one type: time, memory and task runs must not grow with them."""
    small, five, one = one_type(5_000), five_types(1_000), one_type(items)
    of_one_type, of_five_types = bench.alternating((OURS, small), (OURS, five))
    many, unchanged = bench.in_turn([OURS, OURS_UNCHANGED], one)
    runs = [*of_one_type, *of_five_types, many, unchanged]
    growth = peak_rss_mib([many]) / peak_rss_mib(of_one_type)
    task_runs = many.prefect.task_runs_of_largest_stage if many.prefect else None
    figures = [
        _time_per_item(many, of_one_type, small),
        _time_per_item(many, of_five_types, five),
        Figure("peak memory", peak_rss_mib([many]), "MiB"),
        Figure(f"peak memory, against {small.name}", growth, "x", at_most(1.3)),
        Figure("task runs of the stage", task_runs, "", at_most(_MAX_TASK_RUNS)),
        Figure("unchanged items decided", pace([unchanged]), _ITEMS_PER_SECOND, at_least(20_000)),
        Figure("unchanged items decided, peak memory", peak_rss_mib([unchanged]), "MiB"),
    ]
    series = [of_one_type, of_five_types, [many]]
    bars = [Mark(group[0].workload, pace(group)) for group in series]
    least = Mark(f"{small.name} / 1.1", pace(of_one_type) / 1.1)
    panels = [
        Panel("ours, by size", _ITEMS_PER_SECOND, bars, [least]),
        _paces(f"{one.name}, nothing changed", [[unchanged]], [Mark("20,000", 20_000)]),
    ]
    return Section("large", runs, figures, panels)


SECTIONS: Final[dict[str, Callable[[Bench], Section]]] = {
    "at-once": at_once,
    "latency": latency,
    "seed": seed,
    "naive": naive,
    "large": large,
}
"""By the name that `--only` takes, in the order in which they run."""


def _node_note(node: Contender) -> str:
    if node.environment:
        return "with its audit insert"
    return "without its audit insert, which favours Node: npm can't get the MongoDB driver"


def _time_per_item(many: Run, few: Sequence[Run], workload: Workload) -> Figure:
    ratio = pace(few) / many.items_per_second
    return Figure(f"time per item, against {workload.name}", ratio, "x", at_most(1.1))


def _paces(title: str, series: Sequence[Sequence[Run]], goals: Sequence[Mark]) -> Panel:
    bars = [
        Mark(runs[0].contender, pace(runs), is_ours=runs[0].contender.startswith("ours"))
        for runs in series
    ]
    return Panel(title, _ITEMS_PER_SECOND, bars, goals)


def _all(series: Sequence[Sequence[Run]]) -> list[Run]:
    return [run for runs in series for run in runs]
