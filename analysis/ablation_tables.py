"""What each variant changes: paired differences per seed; and the difference of the curves' medians, which is what the
paper shows, beside the paper's, with a verdict.

A variant's run is compared with the run of the same task and seed it should differ from by its own keys alone (base, or
the variant its question is about); pairs that differ in anything else are not compared, and that is said.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import aggregate, published, style
from analysis.aggregate import Interval
from analysis.content import Block, Listing, Section, Table
from analysis.figures import Figure, Key, Panel, row_labels, row_space
from analysis.questions import questions, series_label, split, task_label
from analysis.runs import Results, Run, sort_tasks
from analysis.scores import note_of, with_commits

MARGIN = 50.0
"""Returns closer than this (5 % of what an episode can earn) are called the same."""
WIDE = 100.0
"""An interval that holds 0 and reaches further than this could hide an effect: not enough runs to say."""
MIN_PAIRS = 3


@dataclass(frozen=True, slots=True)
class Effect:
    """A variant against its partner on one task, in units of return."""

    series: str
    variant: str
    against: str
    task: str
    episode: int
    """Collected episodes at the evaluation that is compared."""
    final: bool
    """Whether that is the end of training."""
    differences: tuple[float, ...]
    """One per pair: variant minus partner, each the mean over its evaluation episodes."""
    seeds: tuple[int, ...]
    expected: int
    interval: Interval
    episodes: tuple[aggregate.Pair, ...]
    """Per pair, the returns of both runs' evaluation episodes."""
    medians: Interval
    """Difference of the medians over all pairs' episodes: what `paper` is of."""
    paper: float | None
    changed: tuple[str, ...]
    """What these runs hold that their partners do not: `planner.candidates 100 → 300`. Presets decide both values."""
    shared: bool
    """Whether the variant's runs have several tasks each, and an effect on every one of them."""

    @property
    def verdict(self) -> str:
        return judge(self.medians, len(self.differences), self.paper)


def direction(interval: Interval) -> str:
    """Return better, worse, same or unclear."""
    if not interval.known:
        return "unclear"
    if interval.low > 0:
        return "better"
    if interval.high < 0:
        return "worse"
    return "same" if max(-interval.low, interval.high) <= WIDE else "unclear"


def judge(interval: Interval, pairs: int, paper: float | None) -> str:
    """Return agrees, disagrees, not enough runs, or "" where the paper has no number."""
    if paper is None:
        return ""
    ours = direction(interval)
    if pairs < MIN_PAIRS or ours == "unclear":
        return "not enough runs"
    if interval.low <= paper <= interval.high:
        # Nothing contradicts the paper; whether there is an effect at all may still be open.
        return "agrees" if ours != "same" or abs(paper) < MARGIN else "not enough runs"
    theirs = "same" if abs(paper) < MARGIN else "better" if paper > 0 else "worse"
    if theirs == "same":
        return "agrees" if ours == "same" or abs(interval.value) < MARGIN else "disagrees"
    return "agrees" if ours == theirs else "disagrees"


# ------------------------------------------------------------------------------------------------------- pairing


def unlike(run: Run, partner: Run) -> list[str]:
    """Return the settings in which two runs differ besides what the variant is meant to change."""
    name, changes = split(run.variant)
    partner_name, partner_changes = split(partner.variant)
    meant = {*changes, *partner_changes, "objective.overshooting_distance"}  # presets shorten it to their chunks
    for each in (name, partner_name):
        known = questions().get(each)
        meant |= set(known.overrides) if known else set()
    if run.task != partner.task:
        meant.add("env.action_repeat")  # the multi-task agent leaves it to each task
    ours, theirs = run.settings(), partner.settings()
    different = [key for key in ours if key not in meant and ours[key] != theirs.get(key)]
    different += ["precision"] if run.precision != partner.precision else []
    return different + (["pictures"] if run.picture != partner.picture else [])


def effects(results: Results) -> tuple[list[Effect], list[tuple[str, str]]]:
    """Return the effect of every variant on every task, and (run, why) for runs that have no equal partner."""
    learned = [run for run in results.runs if run.dynamics == "latent"]
    partners: dict[tuple[str, str, int], list[Run]] = {}  # several where a seed was computed in several ways
    for run in learned:
        partners.setdefault((run.variant, run.task, run.seed), []).append(run)
    found: list[Effect] = []
    apart: list[tuple[str, str]] = []
    for series in dict.fromkeys(run.series for run in learned if run.variant != "base"):
        runs = [run for run in learned if run.series == series]
        variant = runs[0].variant
        against = published.COMPARED_WITH.get(variant, "base")
        pairs: dict[str, list[tuple[Run, Run]]] = {}
        for run in runs:
            for task in run.tasks:
                found_there = partners.get((against, task, run.seed))
                if not found_there:
                    continue
                partner = min(found_there, key=lambda each: len(unlike(run, each)))
                if different := unlike(run, partner):
                    apart.append((run.name, f"not compared with {partner.name}: {', '.join(different)} differ"))
                    continue
                pairs.setdefault(task, []).append((run, partner))
        for task in sort_tasks(pairs):
            effect = _effect(series, variant, against, task, pairs[task], results)
            if effect is not None:
                found.append(effect)
    return found, apart


def changed_settings(run: Run, partner: Run) -> tuple[str, ...]:
    """Return every setting in which a run differs from its partner, with both values."""
    ours, theirs = run.settings(), partner.settings()
    return tuple(
        f"{key} {theirs.get(key, 'absent')} → {ours.get(key, 'absent')}"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and "." in key
    )


def _returns(run: Run, task: str) -> dict[int, np.ndarray]:
    evals = run.evals()
    own = evals[evals["task"] == task].groupby("episode")["return"]
    return {int(episode): returns.to_numpy(float) for episode, returns in own}


def _effect(
    series: str, variant: str, against: str, task: str, pairs: Sequence[tuple[Run, Run]], results: Results
) -> Effect | None:
    curves = [(run.seed, _returns(run, task), _returns(partner, task)) for run, partner in pairs]
    common = [(seed, {e: (ours[e], theirs[e]) for e in ours.keys() & theirs.keys()}) for seed, ours, theirs in curves]
    last = pairs[0][0].eval_at()[-1]
    common = [(seed, curve) for seed, curve in common if curve]  # the others have not been evaluated together yet
    reached = {e: sum(e in curve for _, curve in common) for _, curve in common for e in curve}
    if not reached:
        return None
    # The end if anyone has reached it; before that, the latest point that half of the pairs have, or any of them.
    half = math.ceil(len(common) / 2)
    episode = last if last in reached else max((e for e, n in reached.items() if n >= half), default=max(reached))
    at = [(seed, curve[episode]) for seed, curve in common if episode in curve]
    episodes = tuple(pair for _, pair in at)
    differences = [float(ours.mean() - theirs.mean()) for ours, theirs in episodes]
    interval = aggregate.bootstrap([np.array(differences)], aggregate.mean, np.random.default_rng(0))
    comparable = pairs[0][0].max_return == published.MAX_RETURN
    return Effect(
        series, variant, against, task, int(episode), episode == last, tuple(differences), tuple(s for s, _ in at),
        max(results.seeds_expected(variant, task), len(at)), interval,
        episodes, aggregate.difference_of_medians([episodes], np.random.default_rng(0)),
        published.paper_effect(variant, task, int(episode)) if comparable else None,
        changed_settings(*pairs[0]), any(run.task != task for run, _ in pairs),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OverTasks:
    """A variant's effect averaged over tasks."""

    interval: Interval
    medians: Interval
    fewest: int
    """Pairs of the task that has the fewest."""
    paper: float | None
    """Mean over the same tasks; None if one of them has no number."""

    @property
    def verdict(self) -> str:
        return judge(self.medians, self.fewest, self.paper)


def over_tasks(own: Sequence[Effect]) -> OverTasks:
    """Return the mean effect over tasks with its stratified interval.

    Runs of several tasks are drawn whole: only pairs that all of the tasks have go in, and without such there is no
    interval.
    """
    theirs = [effect.paper for effect in own]
    paper = None if any(value is None for value in theirs) else float(np.mean(theirs))
    shared = any(effect.shared for effect in own)
    seeds = [effect.seeds for effect in own]
    if shared:
        whole = tuple(seed for seed in seeds[0] if all(seed in each for each in seeds))
        if not whole:
            return OverTasks(
                *(Interval(float(np.mean([i.value for i in each])), math.nan, math.nan)
                  for each in zip(*((effect.interval, effect.medians) for effect in own), strict=True)), 0, paper
            )  # fmt: skip
        seeds = [whole] * len(own)
    at = [[effect.seeds.index(seed) for seed in each] for effect, each in zip(own, seeds, strict=True)]
    runs = ["shared"] * len(own) if shared else None
    interval = aggregate.bootstrap(
        [np.array([effect.differences[i] for i in places]) for effect, places in zip(own, at, strict=True)],
        aggregate.mean, np.random.default_rng(0), runs=runs,
    )  # fmt: skip
    medians = aggregate.difference_of_medians(
        [[effect.episodes[i] for i in places] for effect, places in zip(own, at, strict=True)],
        np.random.default_rng(0), runs=runs,
    )  # fmt: skip
    return OverTasks(interval, medians, min(map(len, at)), paper)


# ------------------------------------------------------------------------------------------------- what is shown


def signed(value: float) -> str:
    return f"{value:+z.0f}".replace("-", "−")


def with_interval(interval: Interval, tasks: int = 1, pairs: int = 1) -> str:
    if not interval.known:
        why = "one pair" if tasks == 1 else "a task has one pair" if pairs else "no seed has a pair on all tasks"
        return f"{signed(interval.value)} ({why})"
    return f"{signed(interval.value)} [{signed(interval.low)}, {signed(interval.high)}]"


READ = (
    "Effect: mean over seeds of (variant − partner) in return, paired by seed, each run by the mean of its evaluation "
    f"episodes; [95 % percentile bootstrap over pairs, stratified by task, {aggregate.RESAMPLES:,} resamples; "
    "runs of several tasks are drawn whole, from the pairs that all tasks have]. "
    f"{aggregate.COVERAGE} Of medians: median over all episodes of the variant's runs − that of their partners, of the "
    "same pairs, mean over tasks, with an interval of the same kind. Paper's: difference of the two curves' medians at "
    "that many episodes; at their end, of their last five. "
    f"Verdict, by the medians: <em>agrees</em> if our interval and the paper's number point the same way (under "
    f"{MARGIN:.0f} counts as no difference) or our interval holds the paper's number and not 0; <em>not enough "
    f"runs</em> below {MIN_PAIRS} pairs per task, or if the interval holds 0 and reaches beyond ±{WIDE:.0f} or to the "
    "paper's number. No correction for looking at many variants."
)


def ablation_section(results: Results) -> Section | None:
    """Return questions, claims, effects and verdicts of all variants, or None where there is nothing to compare."""
    found, apart = effects(results)
    if not found and not apart:
        return None
    blocks: list[Block] = []
    if found:
        blocks += [claims_table(found), effect_figure(found, results), effect_table(found)]
    if apart:
        blocks.append(Listing(f"Not compared ({len(apart)})", "split", apart))
    return Section("ablations", "Ablations: what each part is for", blocks)


def claims_table(found: Sequence[Effect]) -> Table:
    """Return one row per variant: question, the paper's claim, our effect over tasks, verdict."""
    rows, data, classes, markup = [], [], {}, {}
    for i, series in enumerate(dict.fromkeys(effect.series for effect in found)):
        own = [effect for effect in found if effect.series == series]
        question = questions().get(split(own[0].variant)[0])
        over = over_tasks(own)
        interval, verdict = over.interval, over.verdict
        when = "" if all(effect.final for effect in own) else " so far"
        against = "" if own[0].against == "base" else f" (against {series_label(own[0].against)})"
        counts = " ".join(f"{len(e.differences)}/{e.expected}" for e in own)
        rows.append(
            {
                "variant": series_label(series) + against,
                "question": f"{question.question if question else ''} ({', '.join(own[0].changed)})".strip(),
                "the paper": (f"{question.figure}: {question.claim}" if question and question.claim else "no claim"),
                "effect": with_interval(interval, len(own), over.fewest) + when,
                "of medians": with_interval(over.medians, len(own), over.fewest),
                "paper's": "–" if over.paper is None else signed(over.paper),
                "tasks": str(len(own)),
                "pairs": counts,
                "verdict": verdict or "no number to compare",
            }
        )
        classes[(i, "verdict")] = f"wrap verdict {verdict.split()[0] if verdict else 'none'}"
        markup[(i, "pairs")] = f'<span class="count">{html.escape(counts)}</span>'
        data.append(
            {
                "series": series, "against": own[0].against, "tasks": len(own), "effect": interval.value,
                "low": interval.low, "high": interval.high, "of_medians": over.medians.value,
                "of_medians_low": over.medians.low, "of_medians_high": over.medians.high, "paper_effect": over.paper,
                "fewest_pairs": over.fewest, "final": not when, "verdict": verdict,
            }
        )  # fmt: skip
    for text in ("variant", "question", "the paper", "effect", "of medians", "pairs"):
        long = text in ("question", "the paper")
        classes |= {(i, text): "wrap long" if long else "wrap" for i in range(len(rows))}
    return Table(
        "ablations", "Questions and answers", READ, pd.DataFrame(data), pd.DataFrame(rows),
        ("variant", "question", "the paper", "pairs", "verdict"), classes=classes, html=markup, stacked=True,
    )  # fmt: skip


def effect_table(found: Sequence[Effect]) -> Table:
    """Return one row per variant and task."""
    rows = [
        {
            "variant": series_label(e.series),
            "task": task_label(e.task),
            "at": f"{e.episode} episodes{'' if e.final else ' (so far)'}",
            "effect": with_interval(e.interval),
            "of medians": with_interval(e.medians),
            "paper's": "–" if e.paper is None else signed(e.paper),
            "pairs": f"{len(e.differences)}/{e.expected}",
            "verdict": e.verdict or "no number to compare",
        }
        for e in found
    ]
    classes = {
        (i, "verdict"): f"wrap verdict {e.verdict.split()[0] if e.verdict else 'none'}" for i, e in enumerate(found)
    } | {(i, "pairs"): "partial" for i, e in enumerate(found) if len(e.differences) < e.expected}
    caption = "The same by task. Pairs: seeds with both runs at that evaluation, of those expected."
    return Table(
        "ablations-by-task", "Effects by task", caption, effect_frame(found), pd.DataFrame(rows),
        ("variant", "task", "at", "verdict"), classes=classes, group="variant",
    )  # fmt: skip


def effect_frame(found: Sequence[Effect]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "series": e.series, "variant": e.variant, "against": e.against, "task": e.task, "episode": e.episode,
            "final": e.final, "effect": e.interval.value, "low": e.interval.low, "high": e.interval.high,
            "of_medians": e.medians.value, "of_medians_low": e.medians.low, "of_medians_high": e.medians.high,
            "paper_effect": e.paper, "pairs": len(e.differences), "pairs_expected": e.expected,
            "seeds": " ".join(map(str, e.seeds)), "differences": " ".join(f"{d:.10g}" for d in e.differences),
            "verdict": e.verdict,
        }
        for e in found
    )  # fmt: skip


def effect_figure(found: Sequence[Effect], results: Results) -> Figure:
    """Return a forest plot: per task, a row per variant with our interval, the pairs and the paper's number."""
    series = list(dict.fromkeys(effect.series for effect in found))
    frame = effect_frame(found)
    reach = max(
        [
            abs(v)
            for v in frame[["effect", "low", "high", "of_medians", "paper_effect"]].to_numpy(float).ravel()
            if np.isfinite(v)
        ],
        default=1.0,
    )
    panels = []
    for task in sort_tasks(frame["task"]):
        own = {e.series: e for e in found if e.task == task}
        said = "; ".join(f"{series_label(s)} {with_interval(e.interval)}" for s, e in own.items())
        draw = functools.partial(effect_panel, effects=own, series=series, reach=reach * 1.08)
        panels.append(Panel(task_label(task), draw, f"Effects on {task_label(task)}: {said}"))
    caption = (
        "Right of the line the variant is better than its partner, left of it worse. Thick: our effect with its 95 % "
        "interval; small points: single pairs of runs; upright line: our difference of medians; hollow diamond: the "
        "paper's."
    )
    left, height = row_space(row_labels([series_label(name) for name in series]))
    keys = [
        Key("our effect, 95 % interval", style.INK),
        Key("difference of medians: ours", style.INK, "upright"),
        Key("the paper's", style.PAPER, "diamond"),
    ]
    figure = Figure(
        "ablation-effects", "Effects of all variants", caption, panels, frame, keys, 2,
        panel_size=(max(left + 2.4, 3.6), height), note=note_of(results), left=left,
    )  # fmt: skip
    return with_commits(figure, results, [*series, "base"])


def effect_panel(axes: Axes, *, effects: dict[str, Effect], series: Sequence[str], reach: float) -> None:
    axes.axvline(0, color=style.MUTED, linewidth=0.9)
    for place, name in enumerate(series):
        effect = effects.get(name)
        if effect is None:
            continue
        colour, y = style.colour(effect.variant), len(series) - 1 - place
        if effect.interval.known:
            axes.plot([effect.interval.low, effect.interval.high], [y, y], color=colour, linewidth=2.6, zorder=2)
        axes.plot(
            list(effect.differences), [y] * len(effect.differences), "o", color=colour, markersize=2.4, alpha=0.55
        )
        axes.plot([effect.interval.value], [y], "o", color=colour, markersize=5.5, zorder=3)
        axes.plot([effect.medians.value], [y], "|", color=colour, markersize=11, markeredgewidth=1.6, zorder=3)
        if effect.paper is not None:
            axes.plot(
                [effect.paper], [y], "D", markerfacecolor="none", markeredgecolor=style.PAPER, markersize=5.5, zorder=4
            )
    axes.set_yticks(range(len(series)), row_labels([series_label(name) for name in reversed(series)]))
    axes.set_ylim(-0.7, len(series) - 0.3)
    axes.set_xlim(-reach, reach)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("difference in return")
