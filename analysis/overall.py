"""Statistics over all tasks: aggregates with intervals, performance profiles, comparisons, area and speed of learning.

The unit is a run (one seed on one task): the mean return of its last evaluation over 1,000 (what an episode can earn).
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import aggregate, published, style
from analysis.ablation_tables import unlike
from analysis.aggregate import Interval
from analysis.content import Block, Section, Table, Text
from analysis.curves import final_scores
from analysis.figures import Figure, Key, Panel, row_labels, row_space
from analysis.questions import series_label, task_label
from analysis.runs import Results, sort_tasks
from analysis.scores import note_of, with_commits

STATISTICS: dict[str, aggregate.Statistic] = {
    "IQM": aggregate.iqm,
    "mean": aggregate.mean,
    "median": aggregate.median,
    "optimality gap": aggregate.optimality_gap,
}
MEANING = {
    "IQM": "mean of the middle half of all runs, tasks weighing the same",
    "mean": "mean over tasks",
    "median": "median over tasks of the mean over seeds",
    "optimality gap": "mean shortfall from 1,000; lower is better",
}
THRESHOLDS = np.linspace(0, 1, 101)
METHOD = (
    f"Intervals: {aggregate.LEVEL:.0%} percentile bootstrap, stratified by task, seeds resampled within each task. The "
    "independent units are the runs: 5 seeds × 10 evaluation episodes are 5 units, not 50; a run of several tasks is "
    "one unit, its scores on all of them are drawn together. Scores are final returns divided by "
    f"what an episode can earn (1,000). {aggregate.COVERAGE}"
)


@dataclass(frozen=True, slots=True)
class Stratum:
    """The finished runs of a series on one task."""

    scores: np.ndarray
    """Normalised final scores, one per run."""
    runs: tuple[tuple[str, str, int], ...]
    """(series, task of the run, seed). Runs of several tasks are in the strata of all of them, in the same order."""


Strata = dict[str, dict[str, Stratum]]
"""series -> task -> its finished runs."""


def overall_section(results: Results) -> Section | None:
    """Return the statistics over tasks, or None where no run has finished."""
    evals = results.frame("eval")
    evals = evals[evals["dynamics"] == "latent"]
    strata, apart = comparable_with_base(finished(evals), results)
    if not strata:
        return None
    variant_of = dict(zip(evals["series"], evals["variant"], strict=True))
    variants = {series: variant_of[series] for series in strata}
    blocks: list[Block] = [Text(METHOD, "method")]
    intervals = aggregates(strata)
    blocks += [aggregate_figure(intervals, variants, results), aggregate_table(intervals, apart)]
    blocks.append(profile_figure(strata, variants, results))
    if table := improvement_table(strata, apart):
        blocks.append(table)
    blocks.append(learning_speed_table(evals, results))
    return Section("overall", "Over all tasks", blocks)


def finished(evals: pd.DataFrame) -> Strata:
    """Return the final scores of the runs that have one on all of their tasks."""
    of_runs = [final_scores(own).assign(run_task=name) for name, own in evals.groupby("run_task", sort=False)]
    of_runs = [frame for frame in of_runs if len(frame)]
    if not of_runs:
        return {}
    scores = pd.concat(of_runs, ignore_index=True)
    tasks = evals.groupby(["series", "run_task", "seed"], observed=True)["task"].nunique()
    strata: Strata = {}
    for series in dict.fromkeys(evals["series"]):
        own = scores[scores["series"] == series]
        if own.empty:
            continue
        whole = own.groupby(["run_task", "seed"])["task"].transform("nunique")
        own = own[[n == tasks[series, t, k] for n, t, k in zip(whole, own["run_task"], own["seed"], strict=True)]]
        for task in sort_tasks(own["task"]):
            rows = own[own["task"] == task]
            strata.setdefault(series, {})[task] = Stratum(
                (rows["score"] / rows["max_return"]).to_numpy(float),
                tuple((series, str(t), int(k)) for t, k in zip(rows["run_task"], rows["seed"], strict=True)),
            )
    return strata


def comparable_with_base(strata: Strata, results: Results) -> tuple[Strata, str]:
    """Return the strata without those whose runs differ from PlaNet's on that task in more than their variant is meant
    to change, and a sentence that names these ("" where there are none)."""
    run_of = {(run.series, task): run for run in reversed(results.runs) for task in run.tasks}
    kept: Strata = {}
    apart: dict[tuple[str, str], list[str]] = {}
    for series, by_task in strata.items():
        for task, stratum in by_task.items():
            different = unlike(run_of[series, task], run_of["base", task]) if ("base", task) in run_of else []
            if different and series != "base":
                apart.setdefault((series, ", ".join(different)), []).append(task_label(task))
            else:
                kept.setdefault(series, {})[task] = stratum
    said = "; ".join(
        f"{series_label(series)} on {', '.join(tasks)} ({what})" for (series, what), tasks in apart.items()
    )
    return kept, f"Left out, made otherwise than PlaNet's runs on the task: {said}." if said else ""


def scores_of(by_task: Mapping[str, Stratum], tasks: Sequence[str]) -> list[np.ndarray]:
    return [by_task[task].scores for task in tasks]


def runs_of(by_task: Mapping[str, Stratum], tasks: Sequence[str]) -> list[tuple[tuple[str, str, int], ...]]:
    return [by_task[task].runs for task in tasks]


def count_runs(by_task: Mapping[str, Stratum], tasks: Sequence[str]) -> int:
    return len({run for task in tasks for run in by_task[task].runs})


def aggregates(strata: Strata) -> pd.DataFrame:
    """Return one row per series and statistic: value, low, high, tasks and runs that went in."""
    rows = []
    for series, by_task in strata.items():
        tasks = list(by_task)
        scores, runs = scores_of(by_task, tasks), runs_of(by_task, tasks)
        for name, statistic in STATISTICS.items():
            interval = aggregate.bootstrap(scores, statistic, np.random.default_rng(0), runs=runs)
            rows.append(
                {
                    "series": series, "statistic": name, "value": interval.value, "low": interval.low,
                    "high": interval.high, "tasks": len(by_task), "runs": count_runs(by_task, tasks),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def aggregate_figure(intervals: pd.DataFrame, variants: Mapping[str, str], results: Results) -> Figure:
    panels = []
    for name in STATISTICS:
        own = intervals[intervals["statistic"] == name]
        said = "; ".join(f"{series_label(r['series'])} {r['value']:.3f}" for r in own.to_dict("records"))
        draw = functools.partial(interval_panel, own=own, variants=variants)
        panels.append(Panel(f"{name[0].upper()}{name[1:]}", draw, f"{name}: {said}"))
    caption = (
        "Point: our finished runs. Bar: 95 % interval. "
        + "; ".join(f"<em>{name}</em>: {meaning}" for name, meaning in MEANING.items())
        + ". Compare variants only where they cover the same tasks (see the table)."
    )
    left, height = row_space(row_labels([series_label(series) for series in variants]))
    figure = Figure(
        "aggregates", "Final scores over all tasks", caption, panels, intervals, columns=2,
        panel_size=(max(left + 2.3, 3.6), height), note=note_of(results), left=left,
    )  # fmt: skip
    return with_commits(figure, results, variants)


def interval_panel(axes: Axes, *, own: pd.DataFrame, variants: Mapping[str, str]) -> None:
    rows = own.to_dict("records")
    for place, row in enumerate(reversed(rows)):
        colour = style.colour(variants[row["series"]])
        if np.isfinite(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=6, alpha=0.35)
        axes.plot([row["value"]], [place], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), row_labels([series_label(row["series"]) for row in reversed(rows)]))
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("score (return / 1,000)")


def aggregate_table(intervals: pd.DataFrame, apart: str = "") -> Table:
    rows = []
    for series in dict.fromkeys(intervals["series"]):
        own = intervals[intervals["series"] == series].set_index("statistic")
        shown = {"agent": series_label(series)}
        for name in STATISTICS:
            row = own.loc[name]
            shown[name] = interval_text(Interval(row["value"], row["low"], row["high"]))
        rows.append({**shown, "tasks": str(own["tasks"].iloc[0]), "runs": str(own["runs"].iloc[0])})
    caption = "Value [95 % interval]; tasks and finished runs that went in. An interval needs two seeds of each task."
    caption = f"{caption} {apart}".strip()
    return Table("aggregates", "Final scores over all tasks", caption, intervals, pd.DataFrame(rows), ("agent",))


def interval_text(interval: Interval) -> str:
    if not interval.known:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


# ---------------------------------------------------------------------------------------------------- profiles


def profile_figure(strata: Strata, variants: Mapping[str, str], results: Results) -> Figure:
    rows, panels = [], []
    together = same_tasks(strata)
    for tasks, members in together.items():
        drawn = []
        for series in members:
            by_task = strata[series]
            value, low, high = aggregate.performance_profile(
                scores_of(by_task, tasks), THRESHOLDS, np.random.default_rng(0), runs=runs_of(by_task, tasks)
            )
            for i, threshold in enumerate(THRESHOLDS):
                drawn.append(
                    {
                        "series": series, "tasks": " ".join(tasks), "score": threshold, "share": value[i],
                        "low": low[i], "high": high[i],
                    }
                )  # fmt: skip
        rows += drawn
        on = ", ".join(map(task_label, tasks)) if len(tasks) < 3 else f"{len(tasks)} tasks"
        for group in told_apart({series: variants[series] for series in members}):
            draw = functools.partial(profile_panel, frame=pd.DataFrame(drawn), variants=group)
            names = ", ".join(series_label(series) for series in group if series != "base" or len(group) == 1)
            title = f"{names} ({on})" if len(together) > 1 else names if len(group) < len(variants) else ""
            panels.append(Panel(textwrap.fill(title, 44), draw, f"Performance profiles on {on}: {names}"))
    caption = (
        "How to read it: at a score on the x axis, the height is the share of runs that end above it (tasks weigh the "
        "same). A curve further right and higher is better; a steep fall means that runs agree. Band: pointwise 95 % "
        "bootstrap interval."
        + (" Every panel has PlaNet beside a few variants."
           if len(panels) > len(together) == 1 and "base" in variants else "")
        + (" All of a panel's curves are of the tasks in its title, which its variants share with PlaNet."
           if len(together) > 1 and "base" in variants else "")
    )  # fmt: skip
    keys = [Key(series_label(series), style.colour(variant)) for series, variant in variants.items()]
    figure = Figure(
        "performance-profiles", "Performance profiles", caption, panels, pd.DataFrame(rows), keys,
        min(2, len(panels)), panel_size=(4.4, 2.6), note=note_of(results),
    )  # fmt: skip
    return with_commits(figure, results, variants)


def same_tasks(strata: Strata) -> dict[tuple[str, ...], list[str]]:
    """Return tasks -> the series that are drawn together on just these: PlaNet on all of its own, variants beside it on
    those that they share with it, and a series that shares none on its own."""
    base = strata.get("base", {})
    groups = {tuple(base): ["base"]} if base else {}
    for series, by_task in strata.items():
        shared = tuple(task for task in by_task if task in base)
        if series != "base":
            groups.setdefault(shared or tuple(by_task), ["base"] if shared else []).append(series)
    return groups


def told_apart(variants: Mapping[str, str], most: int = 3) -> list[dict[str, str]]:
    """Split series -> variant so that no panel draws two lines of one colour and pattern, PlaNet in each of them.

    One group where all can be told apart, else `most` variants besides PlaNet in each.
    """

    def look(series: str) -> tuple[object, ...]:
        return style.colour(variants[series]), style.dashes(series, variants[series])

    base = {series: variant for series, variant in variants.items() if series == "base"}
    others = [series for series in variants if series not in base]
    if len({look(series) for series in variants}) == len(variants):
        return [dict(variants)]
    groups: list[dict[str, str]] = []
    for series in others:
        taken = [{look(s) for s in (*base, *group)} for group in groups]
        free = (g for g, looks in zip(groups, taken, strict=True) if len(g) < most and look(series) not in looks)
        group = next(free, None)
        if group is None:
            groups.append(group := {})
        group[series] = variants[series]
    return [{**base, **group} for group in groups]


def profile_panel(axes: Axes, *, frame: pd.DataFrame, variants: Mapping[str, str]) -> None:
    for series, variant in variants.items():
        own = frame[frame["series"] == series]
        colour, dash = style.colour(variant), style.dashes(series, variant)
        axes.fill_between(own["score"], own["low"], own["high"], color=colour, alpha=0.15, linewidth=0, step="post")
        axes.step(own["score"], own["share"], where="post", color=colour, linewidth=1.7, dashes=dash or (None, None))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("final score τ (return / 1,000)")
    axes.set_ylabel("share of runs above τ")


# ------------------------------------------------------------------------------------------------- comparisons


def improvement_table(strata: Strata, apart: str = "") -> Table | None:
    """Return the probability that a run of PlaNet beats one of each variant, on the tasks both have.

    apart: what `comparable_with_base` says.
    """
    if "base" not in strata or len(strata) < 2:
        return None
    rows, data = [], []
    for series, by_task in strata.items():
        base = strata["base"]
        tasks = [task for task in by_task if task in base]
        if series == "base" or not tasks:
            continue
        interval = aggregate.improvement(
            scores_of(base, tasks), scores_of(by_task, tasks), np.random.default_rng(0),
            runs=(runs_of(base, tasks), runs_of(by_task, tasks)),
        )  # fmt: skip
        ours, theirs = count_runs(base, tasks), count_runs(by_task, tasks)
        shown = interval_text(interval).replace(" [", "  [")
        rows.append(
            {
                "PlaNet against": series_label(series),
                "P(PlaNet is better)": shown,
                "tasks": str(len(tasks)),
                "runs": f"{ours} and {theirs}",
            }
        )
        data.append(
            {
                "series": series, "probability": interval.value, "low": interval.low, "high": interval.high,
                "tasks": len(tasks), "runs_base": ours, "runs_series": theirs,
            }
        )  # fmt: skip
    if not rows:
        return None
    caption = (
        "Chance that a random run of PlaNet ends above a random one of the other on the same task (Mann–Whitney U / "
        "nm; ties count half), averaged over the tasks both have, with its interval where both have two seeds of each "
        "task: the 95 % bootstrap, and beyond it, for tasks where all runs of one side are above all of the other, as "
        "far as the truth could be with a chance of 2.5 % of showing this. Of normal scores it holds the truth in at "
        "least nine cases of ten, however few the seeds. 0.5 means no difference."
    )
    caption = f"{caption} {apart}".strip()
    return Table(
        "probability-of-improvement", "Probability of improvement", caption, pd.DataFrame(data), pd.DataFrame(rows),
        ("PlaNet against",),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------- speed of learning


def levels(task: str) -> dict[str, float]:
    """Return the returns whose first reaching is timed: A3C's and D4PG's lines, and 90 % of the paper's PlaNet.

    Means, as what is timed; so the last is of Table 1, not of the curves' medians.
    """
    lines = published.lines()
    own = lines[lines["task"] == task].set_index("baseline")["return"]
    table = published.table1().set_index("method")
    if task not in table.columns:
        return {}
    paper = float(table.loc["PlaNet", task])
    return {"A3C": float(own["A3C"]), "90 % of PlaNet's": 0.9 * paper, "D4PG": float(own["D4PG"])}


def learning_speed(evals: pd.DataFrame) -> pd.DataFrame:
    """Return per series and task: the area under the learning curve, and when each level is first reached.

    A run's curve is the mean return of each of its evaluations; area and episodes are given as the median over runs,
    episodes over those that reached the level, with their count.
    """
    rows = []
    for (series, variant, task), group in evals.groupby(["series", "variant", "task"], sort=False, observed=True):
        curves = [own.groupby("episode")["return"].mean().sort_index() for _, own in group.groupby("seed")]
        # Areas compare over one range only: to the end, or, where nobody is there yet, as far as all have come.
        finished = [curve for curve in curves if curve.index[-1] == group["last_point"].iloc[0]]
        until = min(curve.index[-1] for curve in finished or curves)
        measured = [curve[curve.index <= until] for curve in finished or curves]
        areas = [aggregate.area_under_curve(c.index.to_numpy(float), c.to_numpy(float)) for c in measured]
        row = {
            "series": series, "variant": variant, "task": task, "seeds": len(curves),
            "until": int(until), "area_seeds": len(areas), "area": float(np.median(areas)),
            "area_low": float(np.min(areas)), "area_high": float(np.max(areas)),
        }  # fmt: skip
        for name, level in levels(str(task)).items():
            times = [aggregate.first_reaching(c.index.to_numpy(float), c.to_numpy(float), level) for c in curves]
            reached = [time for time in times if time is not None]
            row |= {
                f"{name}: level": level,
                f"{name}: seeds": len(reached),
                f"{name}: episodes": float(np.median(reached)) if reached else None,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def learning_speed_table(evals: pd.DataFrame, results: Results) -> Table:
    frame = learning_speed(evals)
    comparable = bool(np.all(evals["max_return"] == published.MAX_RETURN))
    names = list(levels("cheetah_run")) if comparable else []
    figure = levels("reacher_easy")["A3C"]
    printed = published.table1().set_index("method").loc["A3C", "reacher_easy"]
    shown = []
    for row in frame.to_dict("records"):
        cells = {
            "agent": series_label(row["series"]),
            "task": task_label(row["task"]),
            "area": f"{row['area']:.0f}"
            + (f" [{row['area_low']:.0f}, {row['area_high']:.0f}]" if row["area_seeds"] > 1 else "")
            + f" ({row['area_seeds']})",
            "until": str(row["until"]),
        }
        for name in names:
            reached = row.get(f"{name}: seeds")
            if reached is None or np.isnan(reached):
                cells[name] = "–"
            else:
                when = f"{row[f'{name}: episodes']:.0f}" if reached else "–"
                cells[name] = f"{when} ({int(reached)}/{row['seeds']})"
        shown.append(cells)
    caption = (
        "Area: mean height of a run's learning curve (trapezoids over episodes up to <em>until</em>), median [lowest, "
        "highest] of the finished runs (their number); where none has finished, of all runs as far as all have come. "
        "Then the first evaluation at which a run's mean return is at least A3C's, 90 % of PlaNet's in the paper's "
        "Table 1, and D4PG's, in episodes: median over the seeds that reached it (–: none), and how many did. "
        f"A3C's and D4PG's levels are the lines of the paper's figures: for A3C on reacher easy {figure:g}, where its "
        f"Table 1 has {printed:g}."
    )
    return Table(
        "learning-speed", "Area and episodes to threshold", caption, frame, pd.DataFrame(shown), ("agent", "task"),
        group="agent",
    )  # fmt: skip
