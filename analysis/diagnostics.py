"""How learning went, run by run: loss terms, KL against free nats, gradient norms, time per phase, restarts."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from analysis import style
from analysis.content import Block, Fold, Section, Table
from analysis.figures import Figure, Key, Panel, row_labels, row_space
from analysis.questions import series_label, task_label
from analysis.runs import Results, Run, sort_tasks
from analysis.scores import note_of, slug, with_commits
from analysis.sparkline import shares, sparkline, thin

COUNTERS = {"episode", "env_steps", "agent_steps", "updates", "wall_seconds", "cpu_seconds", "threads"}
TERMS = {
    "loss": "loss",
    "image": "image, ½ squared error",
    "reward": "reward, ½ squared error",
    "kl": "KL as counted, nats",
    "kl_raw": "KL, nats",
    "below_free_nats": "share below the free nats",
    "overshooting": "overshooting",
    "global_kl": "KL to N(0, 1)",
    "grad_norm": "gradient norm before clipping",
    "prior_entropy": "entropy of the prior, nats",
    "posterior_entropy": "entropy of the posterior, nats",
}
"""The terms known by name, in the order they are drawn; others follow alphabetically under their own names."""
PHASES = {"train": "blue", "plan": "vermilion", "env": "green", "eval": "amber"}
POINTS = 120


def diagnostics_section(results: Results) -> Section | None:
    """Return the section, or None where no run has written a metrics row."""
    runs = [run for run in results.runs if len(run.metrics)]
    learned = [run for run in runs if run.dynamics == "latent"]
    if not runs:
        return None
    blocks: list[Block] = []
    figures: list[Block] = []
    for series in dict.fromkeys(run.series for run in learned):
        own = [run for run in learned if run.series == series]
        figures.append(terms_figure(series, own, results))
    blocks += figures[:1]
    if len(figures) > 1:
        blocks.append(Fold(f"The same for the other variants ({len(figures) - 1})", figures[1:]))
    if learned:
        blocks.append(phase_figure(learned, results))
    blocks.append(run_table(results.runs, results.now))
    return Section("diagnostics", "Learning diagnostics", blocks)


def terms_of(runs: Sequence[Run]) -> list[str]:
    """Return the metrics that are measured and not zero throughout, the known ones first."""
    names: set[str] = set()
    for run in runs:
        numeric = run.metrics.select_dtypes("number")
        varying = numeric.columns[(numeric.abs() > 0).any()]
        names |= {str(n) for n in varying if n not in COUNTERS and not str(n).endswith("_seconds")}
    return [name for name in TERMS if name in names] + sorted(names - set(TERMS) - {"train_return"})


def terms_figure(series: str, runs: Sequence[Run], results: Results) -> Figure:
    """Return one panel per term: a thin line per run, coloured by task, thinned to at most 120 points."""
    terms = terms_of(runs)
    rows = []
    for run in runs:
        x = (
            run.metrics["episode"].to_numpy(float)
            if "episode" in run.metrics
            else np.arange(len(run.metrics), dtype=float)
        )
        for term in terms:
            if term in run.metrics:
                at, value = thin(x, run.metrics[term].to_numpy(float), POINTS)
                rows.append(
                    pd.DataFrame({"task": run.task, "seed": run.seed, "term": term, "episode": at, "value": value})
                )
    frame = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["task", "seed", "term"])
    restarts = sorted({episode for run in runs for episode in run.resumed_at()})
    objective, optimizer = runs[0].config.get("objective", {}), runs[0].config.get("optimizer", {})
    rules = {
        "kl": objective.get("free_nats"), "kl_raw": objective.get("free_nats"), "grad_norm": optimizer.get("clip_norm")
    }  # fmt: skip
    panels = [
        Panel(
            TERMS.get(term, term),
            functools.partial(
                term_panel, own=frame[frame["term"] == term], rule=rules.get(term), restarts=restarts,
                x_max=max(run.episodes_total for run in runs), log=term == "grad_norm",
            ),
            f"{TERMS.get(term, term)} of {len(runs)} runs",
        )
        for term in terms
    ]  # fmt: skip
    caption = (
        f"A line per run (mean of the updates between two collected episodes, at most {POINTS} points), coloured by "
        "task. Dashed: the free nats in the KL panels, the clipping threshold in the gradient's. The KL may lie below "
        "the free nats: there it costs nothing more and gives no gradient. Ticks on the axis: restarts."
    )
    keys = [Key(task_label(task), style.colour(task)) for task in sort_tasks(run.task for run in runs)]
    figure = Figure(
        f"diagnostics-{slug(series)}", f"Loss terms, {series_label(series)}", caption, panels, frame, keys, 4,
        panel_size=(3.0, 2.0), note=note_of(results), left=0.55,
    )  # fmt: skip
    return with_commits(figure, results, [series])


def term_panel(
    axes: Axes, *, own: pd.DataFrame, rule: float | None, restarts: Sequence[int], x_max: float, log: bool
) -> None:
    for (task, _), line in own.groupby(["task", "seed"], sort=False):
        axes.plot(line["episode"], line["value"], color=style.colour(str(task)), linewidth=0.8, alpha=0.75)
    values = own["value"].to_numpy(float)
    values = values[np.isfinite(values)]
    if log and len(values) and values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)
    elif len(values):
        # A few huge first values would press everything else into a line.
        top, low = float(np.quantile(values, 0.99)), float(values.min())
        axes.set_ylim(min(0.0, low), max(top * 1.08, (rule or 0) * 1.15, low + 1e-9))
    if rule:
        axes.axhline(rule, color=style.MUTED, linewidth=0.9, dashes=(4, 2))
    axes.plot(restarts, [0.0] * len(restarts), "|", color=style.INK, markersize=8, transform=axes.get_xaxis_transform())
    axes.set_xlim(0, x_max)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("collected episodes")


# -------------------------------------------------------------------------------------------------------- timing


def phase_seconds(run: Run) -> dict[str, float]:
    """Return seconds per collected episode in each phase, evaluations spread over all episodes."""
    return {
        phase: float(run.metrics[f"{phase}_seconds"].mean()) if f"{phase}_seconds" in run.metrics else 0.0
        for phase in PHASES
    }


def phase_figure(runs: Sequence[Run], results: Results) -> Figure:
    """Return stacked bars: mean seconds per collected episode by phase, a bar per series and task."""
    rows = [
        {"series": run.series, "task": run.task, "seed": run.seed, "device": run.device, **phase_seconds(run)}
        for run in runs
    ]
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["series", "task"], sort=False)[list(PHASES)].mean().reset_index()
    panels = []
    for task in sort_tasks(groups["task"]):
        own = groups[groups["task"] == task]
        said = "; ".join(
            f"{series_label(r['series'])} {sum(r[p] for p in PHASES):.1f} s" for r in own.to_dict("records")
        )
        draw = functools.partial(phase_panel, own=own, series=list(dict.fromkeys(groups["series"])))
        panels.append(Panel(task_label(task), draw, f"Seconds per episode, {task_label(task)}: {said}"))
    caption = (
        "Seconds per collected episode (of each task): gradient updates, planning and simulation of that episode, and "
        "evaluation spread over all episodes. Means over seeds; devices and threads are in the table below."
    )
    names = {"train": "updates", "plan": "planning", "env": "simulator", "eval": "evaluation"}
    keys = [Key(names[phase], style.PALETTE[colour][0], "bar") for phase, colour in PHASES.items()]
    left, height = row_space(row_labels([series_label(series) for series in dict.fromkeys(groups["series"])]))
    figure = Figure(
        "phase-timings", "Where the time goes", caption, panels, frame, keys, 3,
        panel_size=(max(left + 2.0, 3.3), height), note=note_of(results), left=left,
    )  # fmt: skip
    return with_commits(figure, results, set(frame["series"]))


def phase_panel(axes: Axes, *, own: pd.DataFrame, series: Sequence[str]) -> None:
    by_series = {row["series"]: row for row in own.to_dict("records")}
    for place, name in enumerate(reversed(series)):
        left = 0.0
        for phase, colour in PHASES.items():
            value = by_series[name][phase] if name in by_series else 0.0
            axes.barh([place], [value], left=[left], height=0.62, color=style.PALETTE[colour][0], alpha=0.8)
            left += value
    axes.set_yticks(range(len(series)), row_labels([series_label(name) for name in reversed(series)]))
    axes.set_ylim(-0.6, len(series) - 0.4)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("seconds per episode")


# ----------------------------------------------------------------------------------------------------- every run


def run_table(runs: Sequence[Run], now: float) -> Table:
    """Return a row per run with small drawings of its learning, its rate, restarts and machine."""
    rows, data, markup, classes = [], [], {}, {}
    css = {phase: f"var(--{colour})" for phase, colour in PHASES.items()}
    for i, run in enumerate(runs):
        evals, metrics, total = run.evals(), run.metrics, run.episodes_total
        points = evals.groupby("episode")["return"].median() if len(evals) else pd.Series(dtype=float)
        marks, phases = run.resumed_at(), phase_seconds(run)
        hours = float(run.status.get("wall_seconds") or 0.0) / 3600
        rate = run.status.get("episodes_per_hour")
        last = float(points.iloc[-1]) if len(points) else None
        x = metrics["episode"].to_numpy(float) if "episode" in metrics else np.zeros(0)
        drawings = {"returns": sparkline(points.index, points, x_max=total, low=0, high=run.max_return, marks=marks)}
        for column, term, rule in (
            ("image loss", "image", None),
            ("KL", "kl_raw", run.config.get("objective", {}).get("free_nats")),
            ("gradient", "grad_norm", None),
        ):
            if term in metrics and run.dynamics == "latent":
                at, value = thin(x, metrics[term].to_numpy(float), 48)
                value = np.log10(np.maximum(value, 1e-9)) if term == "grad_norm" else value
                drawings[column] = sparkline(at, value, x_max=total, rule=rule, marks=marks)
        told = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items())
        drawings["phases"] = shares(phases, css, told)
        state = run.state(now)
        learns = run.train_episodes > 0
        progress = f"{run.status.get('episode') or 0}/{total}" if learns else f"{len(evals)}/{run.eval_episodes}"
        rows.append(
            {
                "run": f"{run.name} ({run.device})", "state": f"{state} {progress}",
                "returns": "", "last": "–" if last is None else f"{last:.0f}", "image loss": "", "KL": "",
                "gradient": "", "phases": "", "time": f"{hours:.1f} h" + (f", {rate:.0f}/h" if rate else ""),
                "restarts": str(max(0, len(run.starts) - 1)),
            }
        )  # fmt: skip
        name, device = re.sub(r"([/+])", r"\1<wbr>", html.escape(run.name)), html.escape(run.device)
        markup[(i, "run")] = f"{name}<br><small>{device}</small>"
        classes |= {(i, column): "wrap" for column in ("state", "time")} | {(i, "run"): "wrap long"}
        markup |= {(i, column): drawing for column, drawing in drawings.items()}
        data.append(
            {
                "run": run.name, "series": run.series, "state": state, "episode": run.status.get("episode"),
                "episodes_total": total, "last_eval_median": last, **{f"{p}_seconds": s for p, s in phases.items()},
                "episodes_per_hour": rate, "wall_hours": hours, "restarts": max(0, len(run.starts) - 1),
                "resumed_at": " ".join(map(str, marks)), "machine": run.device, "precision": run.precision,
                "picture": run.picture, "commits": " ".join(commit[:12] for commit, _ in run.commits),
                "dirty": any(dirty for _, dirty in run.commits), "path": str(run.path),
            }
        )  # fmt: skip
    caption = (
        "Small drawings over the run's whole schedule: median return of each evaluation (0 to what an episode can "
        "earn), image loss, KL with the free nats as a rule, gradient norm (logarithmic), share of time by phase "
        "(updates, planning, simulator, evaluation). State: with collected of all episodes. Time: hours so far and "
        "episodes per hour. Red ticks: restarts."
    )
    return Table(
        "runs", "Every run", caption, pd.DataFrame(data), pd.DataFrame(rows),
        ("run", "state", "returns", "image loss", "KL", "gradient", "phases", "time"), html=markup, classes=classes,
        folded=len(rows) > 12,
    )  # fmt: skip
