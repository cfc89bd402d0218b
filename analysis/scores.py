"""Learning curves against the paper's, and Table 1."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from analysis import published
from analysis.content import Block, Section, Table, Tabs, Text
from analysis.curves import (
    TOLD_APART,
    X_AXES,
    against_paper,
    beside_random,
    final_scores,
    learning_curves,
    verdict_counts,
)
from analysis.figures import Figure, learning_curve_figure
from analysis.questions import series_label, split, task_label
from analysis.runs import TASKS, Results, Run, sort_tasks, variant_of

SWEPT = {"planner.elite_fraction", "planner.elites", "planner.horizon", "planner.iterations", "planner.candidates"}
"""Settings of the planner that Figure 12 varies."""
STEPS = "Grey steps: the paper's median and 5–95 % band over the 52.6-episode bins that its evaluations were pooled in."
HOURS = "A point stands at the median time of its seeds. The paper has no curve over time, only its levels."


def band_of(curves: pd.DataFrame) -> str:
    """Return how to read our curves, with how many seeds and episodes their points have."""
    counts = f" (at a point: seeds {_span(curves['seeds'])}, episodes {_span(curves['episodes'])})"
    return (
        "Line: median over all evaluation episodes of all seeds at that point. Band: 5th to 95th percentile of the "
        f"same episodes{counts if len(curves) else ''}, the paper's own measure: a range of episodes, not a confidence "
        "interval. Filled point: all seeds of this curve are in it; hollow: fewer."
    )


def _span(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low}–{high}"


def planned_episodes(results: Results, variants: Sequence[str]) -> int:
    """Return the longest schedule among the variants' runs, in collected episodes."""
    totals = [r.episodes_total for r in results.runs if r.variant in variants and r.dynamics == "latent"]
    return max(totals, default=published.FIRST_EPISODE + published.EPISODES)


def note_of(results: Results) -> str:
    """Return the warning that every figure of a preset carries."""
    if results.runs and results.runs[0].preset == "smoke":
        return "smoke preset: proves the path, cannot learn; episodes of 80 environment steps, so returns stay below 80"
    return ""


def warning_of(results: Results) -> str:
    """Return what must be known before the numbers of a preset are compared with the paper's."""
    preset = results.presets[0]
    if preset == "paper" or note_of(results):
        return note_of(results)
    return f"{preset} preset: other sizes than the paper's, so the paper's numbers are drawn for orientation"


def curve_section(results: Results, figure: published.PaperFigure, *, x: str = "episode") -> Section | None:
    """Return a figure of the paper with our runs in front, or None where we have nothing it is about.

    Figure 4 holds PlaNet itself; the others compare it with variants. Tasks without a run, there or planned, are left
    out.
    """
    evals = results.frame("eval")
    evals = evals[evals["variant"].isin(list(figure.curves)) & (evals["dynamics"] == "latent")]
    expected, _ = results.expected()
    tasks = {task for recorded, task, _ in expected if variant_of(recorded) in figure.own and task in TASKS} | set(
        evals.loc[evals["variant"].isin(figure.own), "task"]
    )
    if not tasks or (figure.name != "fig4" and not set(evals["variant"]) & figure.own):
        return None
    curves = against_paper(learning_curves(evals), figure)
    comparable = bool(np.all(evals["max_return"] == published.MAX_RETURN))
    if not comparable:
        curves["verdict"] = ""
    build = functools.partial(
        learning_curve_figure,
        figure=figure,
        planned=planned_episodes(results, list(figure.curves)),
        note=note_of(results),
    )
    blocks: list[Block] = []
    several = curves["variant"].nunique() > 1
    read = f"Read as the figure above. {STEPS}" if several else f"{band_of(curves)} {STEPS}"
    if several:
        caption = f"{band_of(curves)} Thin steps: the paper's medians of the same designs, in the same colours."
        title = f"{figure.number}. {figure.title}"
        shown = sort_tasks(tasks)
        drawing = build(figure.name, title, caption, ours=curves, tasks=shown, x=x, paper_band=False)
        blocks.append(with_commits(drawing, results, curves["series"]))
    for series, variant in dict.fromkeys(zip(curves["series"], curves["variant"], strict=True)):
        if variant not in figure.own:
            continue  # the paper draws the same curve in an earlier figure, and so do we
        own = curves[curves["series"] == series]
        planned = {task for recorded, task, _ in expected if variant_of(recorded) == variant and task in TASKS}
        shown = sort_tasks(planned | set(own["task"]))
        name = f"{figure.name}-{slug(series)}" if several else figure.name
        title = f"{series_label(series)} and the paper"
        if variant in published.NOT_IN_PAPER:
            read += " The paper's runs of this design are not the same, so there is no verdict."
        draw = functools.partial(build, tasks=shown)
        drawing = with_commits(draw(name, title, read, ours=own, x=x), results, [series])
        blocks.append(_every_axis(drawing, draw, own, x) if series == "base" else drawing)
    if curves.empty:
        caption = f"No evaluation yet. {band_of(curves)} {STEPS}"
        title = f"{figure.number}. {figure.title}"
        blocks.append(build(figure.name, title, caption, ours=curves, tasks=sort_tasks(tasks), x=x))
    if comparable and (curves["verdict"] != "").any():
        blocks.append(verdict_table(curves, figure, results))
    elif not comparable:
        text = "No verdict: these episodes are shorter than the paper's, so their returns are on another scale."
        blocks.append(Text(text, "warning"))
    return Section(figure.name, f"{figure.number}: {figure.title.lower()}", blocks)


def _every_axis(drawing: Figure, build: Callable[..., Figure], own: pd.DataFrame, x: str) -> Tabs:
    tabs: list[tuple[str, Block]] = [(X_AXES[x], drawing)]
    for other, label in X_AXES.items():
        if other != x:
            caption = f"{band_of(own)} {STEPS if other != 'hours' else HOURS}"
            same = build(f"{drawing.name}-by-{other.replace('_', '-')}", drawing.title, caption, ours=own, x=other)
            same.commits = drawing.commits
            tabs.append((label, same))
    return Tabs(f"{drawing.name}-axis", tabs)


def with_commits(figure: Figure, results: Results, series: Iterable[str]) -> Figure:
    """Return the figure with the commits of the runs it was drawn from."""
    wanted = set(series)
    found = {
        f"{commit[:7] or 'no commit'}{' + changes' if dirty else ''}"
        for run in results.runs if run.series in wanted
        for commit, dirty in run.commits
    }  # fmt: skip
    figure.commits = sorted(found)
    return figure


def slug(text: str) -> str:
    """Return a name for files and anchors."""
    kept = "".join(char if char.isalnum() or char in "_.=+" else "-" for char in text)
    while "--" in kept:
        kept = kept.replace("--", "-")
    return kept.strip("-.")


def verdict_table(curves: pd.DataFrame, figure: published.PaperFigure, results: Results) -> Table:
    """Return one row per series and task: where our medians lie in the paper's band, point by point and at the end."""
    counts = beside_random(verdict_counts(curves), results.frame("eval"), random_episodes(results))
    points = counts[["inside", "above", "below"]].sum(axis=1)
    variants = dict(zip(curves["series"], curves["variant"], strict=True))
    expected = [results.seeds_expected(variants[row.series], row.task) for row in counts.itertuples()]
    shown = pd.DataFrame(
        {
            "agent": [series_label(s) for s in counts["series"]],
            "task": [task_label(t) for t in counts["task"]],
            "point by point": "",
            "inside": [f"{a}/{n}" for a, n in zip(counts["inside"], points, strict=True)],
            "above": counts["above"].map(str),
            "below": counts["below"].map(str),
            "at": counts["last_episode"].map(str),
            "our median": counts["median"].map("{:.0f}".format),
            "paper": [
                f"{round(median)} [{round(low)}, {round(high)}]"  # of integers there is no -0
                for median, low, high in counts[["paper_median", "paper_p5", "paper_p95"]].itertuples(index=False)
            ],
            "random, p": [
                f"{median:.0f}, {p:.0e}" if n else "–"
                for median, n, p in counts[["random_median", "random_episodes", "random_p"]].itertuples(index=False)
            ],
            "seeds": [f"{n}/{max(n, m)}" for n, m in zip(counts["seeds"], expected, strict=True)],
            "verdict": counts["verdict"],
        }
    )  # fmt: skip
    caption = (
        "Each of our evaluation points is compared with the paper's bin that contains it: is our median inside the "
        "paper's 5–95 % band? <em>inside</em>, <em>above</em>, <em>below</em> count points; at: collected episodes at "
        "our last point; paper: median [5 %, 95 %] of its bin. Point by point, from the first evaluation to the last: "
        "a mark on the line is inside the band, one over it above, one under it below. Above is not a failure; it is "
        "said because it is a difference. Random, p: median of the random episodes that runs of the task begin with "
        "(each once: runs of one seed begin with the same), and how likely returns like our last point's are by acting "
        "at random (one-sided Mann–Whitney test): where the paper's band reaches down to them, lying inside it says "
        "little."
    )
    classes = {(i, "verdict"): f"verdict {verdict}" for i, verdict in enumerate(counts["verdict"])}
    classes |= {(i, "agent"): "wrap" for i in range(len(counts))}
    strips = {
        (i, "point by point"): _strip(curves[(curves["series"] == row["series"]) & (curves["task"] == row["task"])])
        for i, row in enumerate(counts.to_dict("records"))
    }
    data = counts.assign(seeds_expected=expected)
    return Table(
        f"{figure.name}-verdict", f"{figure.number}: ours against the paper's band", caption, data, shown,
        ("agent", "task", "point by point", "verdict"), classes=classes, html=strips,
        group="agent",
    )  # fmt: skip


def _strip(points: pd.DataFrame) -> str:
    """Return one mark per evaluation point, by episode: up for above, a dot for inside, down for below."""
    marks = []
    for row in points[points["verdict"] != ""].sort_values("episode").to_dict("records"):
        told = (
            f"{row['episode']} episodes: {row['median']:.0f}, {row['verdict']} {row['paper_p5']:.0f} to "
            f"{row['paper_p95']:.0f} (n = {row['seeds']} seeds, {row['episodes']} episodes)"
        )
        marks.append(f'<i class="{row["verdict"]}" title="{told}"></i>')
    return f'<span class="strip">{"".join(marks)}</span>'


def random_episodes(results: Results) -> pd.DataFrame:
    """Return the episodes of random actions that runs begin with, each once: every variant of a seed repeats them."""
    random = results.frame("seed")
    random = random[random["max_return"] == published.MAX_RETURN]
    return random.drop_duplicates(["task", "env_seed", "return"])


def scored_runs(results: Results, scores: pd.DataFrame) -> list[Run]:
    """Return the runs that rows of `final_scores` are about."""
    scored = set(zip(scores["series"], scores["task"], scores["seed"], strict=True))
    return [run for run in results.runs if scored & {(run.series, task, run.seed) for task in run.tasks}]


def glance(results: Results) -> list[tuple[str, str]]:
    """Return the numbers a reader wants first: (number, what it is)."""
    expected, _ = results.expected()
    states = Counter(run.state(results.now) for run in results.runs)
    facts = [(f"{states['done']} of {len(expected)}", "runs done")]
    for state in ("running", "failed", "stale"):
        if states[state]:
            facts.append((str(states[state]), f"runs {state}"))
    evals = results.frame("eval")
    base = evals[(evals["series"] == "base") & (evals["max_return"] == published.MAX_RETURN)]
    if base.empty:
        return facts
    counts = verdict_counts(against_paper(learning_curves(base), published.FIGURES["fig4"]))
    if len(counts):
        counts = beside_random(counts, base, random_episodes(results))
        inside = counts["verdict"] == "inside"
        blind = int((inside & ~(counts["random_p"] < TOLD_APART) & (counts["random_episodes"] > 0)).sum())
        ends = Counter(counts["verdict"])
        above = f", {ends['above']} above" if ends["above"] else ""
        finished = final_scores(base)
        there = set(zip(finished["task"], finished["seed"], strict=True))
        planned = {(task, seed) for recorded, task, seed in expected if variant_of(recorded) == "base"}
        so_far = "" if planned <= there else " so far"
        told = f"; {blind} more inside, but not told from random actions" if blind else ""
        what = f"tasks where PlaNet's last median{so_far} lies inside the paper's band{above}{told}"
        facts.append((f"{ends['inside'] - blind} of {len(counts)}", what))
    scores = final_scores(base[base["task"].isin(TASKS)])
    if len(scores):
        means = scores.groupby("task")["score"].mean()
        paper = published.table1().set_index("method").loc["PlaNet", list(means.index)].astype(float).mean()
        tasks = f"{len(means)} task{'s' * (len(means) > 1)} ({len(scores)} run{'s' * (len(scores) > 1)})"
        trained = sorted({run.train_episodes for run in scored_runs(results, scores) if run.train_episodes})
        after = "" if trained == [published.EPISODES] else f" after {' or '.join(f'{n:,}' for n in trained)} episodes"
        its = " there" if not after else f" after {published.EPISODES:,}"
        what = f"PlaNet's mean final return over {tasks}{after}; the paper's{its}: {paper:.0f}"
        facts.append((f"{means.mean():.0f}", what))
    return facts


# ------------------------------------------------------------------------------------------------------ Table 1


def _other_planners(evals: pd.DataFrame) -> dict[str, str]:
    """Return series and variant of planners in the true simulator that differ in other settings than Figure 12's."""
    found = evals.drop_duplicates("series").set_index("series")["variant"]
    changes = {series: split(variant) for series, variant in found.items()}
    return {
        series: found[series]
        for series, (name, keys) in changes.items() if name == "true_simulator" and keys and not set(keys) & SWEPT
    }  # fmt: skip


def table1_section(results: Results) -> Section:
    """Return Table 1: the paper's rows, and ours below each that we can repeat."""
    evals = results.frame("eval")
    scores = final_scores(evals)
    rows: list[dict[str, str]] = []
    data: list[dict[str, object]] = []
    emphasis: list[int] = []
    classes: dict[tuple[int, str], str] = {}
    markup: dict[tuple[int, str], str] = {}
    ours = {"PlaNet": "base", "CEM + true simulator": "true_simulator"}
    for row in published.table1().to_dict("records"):
        method = str(row["method"])
        factor = method.startswith("Data efficiency")
        cells = {
            t: "" if pd.isna(row[t]) else f"{row[t]:g}{'+' if factor and t == 'cheetah_run' else ''}" for t in TASKS
        }
        episodes = "" if pd.isna(row["episodes"]) else f"{int(row['episodes']):,}"
        rows.append({"method": method, "source": "paper", "episodes": episodes, **cells})
        for task in TASKS:
            data.append(
                {
                    "method": method,
                    "series": "paper",
                    "task": task,
                    "mean": row[task],
                    "seeds": None,
                    "seeds_expected": None,
                }
            )
        variant = ours.get(method)
        if variant is None:
            continue
        mine = evals[evals["variant"] == variant]
        there = any(results.seeds_expected(variant, task) for task in TASKS) or not mine.empty
        shown_of = {series: variant for series in dict.fromkeys(mine["series"]) or [variant] if there}
        if variant == "true_simulator":
            shown_of |= _other_planners(evals)
        for series, variant in shown_of.items():
            own = scores[scores["series"] == series]
            trained = {run.train_episodes for run in scored_runs(results, own)}
            shown = {
                "method": series_label(series),
                "source": "this suite",
                "episodes": " / ".join(f"{count:,}" for count in sorted(trained)) or "–",
            }
            for task in TASKS:
                values = own.loc[own["task"] == task, "score"].astype(float)
                n, expected = len(values), results.seeds_expected(variant, task)
                shown[task] = (
                    f"{values.mean():.0f} ({n}/{max(n, expected)})" if n else (f"– (0/{expected})" if expected else "–")
                )
                if n < expected:
                    classes[(len(rows), task)] = "partial"
                data.append(
                    {
                        "method": method,
                        "series": series,
                        "task": task,
                        "mean": values.mean() if n else None,
                        "seeds": n,
                        "seeds_expected": max(n, expected),
                    }
                )
            emphasis.append(len(rows))
            rows.append(shown)
    frame = pd.DataFrame(rows)
    frame.columns = [task_label(c) if c in TASKS else c for c in frame.columns]
    classes = {(i, task_label(c)): k for (i, c), k in classes.items()}
    caption = (
        "Mean final return over seeds × evaluation episodes. Ours: mean over the last evaluation of every finished "
        "run, in brackets the seeds that are in it, of those expected; a run that has not finished is not in it. "
        "Episodes: collected while learning, by the runs that are in the row. The paper's means differ from its "
        "medians (reacher easy: 832 and 952), and its table and Figure 4 disagree on A3C there (285 and 95.6)."
    )
    table = Table(
        "table1", "Table 1", caption, pd.DataFrame(data), frame, ("method", "source"), emphasis, classes, markup
    )
    blocks: list[Block] = [table]
    if note := note_of(results):
        blocks.append(Text(note[0].upper() + note[1:] + ".", "warning"))
    return Section("table1", "Table 1: final performance", blocks)
