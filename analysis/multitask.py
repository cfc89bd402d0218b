"""Figure 6: separate agents and one agent for all tasks, on average over the tasks."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import published, style
from analysis.content import Section
from analysis.figures import Figure, Key, Panel, x_limit
from analysis.questions import series_label
from analysis.runs import TASKS, Results
from analysis.scores import note_of, planned_episodes, with_commits

LABELS = {"base": "Separate agents", "multitask": "Single agent"}


def average_over_tasks(evals: pd.DataFrame) -> pd.DataFrame:
    """Return per series and evaluation point the mean and population standard deviation over tasks of all episodes.

    Only points that all six tasks have reached: an average over fewer tasks is another quantity.
    """
    rows = []
    for (series, variant, episode), group in evals.groupby(["series", "variant", "episode"], sort=False, observed=True):
        if set(TASKS) - set(group["task"]):
            continue
        # Each task weighs the same, however many of its seeds have come this far.
        by_task = group.groupby("task")["return"]
        mean = float(by_task.mean().mean())
        std = float(np.sqrt(by_task.apply(lambda returns, m=mean: ((returns - m) ** 2).mean()).mean()))
        rows.append(
            {
                "series": series, "variant": variant, "episode": episode, "mean": mean, "std": std,
                "low": mean - std, "high": mean + std, "tasks": group["task"].nunique(),
                "runs": len(group[["run_task", "seed"]].drop_duplicates()), "episodes": len(group),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values(["series", "episode"], ignore_index=True) if rows else pd.DataFrame()


def multitask_section(results: Results) -> Section | None:
    """Return Figure 6, or None where the multi-task agent or the separate agents have not covered all tasks."""
    evals = results.frame("eval")
    evals = evals[evals["variant"].isin(list(LABELS)) & evals["task"].isin(TASKS)]
    frame = average_over_tasks(evals)
    if frame.empty or "multitask" not in set(frame["variant"]):
        return None
    limit = x_limit(frame, "episode", planned_episodes(results, list(LABELS)))
    draw = functools.partial(average_panel, frame=frame, x_max=limit)
    series = dict(zip(frame["series"], frame["variant"], strict=True))
    keys = [Key(f"ours: {series_label(name)}", style.colour(variant)) for name, variant in series.items()]
    keys.append(Key("thin steps: the paper, same colours (band: mean ± std)", style.PAPER, "thin"))
    caption = (
        "Line: mean over six tasks of the mean over seeds and evaluation episodes; band: mean ± one standard deviation "
        "of the same returns, mostly the difference between tasks. x counts collected episodes of each task; the "
        "single agent has seen six times as many in all. Points that not all six tasks have reached are left out. "
        "Filled point: all runs of this curve are in it; hollow: fewer."
    )
    figure = Figure(
        "fig6", "One agent for all tasks, on average", caption, [Panel("", draw, "Average over six tasks")], frame,
        keys, 1, panel_size=(5.6, 3.0), note=note_of(results),
    )  # fmt: skip
    return Section("fig6", "Figure 6: one agent for all tasks, on average", [with_commits(figure, results, series)])


def average_panel(axes: Axes, *, frame: pd.DataFrame, x_max: float) -> None:
    paper = published.multitask_average()
    for (series, variant), own in frame.groupby(["series", "variant"], sort=False):
        colour, dash = style.colour(str(variant)), style.dashes(str(series), str(variant))
        theirs = paper[paper["label"] == LABELS[str(variant)]].sort_values("bin")
        edges = np.append(theirs["left"].to_numpy(), theirs["right"].iloc[-1])
        axes.step(edges, np.append(theirs["mean"], theirs["mean"].iloc[-1]), where="post", color=colour, linewidth=1)
        axes.fill_between(own["episode"], own["low"], own["high"], color=colour, alpha=0.18, linewidth=0)
        axes.plot(own["episode"], own["mean"], color=colour, linewidth=1.8, dashes=dash or (None, None))
        full = own["runs"] == own["runs"].max()
        axes.plot(own.loc[full, "episode"], own.loc[full, "mean"], "o", color=colour, markersize=2.6)
        axes.plot(
            own.loc[~full, "episode"], own.loc[~full, "mean"], "o", markerfacecolor="white", markeredgecolor=colour,
            markersize=3.2, markeredgewidth=0.9,
        )  # fmt: skip
    axes.set_xlim(0, x_max)
    axes.set_xlabel("collected episodes of each task")
    axes.set_ylabel("mean return")
