"""Evaluation episodes -> learning curves: medians and percentiles per point, and how they lie to the paper's band.

Frames in, frames out; draws nothing.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from analysis import published
from analysis.runs import sort_tasks

POINT = ["series", "variant", "task", "episode"]
LOW, HIGH = 0.05, 0.95
X_AXES = {
    "episode": "collected episodes",
    "env_steps": "environment steps",
    "updates": "gradient updates",
    "hours": "wall-clock hours",
}


def learning_curves(evals: pd.DataFrame) -> pd.DataFrame:
    """Return one row per series, task and evaluation point.

    Columns: median, p5, p95 (linear percentiles of all episodes of all seeds pooled, as in the paper), mean, std
    (population), seeds, episodes (how many went in), and the medians over them of env_steps, updates and hours.
    """
    if evals.empty:
        columns = [*POINT, "seeds", "episodes", "median", "p5", "p95", "mean", "std", "env_steps", "updates", "hours"]
        return pd.DataFrame({name: pd.Series(dtype=object) for name in columns})
    groups = evals.groupby(POINT, observed=True, sort=False)
    returns = groups["return"]
    percentiles = returns.quantile([LOW, 0.5, HIGH]).unstack()
    frame = pd.DataFrame(
        {
            "seeds": groups["seed"].nunique(),
            "episodes": returns.size(),
            "median": percentiles[0.5],
            "p5": percentiles[LOW],
            "p95": percentiles[HIGH],
            "mean": returns.mean(),
            "std": returns.std(ddof=0),
            "env_steps": groups["env_steps"].median(),
            "updates": groups["updates"].median(),
            "hours": groups["hours"].median(),
        }
    ).reset_index()
    order = {task: i for i, task in enumerate(sort_tasks(frame["task"]))}
    first = {series: i for i, series in enumerate(dict.fromkeys(evals["series"]))}
    keys = frame.assign(_task=frame["task"].map(order), _series=frame["series"].map(first))
    return frame.loc[keys.sort_values(["_series", "_task", "episode"]).index].reset_index(drop=True)


def against_paper(curves: pd.DataFrame, figure: published.PaperFigure) -> pd.DataFrame:
    """Return the curves with paper_label, paper_median, paper_p5, paper_p95 and a verdict for our median.

    `inside`, `above` or `below` the paper's 5-95 percentile band in the bin that contains the point; "" where the paper
    has no such curve or bin, or its curve is of another design (`published.NOT_IN_PAPER`).
    """
    frame = curves.assign(
        paper_label=curves["variant"].map(figure.curves),
        bin=[published.bin_of(int(episode)) for episode in curves["episode"]],
    )
    paper = published.curves(figure.name).rename(
        columns={"label": "paper_label", "median": "paper_median", "p5": "paper_p5", "p95": "paper_p95"}
    )
    frame = frame.merge(
        paper[["task", "paper_label", "bin", "paper_median", "paper_p5", "paper_p95"]].astype({"bin": object}),
        how="left",
        on=["task", "paper_label", "bin"],
    )
    frame["verdict"] = [
        ""
        if pd.isna(low) or variant in published.NOT_IN_PAPER
        else "below"
        if median < low
        else "above"
        if median > high
        else "inside"
        for variant, median, low, high in zip(
            frame["variant"], frame["median"], frame["paper_p5"], frame["paper_p95"], strict=True
        )
    ]
    return frame


def verdict_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return per series and task: points inside, above, below, and the verdict of the last point with its n."""
    rows = []
    for (series, task), group in frame[frame["verdict"] != ""].groupby(["series", "task"], sort=False, observed=True):
        last = group.loc[group["episode"].idxmax()]
        counts = group["verdict"].value_counts()
        rows.append(
            {
                "series": series,
                "task": task,
                **{name: int(counts.get(name, 0)) for name in ("inside", "above", "below")},
                "last_episode": int(last["episode"]),
                "median": last["median"],
                "paper_median": last["paper_median"],
                "paper_p5": last["paper_p5"],
                "paper_p95": last["paper_p95"],
                "seeds": int(last["seeds"]),
                "episodes": int(last["episodes"]),
                "verdict": last["verdict"],
            }
        )
    return pd.DataFrame(rows)


TOLD_APART = 0.05
"""Largest p at which returns count as above those of random actions."""


def beside_random(counts: pd.DataFrame, evals: pd.DataFrame, random: pd.DataFrame) -> pd.DataFrame:
    """Return `verdict_counts` with random_median, random_episodes and random_p: the last point's episodes beside the
    random ones that runs of that task begin with (one-sided Mann-Whitney test; NaN where there are none).

    evals, random: episodes of kinds `eval` and `seed` of any runs with the same largest return.
    """
    rows = []
    for row in counts.to_dict("records"):
        own = evals[(evals["series"] == row["series"]) & (evals["task"] == row["task"])]
        ours = own.loc[own["episode"] == row["last_episode"], "return"]
        theirs = random.loc[random["task"] == row["task"], "return"]
        p = mannwhitneyu(ours, theirs, alternative="greater").pvalue if len(theirs) else np.nan
        rows.append((theirs.median(), len(theirs), p))
    return counts.assign(
        **dict(zip(("random_median", "random_episodes", "random_p"), zip(*rows, strict=True), strict=True))
    )


def final_scores(evals: pd.DataFrame) -> pd.DataFrame:
    """Return one row per series, task and seed that has all of its last evaluation: the mean return over its episodes.

    A run that is not there yet has no final score, and no row: neither earlier nor fewer episodes stand in for it.
    """
    final = evals[evals["episode"] == evals["last_point"]]
    there = final.groupby(["series", "variant", "task", "seed"], observed=True)["return"].transform("size")
    final = final[there >= final["eval_episodes"]]
    if final.empty:
        return pd.DataFrame(
            {name: pd.Series(dtype=object) for name in [*POINT[:3], "seed", "score", "episodes", "max_return"]}
        )
    groups = final.groupby(["series", "variant", "task", "seed"], observed=True, sort=False)
    frame = pd.DataFrame(
        {
            "score": groups["return"].mean(),
            "episodes": groups["return"].size(),
            "max_return": groups["max_return"].first(),
        }
    )
    return frame.reset_index()
