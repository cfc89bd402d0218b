"""Figure 12: CEM's settings on cheetah run with the true simulator, our cells beside the paper's 320."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import published, style
from analysis.content import Block, Section, Table
from analysis.figures import Figure, Key, Panel
from analysis.questions import series_label, split
from analysis.runs import Results, Run
from analysis.scores import SWEPT, note_of, with_commits

GRID = ("elite_fraction", "horizon", "iterations", "proposals")
LOWEST, HIGHEST = 0.0, 1000.0


def settings_of(run: Run) -> tuple[float, int, int, int]:
    """Return elite fraction, horizon, iterations, proposals."""
    planner = run.config["planner"]
    fraction = planner.get("elite_fraction") or planner["elites"] / planner["candidates"]
    return round(float(fraction), 6), planner["horizon"], planner["iterations"], planner["candidates"]


def belongs(run: Run) -> bool:
    """Return whether a run is a cell of the sweep: cheetah, true simulator, nothing but the grid's keys changed."""
    name, changes = split(run.variant)
    meant = SWEPT | {"schedule.eval_episodes"}
    return (
        run.dynamics == "simulator" and run.task == "cheetah_run" and name == "true_simulator" and set(changes) <= meant
    )


def cells_of(results: Results) -> tuple[dict[tuple[float, int, int, int], list[Run]], list[Run]]:
    """Return the runs with an episode by cell, and those left out.

    A cell has one series, that with the most episodes. Runs of a variant that were not made alike are in none.
    """
    by_series: dict[tuple[float, int, int, int], dict[str, list[Run]]] = {}
    left_out = []
    for run in results.runs:
        if belongs(run) and len(run.evals()):
            if run.series == run.variant:
                by_series.setdefault(settings_of(run), {}).setdefault(run.series, []).append(run)
            else:
                left_out.append(run)
    cells = {}
    for cell, series in by_series.items():
        first, *others = sorted(series.values(), key=lambda runs: -sum(len(run.evals()) for run in runs))
        cells[cell] = first
        left_out += [run for runs in others for run in runs]
    return cells, left_out


def sweep(results: Results) -> pd.DataFrame:
    """Return the paper's 320 cells with our mean, standard deviation and counts where we have runs, NaN elsewhere."""
    runs_of, _ = cells_of(results)
    values = {cell: [float(r) for run in runs for r in run.evals()["return"]] for cell, runs in runs_of.items()}
    seeds = {cell: {run.seed for run in runs} for cell, runs in runs_of.items()}
    frame = published.planner_sweep().rename(columns={"return_approx": "paper"})
    cells = [tuple(row) for row in frame[list(GRID)].itertuples(index=False)]
    found = [values.get((float(f), int(h), int(i), int(j))) for f, h, i, j in cells]
    return frame.assign(
        ours=[np.mean(v) if v else np.nan for v in found],
        std=[np.std(v) if v else np.nan for v in found],
        episodes=[len(v) if v else 0 for v in found],
        seeds=[len(seeds.get((float(f), int(h), int(i), int(j)), ())) for f, h, i, j in cells],
    )


def sweep_section(results: Results) -> Section | None:
    """Return the heat maps and marginal means, or None where no cell has an episode."""
    frame = sweep(results)
    there = int((frame["episodes"] > 0).sum())
    if there < 2:
        return None
    several = sorted({int(n) for n in frame.loc[frame["episodes"] > 0, "episodes"]})
    counts = f"{several[0]}" if len(several) == 1 else f"{several[0]}–{several[-1]}"
    panels = [
        Panel(
            "Ours", functools.partial(heat_panel, frame=frame, column="ours"), f"Ours: {there} of {len(frame)} cells"
        ),
        Panel("Paper", functools.partial(heat_panel, frame=frame, column="paper"), "The paper's 320 cells"),
        Panel("Cell by cell", functools.partial(scatter_panel, frame=frame), "Our cells against the paper's"),
    ]
    caption = (
        "Each small block: horizon (6, 8, 10, 12, 14, left to right) by proposals (100, 300, 500, 1,000, upwards); "
        "blocks left to right: iterations 3, 5, 10, 15; blocks upwards: elite fraction 0.05, 0.1, 0.3, 0.5. Colour: "
        f"return, from {LOWEST:.0f} (dark) to {HIGHEST:.0f} (bright); empty: no run. Ours: mean over {counts} "
        f"episodes per cell, {there} of {len(frame)} cells. The paper's values are read from its colours (±1.4). "
        "Right: a point per cell; above the diagonal ours is higher. Vertical bars: one standard deviation of the "
        "cell's episodes (population) up and down, no interval of the mean; none where it has one episode."
    )
    runs_of, left_out = cells_of(results)
    if left_out:
        names = ", ".join(dict.fromkeys(f"{series_label(run.series)}, seed {run.seed}" for run in left_out))
        caption += (
            f" Left out: {len(left_out)} run{'s' * (len(left_out) > 1)} made otherwise than others of the same "
            f"settings, or of settings that a longer series has: {names}."
        )
    figure = Figure(
        "fig12", "Planner settings, cheetah run, true simulator", caption, panels, frame,
        [Key("equal to the paper", style.MUTED, "dashed")], 3, panel_size=(3.6, 3.2), note=note_of(results),
    )  # fmt: skip
    series = {run.series for runs in runs_of.values() for run in runs}
    blocks: list[Block] = [with_commits(figure, results, series), marginal_table(frame)]
    return Section("fig12", "Figure 12: planner settings with the true simulator", blocks)


def heat_panel(axes: Axes, *, frame: pd.DataFrame, column: str) -> None:
    fractions, horizons, iterations, proposals = (sorted(frame[name].unique()) for name in GRID)
    gap = 0.6
    width, height = len(horizons) + gap, len(proposals) + gap
    for a, fraction in enumerate(fractions):
        for b, iteration in enumerate(iterations):
            block = frame[(frame["elite_fraction"] == fraction) & (frame["iterations"] == iteration)]
            grid = block.pivot(index="proposals", columns="horizon", values=column)
            x = b * width + np.arange(len(horizons) + 1)
            y = a * height + np.arange(len(proposals) + 1)
            values = np.ma.masked_invalid(grid.to_numpy(float))
            axes.pcolormesh(x, y, values, cmap="viridis", vmin=LOWEST, vmax=HIGHEST, linewidth=0)
            axes.plot(
                [x[0], x[-1], x[-1], x[0], x[0]], [y[0], y[0], y[-1], y[-1], y[0]], color=style.GRID, linewidth=0.7
            )
    axes.set_xticks([b * width + len(horizons) / 2 for b in range(len(iterations))], [f"{i:g}" for i in iterations])
    axes.set_yticks([a * height + len(proposals) / 2 for a in range(len(fractions))], [f"{f:g}" for f in fractions])
    axes.set_xlabel("iterations (inside: horizon 6 to 14)")
    axes.set_ylabel("elite fraction (inside: proposals)")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def scatter_panel(axes: Axes, *, frame: pd.DataFrame) -> None:
    axes.plot([0, 1000], [0, 1000], color=style.MUTED, linewidth=0.9, dashes=(4, 2))
    there = frame[frame["episodes"] > 0]
    axes.errorbar(
        there["paper"], there["ours"], yerr=there["std"].where(there["episodes"] > 1), fmt="o", markersize=3.2,
        color=style.colour("true_simulator"), elinewidth=0.7, alpha=0.8,
    )  # fmt: skip
    axes.set_xlim(0, 1000)
    axes.set_ylim(0, 1000)
    axes.set_xlabel("paper's return")
    axes.set_ylabel("our return")


def marginal_table(frame: pd.DataFrame) -> Table:
    """Return the mean over all other settings, ours over our cells and the paper's over the very same cells."""
    there = frame[frame["episodes"] > 0]
    rows, data = [], []
    for name in GRID:
        for value in sorted(frame[name].unique()):
            ours, whole = there[there[name] == value], frame[frame[name] == value]
            mean = float(ours["ours"].mean()) if len(ours) else None
            same = float(ours["paper"].mean()) if len(ours) else None
            everything = float(whole["paper"].mean())
            data.append(
                {
                    "setting": name, "value": value, "cells": len(ours), "ours": mean, "paper_same_cells": same,
                    "paper_all_cells": everything,
                }
            )  # fmt: skip
            rows.append(
                {
                    "setting": name.replace("_", " "), "value": f"{value:g}", "ours": _number(mean),
                    "paper, same cells": _number(same), "paper, all cells": _number(everything),
                    "cells": f"{len(ours)}/{len(whole)}",
                }
            )  # fmt: skip
    caption = "Mean return over all other settings. The comparison that counts is with the paper over the same cells."
    return Table(
        "fig12-marginals", "What each setting does", caption, pd.DataFrame(data), pd.DataFrame(rows), ("setting",),
        group="setting",
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
