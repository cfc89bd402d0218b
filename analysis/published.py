"""The paper's published numbers (analysis/reference/*.csv) and what our variants correspond to in them.

The only place that knows the paper's bins: a curve's x is the left edge of a bin 1000/19 = 52.6 collected episodes
wide; 20 bins, the first from 5, the last from 1005 to 1057.6.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

REFERENCE = Path(__file__).parent / "reference"
CITATION = (
    "Hafner, Lillicrap, Fischer, Villegas, Ha, Lee, Davidson: Learning Latent Dynamics for Planning from Pixels, "
    "ICML 2019 (arXiv 1811.04551v5)"
)
FIRST_EPISODE, EPISODES, PARTS = 5, 1000, 19
BIN_WIDTH = EPISODES / PARTS
LAST_EDGE = FIRST_EPISODE + EPISODES + BIN_WIDTH
MAX_RETURN = 1000
"""Of an episode of 1,000 environment steps, at most 1 each."""
UPDATES_PER_EPISODE = 100
"""C: the paper's gradient steps per collected episode, for an x axis in updates."""


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """One figure of the paper: which curves it has and which of our variants they are."""

    name: str
    number: str
    title: str
    file: str
    curves: dict[str, str]
    """Our variant -> the paper's label. Two variants may stand for one curve."""

    @property
    def own(self) -> set[str]:
        """Return the variants that no earlier figure shows."""
        earlier: set[str] = set()
        for name, figure in FIGURES.items():
            if name == self.name:
                break
            earlier |= set(figure.curves)
        return set(self.curves) - earlier


FIGURES: dict[str, PaperFigure] = {
    figure.name: figure
    for figure in (
        PaperFigure(
            "fig4", "Figure 4", "Model designs", "fig4_model_designs.csv",
            {
                "base": "PlaNet (RSSM)", "stochastic": "Stochastic (SSM)",
                "deterministic_official": "Deterministic (GRU)", "deterministic": "Deterministic (GRU)",
            },
        ),
        PaperFigure(
            "fig5", "Figure 5", "Agent designs", "fig5_agent_designs.csv",
            {"base": "PlaNet", "random_collection": "Random collection", "random_shooting": "Random shooting"},
        ),
        PaperFigure(
            "fig7", "Figure 7", "One agent for all tasks", "fig7_multitask_per_task.csv",
            {"base": "Separate agents", "multitask": "Single agent"},
        ),
        PaperFigure(
            "fig8", "Figure 8", "Latent overshooting", "fig8_overshooting.csv",
            {
                "base": "RSSM", "overshooting": "RSSM + Overshooting",
                "drnn": "DRNN", "drnn_overshooting": "DRNN + Overshooting",
            },
        ),
        PaperFigure(
            "fig9", "Figure 9", "Activation function", "fig9_activation.csv",
            {"base": "PlaNet (ReLU)", "elu": "PlaNet (ELU)", "stochastic": "SSM (ReLU)", "stochastic_elu": "SSM (ELU)"},
        ),
    )
}  # fmt: skip


@functools.cache
def curves(name: str) -> pd.DataFrame:
    """Return a figure's curves: task, label, bin, left, right, median, p5, p95 (episodes and return)."""
    raw = pd.read_csv(REFERENCE / FIGURES[name].file)
    return _binned(raw).rename(columns={"variant": "label", "median_return": "median"})


@functools.cache
def multitask_average() -> pd.DataFrame:
    """Return Figure 6: label, bin, left, right, mean, low, high (mean -+ one standard deviation)."""
    raw = pd.read_csv(REFERENCE / "fig6_multitask_average.csv")
    names = {"variant": "label", "mean_return": "mean", "mean_minus_std": "low", "mean_plus_std": "high"}
    return _binned(raw).rename(columns=names)


def _binned(raw: pd.DataFrame) -> pd.DataFrame:
    bins = ((raw["episodes"] - FIRST_EPISODE) / BIN_WIDTH).round().astype(int)  # the files are rounded to 0.1
    left = FIRST_EPISODE + bins * BIN_WIDTH
    return raw.drop(columns="episodes").assign(bin=bins, left=left, right=left + BIN_WIDTH)


def bin_of(episode: int) -> int | None:
    """Return the paper's bin that contains an episode count, None before its first and after its last."""
    index = (episode - FIRST_EPISODE) * PARTS // EPISODES  # in integers: 1005 must fall into bin 19
    return int(index) if 0 <= index <= PARTS else None


@functools.cache
def lines() -> pd.DataFrame:
    """Return the dashed lines of the curve figures: task, baseline (D4PG or A3C), return."""
    raw = pd.read_csv(REFERENCE / "reference_lines.csv")
    return raw.assign(baseline=raw["baseline"].str.split("_").str[0])


@functools.cache
def table1() -> pd.DataFrame:
    """Return Table 1 as printed: method, input, episodes, one column per task."""
    return pd.read_csv(REFERENCE / "table1.csv")


@functools.cache
def planner_sweep() -> pd.DataFrame:
    """Return Figure 12: elite_fraction, horizon, iterations, proposals, return_approx (+-1.4)."""
    return pd.read_csv(REFERENCE / "fig12_planner_sweep_cheetah_true_sim.csv")


COMPARED_WITH = {"stochastic_elu": "stochastic", "drnn_overshooting": "drnn"}
"""Variants whose question is about another variant than base."""


NOT_IN_PAPER = {"deterministic"}
"""Variants drawn beside a curve of the paper that they do not repeat: it trains its prior, the paper's does not."""

LAST = 5
"""Medians that make a curve's final level."""


def paper_effect(variant: str, task: str, episode: int) -> float | None:
    """Return what the paper's curves say a variant has changed after `episode` collected episodes.

    In the curves' last five bins (and after them) the difference of their final levels, before that of the two medians
    in the bin of `episode`; None where the paper has no curve, or none there.
    """
    against = COMPARED_WITH.get(variant, "base")
    if variant == "base" or variant in NOT_IN_PAPER:
        return None
    for name, figure in FIGURES.items():
        if variant in figure.own:
            ours = level_at(name, figure.curves[variant], task, episode)
            other = level_at(name, figure.curves[against], task, episode)
            return None if ours is None or other is None else ours - other
    return None


def level_at(figure: str, label: str, task: str, episode: int) -> float | None:
    """Return a curve's median in the bin of `episode`, its final level in the last five bins; None if not there."""
    rows = _rows(figure, label, task)
    if len(rows) and episode >= rows["left"].iloc[-LAST:].iloc[0]:
        return final_level(figure, label, task)
    at = rows.loc[rows["bin"] == bin_of(episode), "median"]
    return float(at.iloc[0]) if len(at) else None


def final_level(figure: str, label: str, task: str) -> float | None:
    """Return the mean of a curve's last five medians: what the paper's ablation ends at; None if it is not there."""
    rows = _rows(figure, label, task)
    return float(rows["median"].tail(LAST).mean()) if len(rows) else None


def _rows(figure: str, label: str, task: str) -> pd.DataFrame:
    data = curves(figure)
    return data[(data["label"] == label) & (data["task"] == task)].sort_values("bin")
