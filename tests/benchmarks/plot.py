"""Draws the sections' bars and goal lines in one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tests.benchmarks.figures import Panel, Section, legible

mpl.use("Agg")

_WIDTH_INCHES: Final = 9.0
_INCHES_PER_BAR: Final = 0.42
_INCHES_PER_PANEL: Final = 1.1
_OURS: Final = "#1f6feb"
_OTHERS: Final = "#b6bec9"
_GOALS: Final = ("#d1242f", "#9a6700")
_ABOVE_GOAL_LINES: Final = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
_ROOM_FOR_LABELS: Final = 1.18


def write_plot(sections: Sequence[Section], path: Path) -> None:
    """Write a PNG with one panel for each set of bars."""
    panels = [panel for section in sections for panel in section.panels]
    heights = [_INCHES_PER_PANEL + _INCHES_PER_BAR * len(panel.bars) for panel in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        figsize=(_WIDTH_INCHES, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout=ConstrainedLayoutEngine(hspace=0.05),
    )
    for panel, (ax,) in zip(panels, axes, strict=True):
        _draw(panel, ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw(panel: Panel, ax: Axes) -> None:
    labels = [bar.label for bar in panel.bars]
    values = [bar.value for bar in panel.bars]
    colours = [_OURS if bar.is_ours else _OTHERS for bar in panel.bars]
    bars = ax.barh(labels, values, height=0.62, color=colours)
    ax.bar_label(bars, [legible(value) for value in values], padding=5, bbox=_ABOVE_GOAL_LINES)
    for goal, colour in zip(panel.goals, _GOALS, strict=False):
        ax.axvline(goal.value, color=colour, linestyle="--", linewidth=1.4, label=goal.label)
    ax.set_xlim(0, _ROOM_FOR_LABELS * max(mark.value for mark in (*panel.bars, *panel.goals)))
    ax.invert_yaxis()
    ax.set_title(f"{panel.title} ({panel.unit})", loc="left", fontsize=11, fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter("{x:,g}")
    if panel.goals:
        ax.legend(title="goals", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
