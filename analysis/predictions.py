"""Figures 10 and 11: how far the model sees, from the predictions/ and strips/ that runs wrote.

Knows the files: predictions/open_loop.csv (task, episode, distance, image_error, reward_error, state_error), probe.csv
(task, episode, distance, dimension, name, error), strip_*.png, open_loop_*.gif; strips/reconstruction_<episodes>.png.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.content import Block, Fold, Gallery, Picture, Section
from analysis.figures import Figure, Key, Panel
from analysis.questions import series_label, task_label
from analysis.runs import Problem, Results, Run, sort_tasks
from analysis.scores import note_of, with_commits

ERRORS = {
    "image_error": "image: squared error per pixel",
    "reward_error": "reward: absolute error per decision",
    "state_error": "simulator state: error in standard deviations",
}
CONTEXT = 5
MAX_BYTES = 3_000_000
"""A picture above this is not put into the page."""


def read_predictions(results: Results, name: str, wanted: Sequence[str]) -> pd.DataFrame:
    """Return one file of all runs' predictions/ together, with variant, series, run task and seed.

    A file that cannot be read, lacks a column or holds values that are not finite is left out and becomes a problem.
    """
    frames = []
    for run in results.runs:
        path = run.path / "predictions" / name
        if not path.exists():
            continue
        try:
            frame = pd.read_csv(path)
            lacking = [column for column in wanted if column not in frame]
            if lacking:
                raise ValueError(f"it lacks {', '.join(lacking)}")
            if frame[wanted].isna().any(axis=None):
                raise ValueError("it holds values that are no numbers")
        except (OSError, ValueError) as error:
            text = f"{path} cannot be used: {error}; write it anew with python -m planet.evaluate --open-loop"
            results.problems.append(Problem("unusable", f"{run.name}/predictions/{name}", text, run.preset))
            continue
        frame = frame.assign(variant=run.variant, series=run.series, seed=run.seed)
        if "task" not in frame:
            frame["task"] = run.task
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def predictions_section(results: Results) -> Section | None:
    """Return errors over distance, film strips and videos, state diagnostics and reconstructions; None without any."""
    blocks: list[Block] = []
    errors = read_predictions(results, "open_loop.csv", ["episode", "distance", *ERRORS])
    if len(errors):
        blocks.append(distance_figure(errors, results))
    blocks += strips(results)
    probes = read_predictions(results, "probe.csv", ["episode", "distance", "dimension", "name", "error"])
    if len(probes):
        blocks += probe_figures(probes, results)
    blocks += reconstructions(results)
    if not blocks:
        return None
    lead = (
        f"From the posterior after {CONTEXT} frames the model predicts with the episode's own actions and without "
        "looking. The episodes are held out and the same for every variant of a task."
    )
    return Section("predictions", "Figures 10 and 11: how far the model sees", blocks, lead)


def over_distance(errors: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return per series, task and distance the mean over seeds and episodes of each column, with the counts."""
    groups = errors.groupby(["series", "variant", "task", "distance"], sort=False, observed=True)
    frame = groups[list(columns)].mean()
    frame["seeds"] = groups["seed"].nunique()
    frame["episodes"] = groups.size()
    return frame.reset_index()


def distance_figure(errors: pd.DataFrame, results: Results) -> Figure:
    frame = over_distance(errors, list(ERRORS))
    series = dict(zip(frame["series"], frame["variant"], strict=True))
    tasks = sort_tasks(frame["task"])
    panels = []
    for task in tasks:
        own = frame[frame["task"] == task]
        for column, label in ERRORS.items():
            draw = functools.partial(distance_panel, own=own, column=column)
            short = label.split(":")[0]
            panels.append(Panel(f"{task_label(task)}: {short}", draw, f"{label} over distance, {task_label(task)}"))
    caption = (
        "Error against the distance of the prediction, in decisions after the last frame seen; lower is better. Mean "
        "over seeds and held-out episodes. "
        + "; ".join(label for label in ERRORS.values())
        + ". The state is read off the features by a linear probe fitted on the other episodes, dynamics frozen."
    )
    keys = [Key(series_label(name), style.colour(variant)) for name, variant in series.items()]
    figure = Figure(
        "open-loop-error", "Open-loop error over distance", caption, panels, frame, keys, 3, panel_size=(3.3, 2.0),
        note=note_of(results),
    )  # fmt: skip
    return with_commits(figure, results, series)


def distance_panel(axes: Axes, *, own: pd.DataFrame, column: str) -> None:
    for (series, variant), curve in own.groupby(["series", "variant"], sort=False):
        colour, dash = style.colour(str(variant)), style.dashes(str(series), str(variant))
        curve = curve.sort_values("distance")
        axes.plot(curve["distance"], curve[column], color=colour, linewidth=1.7, dashes=dash or (None, None))
    axes.set_xlim(0, max(2, float(own["distance"].max())))
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=4)
    axes.set_xlabel("distance (decisions)")


def probe_figures(probes: pd.DataFrame, results: Results) -> list[Block]:
    """Return Figure 11 for PlaNet: the error of every simulator dimension over distance, a panel per task."""
    base = probes[probes["variant"] == "base"]
    shown = base if len(base) else probes
    blocks: list[Block] = []
    for series in dict.fromkeys(shown["series"]):
        own = shown[shown["series"] == series]
        groups = own.groupby(["task", "dimension", "name", "distance"], sort=False)
        frame = groups["error"].mean().to_frame()
        frame["seeds"], frame["episodes"] = groups["seed"].nunique(), groups.size()
        frame = frame.reset_index()
        panels = []
        for task in sort_tasks(frame["task"]):
            part = frame[frame["task"] == task]
            height = {str(n): i for i, n in enumerate(dict.fromkeys(part["name"]))}
            draw = functools.partial(probe_panel, own=part, names=list(height))
            panels.append(Panel(task_label(task), draw, f"State error by dimension, {task_label(task)}"))
        most = max(frame.groupby("task")["dimension"].nunique())
        caption = (
            "Each row is one quantity of the simulator (positions first, then velocities), each column a distance of "
            "the open-loop prediction. Bright: the probe reads the quantity well from the predicted latent state; "
            "dark: the error is as large as the quantity's own spread (one standard deviation) or larger."
        )
        figure = Figure(
            f"state-diagnostics-{series}".replace(" · ", "-").replace(" ", "-"),
            f"State diagnostics, {series_label(series)}", caption, panels, frame, [], 3,
            panel_size=(3.6, 0.8 + 0.16 * most), note=note_of(results), left=1.3,
        )  # fmt: skip
        blocks.append(with_commits(figure, results, [series]))
    return blocks


def probe_panel(axes: Axes, *, own: pd.DataFrame, names: Sequence[str]) -> None:
    grid = own.pivot_table(index="name", columns="distance", values="error", sort=False).loc[list(names)]
    x = np.append(grid.columns.to_numpy(float), grid.columns[-1] + 1) - 0.5
    y = np.arange(len(names) + 1)
    axes.pcolormesh(x, y, grid.to_numpy()[::-1], cmap="viridis_r", vmin=0, vmax=1, rasterized=True)
    axes.set_yticks(np.arange(len(names)) + 0.5, list(reversed(names)), fontsize=6.5)
    axes.grid(visible=False)
    axes.set_xlabel("distance (decisions)")


# ----------------------------------------------------------------------------------------------------- pictures


def strips(results: Results) -> list[Block]:
    """Return film strips and GIFs: one run per series and task, the lowest seed that has them."""
    blocks: list[Block] = []
    for (series, task), runs in _by_series(results).items():
        for run in runs:
            films = sorted((run.path / "predictions").glob("strip_*.png"))
            videos = sorted((run.path / "predictions").glob("open_loop_*.gif"))
            if not films and not videos:
                continue
            where = f"{series_label(series)} on {task_label(task)}"
            caption = (
                f"{run.name}. Rows of the strips, columns of the videos: truth, prediction, error (grey is none). The "
                f"line marks where the model stops seeing frames: {CONTEXT} of context, then open loop. Time runs "
                "from left to right."
            )
            pictures = [_picture(path, f"Open-loop prediction, {where}") for path in [*films, *videos]]
            blocks.append(Gallery(f"Open-loop predictions: {where}", caption, [p for p in pictures if p is not None]))
            break
    return _first_open(blocks, "More open-loop predictions", 6)


def reconstructions(results: Results) -> list[Block]:
    """Return reconstruction strips over training: at most five points of time per series and task."""
    blocks: list[Block] = []
    for (series, task), runs in _by_series(results).items():
        for run in runs:
            found = sorted((run.path / "strips").glob("reconstruction_*.png"))
            if not found:
                continue
            keep = sorted({round(i) for i in np.linspace(0, len(found) - 1, 5)})
            pictures = [_picture(found[i], f"Reconstructions, {run.name}") for i in keep]
            caption = (
                f"{run.name}, an evaluation episode from its beginning. Rows: truth, reconstruction with every frame "
                "seen, and prediction from the line on without looking. The number is the count of collected episodes."
            )
            title = f"Reconstructions over training: {series_label(series)} on {task_label(task)}"
            blocks.append(Gallery(title, caption, [p for p in pictures if p is not None]))
            break
    return _first_open(blocks, "More reconstructions", 2)


def _first_open(blocks: list[Block], title: str, count: int) -> list[Block]:
    return (
        [*blocks[:count], Fold(f"{title} ({len(blocks) - count})", blocks[count:])] if len(blocks) > count else blocks
    )


def _by_series(results: Results) -> Mapping[tuple[str, str], list[Run]]:
    found: dict[tuple[str, str], list[Run]] = {}
    for run in results.runs:
        found.setdefault((run.series, run.task), []).append(run)
    return found


def _picture(path: Path, alt: str) -> Picture | None:
    if path.stat().st_size > MAX_BYTES:
        return None
    number = re.search(r"_(\d+)$", path.stem)
    name = path.name
    if number:
        count = int(number[1])
        name = f"after {count} episodes" if path.stem.startswith("reconstruction") else f"held-out episode {count}"
    return Picture(path, f"{alt}, {name}", name)
