"""Frames -> figures. A figure is a list of panels, each drawn by one function on one axes; nothing is read or written.

The same panels make the combined picture (PNG, SVG, PDF) and, one by one, the page, where they flow to any width.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import published, style
from analysis.curves import X_AXES
from analysis.questions import series_label, task_label
from analysis.runs import TASKS

Draw = Callable[[Axes], None]


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    draw: Draw
    label: str = ""
    """For readers of the page who cannot see it."""


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend."""

    label: str
    colour: str
    kind: str = "line"
    """line, thin, dashed, dotted, step, band, bar, marker, upright or diamond"""


@dataclass(slots=True)
class Figure:
    name: str
    """File stem and anchor."""
    title: str
    caption: str
    """How to read it; HTML."""
    panels: list[Panel]
    data: pd.DataFrame
    """What it was drawn from; goes into the CSV beside it."""
    keys: list[Key] = field(default_factory=list)
    columns: int = 3
    panel_size: tuple[float, float] = (3.3, 2.35)
    """Inches."""
    left: float = 0.48
    """Inches left of the axes, for their labels."""
    note: str = ""
    """A warning that must stand in the picture itself (the smoke preset cannot learn)."""
    commits: list[str] = field(default_factory=list)


LABEL_WIDTH = 18
"""Characters of a row's label on one line."""


def row_labels(names: Sequence[str]) -> list[str]:
    """Return the labels of a chart's rows, long ones on two lines or more."""
    return [textwrap.fill(name, LABEL_WIDTH, break_long_words=False) for name in names]


def row_space(labels: Sequence[str]) -> tuple[float, float]:
    """Return the inches such labels need left of a chart, and the height of the chart."""
    lines = [line for label in labels for line in label.splitlines()]
    return 0.2 + 0.066 * max(map(len, lines), default=0), 0.7 + 0.19 * len(labels) + 0.09 * len(lines)


# -------------------------------------------------------------------------------------------- learning curves


def curve_panel(
    axes: Axes,
    *,
    ours: pd.DataFrame,
    paper: pd.DataFrame,
    lines: pd.DataFrame,
    x: str,
    x_max: float,
    paper_band: bool,
    y_label: bool,
) -> None:
    """Draw one task: the paper's curves as steps over their bins, the model-free scores, and ours on top.

    `ours` is rows of `learning_curves` of one task; `paper` rows of `published.curves` with columns colour and scale,
    which turns episodes into the unit of x.
    """
    for (_, colour, scale), curve in paper.groupby(["label", "colour", "scale"], sort=False):
        curve = curve.sort_values("bin")
        edges = np.append(curve["left"].to_numpy(), curve["right"].iloc[-1])
        edges = (edges - (published.FIRST_EPISODE if x == "updates" else 0)) * scale  # none for seed episodes
        steps = {name: np.append(curve[name].to_numpy(), curve[name].iloc[-1]) for name in ("median", "p5", "p95")}
        if paper_band:
            axes.fill_between(edges, steps["p5"], steps["p95"], step="post", color=colour, alpha=0.2, linewidth=0)
        axes.step(edges, steps["median"], where="post", color=colour, linewidth=1.0, alpha=1 if paper_band else 0.75)
    for baseline, height in zip(lines["baseline"], lines["return"], strict=True):
        dash = (4, 2) if baseline == "D4PG" else (1, 1.5)
        axes.axhline(height, color=style.MUTED, linewidth=0.9, dashes=dash, zorder=1.5)
    for (series, variant), curve in ours.groupby(["series", "variant"], sort=False, observed=True):
        colour, dash = style.colour(str(variant)), style.dashes(str(series), str(variant))
        curve = curve.sort_values(x)
        many = len(curve) > 1
        if many:
            axes.fill_between(curve[x], curve["p5"], curve["p95"], color=colour, alpha=0.22, linewidth=0, zorder=2.5)
        else:
            axes.vlines(curve[x], curve["p5"], curve["p95"], color=colour, linewidth=5, alpha=0.3, zorder=2.5)
        axes.plot(curve[x], curve["median"], color=colour, linewidth=1.8, dashes=dash or (None, None), zorder=3)
        full = curve["seeds"] == curve["seeds"].max()
        axes.plot(
            curve.loc[full, x],
            curve.loc[full, "median"],
            "o",
            color=colour,
            markersize=2.6 if many else 4.5,
            zorder=3.1,
        )
        axes.plot(
            curve.loc[~full, x], curve.loc[~full, "median"], "o", markerfacecolor="white", markeredgecolor=colour,
            markersize=3.2, markeredgewidth=0.9, zorder=3.1,
        )  # fmt: skip
    axes.set_xlim(0, x_max)
    axes.set_ylim(-15, 1015)
    axes.set_yticks([0, 250, 500, 750, 1000])
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(X_AXES[x])
    if y_label:
        axes.set_ylabel("return")


PAPER_SCALE: dict[str, float | None] = {
    "episode": 1.0,
    "env_steps": 1000.0,
    "updates": float(published.UPDATES_PER_EPISODE),
    "hours": None,
}
"""Units of x in an episode of the paper's agents; None: the paper has no such axis."""
SINGLE_AGENT = "Single agent"
"""The paper's label of its agent for all tasks, whose steps and updates are those of all six."""


def paper_scale(label: str, x: str) -> float | None:
    """Return the units of x in an episode of one of the paper's curves; None where it has no such axis."""
    scale = PAPER_SCALE[x]
    return scale * len(TASKS) if scale and label == SINGLE_AGENT and x != "episode" else scale


def x_limit(ours: pd.DataFrame, x: str, planned: float, agents: float = 1.0) -> float:
    """Return where the x axis ends: at what is planned or reached; all of the paper for presets shorter than its
    bins. agents: how many times an agent's steps the longest curve counts."""
    scale = PAPER_SCALE[x]
    if scale is None:
        return max(float(ours["hours"].max()) * 1.04, 1e-3) if len(ours) else 1.0
    end = planned if planned > 2 * published.BIN_WIDTH else published.LAST_EDGE
    if planned >= published.FIRST_EPISODE + published.EPISODES:
        end = published.LAST_EDGE
    return max(end * scale * agents, float(ours[x].max()) if len(ours) else 0.0) * 1.01


def learning_curve_figure(
    name: str,
    title: str,
    caption: str,
    *,
    ours: pd.DataFrame,
    figure: published.PaperFigure,
    tasks: Sequence[str],
    x: str = "episode",
    planned: float,
    columns: int = 3,
    paper_band: bool = True,
    note: str = "",
    limit: float | None = None,
) -> Figure:
    """Return one panel per task with our series and the curves of the paper's figure that correspond to them.

    The x axis ends at `limit`, or where `x_limit` says.
    """
    labels = {figure.curves[v]: v for v in reversed(list(dict.fromkeys(ours["variant"]))) if v in figure.curves}
    labels = labels or {figure.curves["base"]: "base"}
    paper = published.curves(figure.name)
    paper = paper[paper["label"].isin(labels)]
    paper = paper.assign(
        colour=[style.PAPER if paper_band else style.colour(labels[label]) for label in paper["label"]],
        scale=[paper_scale(label, x) for label in paper["label"]],
    )
    paper = paper[paper["scale"].notna()]
    limit = limit or x_limit(ours, x, planned, paper["scale"].max() / PAPER_SCALE[x] if len(paper) else 1.0)
    panels = []
    for i, task in enumerate(tasks):
        own = ours[ours["task"] == task]
        draw = functools.partial(
            curve_panel,
            ours=own,
            paper=paper[paper["task"] == task],
            lines=published.lines()[published.lines()["task"] == task],
            x=x,
            x_max=limit,
            paper_band=paper_band,
            y_label=i % columns == 0,
        )
        last = own.loc[own.groupby("series", sort=False)[x].idxmax()] if len(own) else own
        said = "; ".join(
            f"{series_label(str(r.series))}: median {r.median:.0f} at {r.episode} episodes" for r in last.itertuples()
        )
        panels.append(Panel(task_label(task), draw, f"Learning curve, {task_label(task)}. {said or 'No data yet.'}"))
    keys = [
        Key(series_label(series), style.colour(variant), "dashed" if style.dashes(series, variant) else "line")
        for series, variant in dict.fromkeys(zip(ours["series"], ours["variant"], strict=True))
    ]
    if len(paper) and paper_band:
        keys.append(Key(f"paper, {' and '.join(labels)}: median and 5–95 % of episodes", style.PAPER, "step"))
    elif len(paper):
        keys.append(Key("thin steps: the paper's medians, same colours", style.PAPER, "thin"))
    keys += [
        Key("D4PG, pixels, 100,000 episodes", style.MUTED, "dashed"),
        Key("A3C, states, 100,000 episodes", style.MUTED, "dotted"),
    ]
    return Figure(name, title, caption, panels, ours, keys, columns, note=note)


def is_paper_task(task: str) -> bool:
    return task in TASKS
