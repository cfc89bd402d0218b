"""Figures 10 and 11: how far the model sees, from the predictions/ and strips/ that runs wrote.

Knows the files: predictions/open_loop.csv (task, trained_episodes, episode, distance, image_error, reward_error,
state_error), probe.csv (task, trained_episodes, episode, distance, dimension, name, error), strip_*.png,
open_loop_*.gif; strips/reconstruction_<episodes>.png. Files without `trained_episodes` are of an earlier version.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import published, style
from analysis.content import Block, Fold, Gallery, Picture, Section, Table, Text
from analysis.figures import Figure, Key, Panel
from analysis.overall import told_apart
from analysis.questions import series_label, task_label
from analysis.runs import Problem, Results, Run, sort_tasks
from analysis.scores import note_of, with_commits

ERRORS = {
    "image_error": "image: squared error per pixel",
    "reward_error": "reward: absolute error per decision",
    "state_error": "simulator state: error in standard deviations",
}
CONTEXT = 5
NEAR = 12
"""The paper's planning horizon."""
ACTION_REPEAT = {
    "cartpole_swingup": 8, "reacher_easy": 4, "cheetah_run": 4, "finger_spin": 2, "cup_catch": 4, "walker_walk": 2
}  # fmt: skip
"""The paper's (Appendix A), with which the held-out episodes were recorded."""
TITLE_WIDTH = 34
"""Characters on a line of a panel's title."""
UNKNOWN = -1
"""In place of `trained_episodes` where a file does not say it."""
MAX_BYTES = 3_000_000
"""A picture above this is not put into the page."""


def read_predictions(results: Results, name: str, wanted: Sequence[str]) -> pd.DataFrame:
    """Return one file of all runs' predictions/ together, with the run's name, variant, series and seed.

    `trained_episodes` is `UNKNOWN` where a file lacks it; `own_repeat` says whether the run's action repeat is the one
    that the task's held-out episodes were recorded with.

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
            if frame.empty:
                raise ValueError("it holds no rows")
            numbers = frame[[column for column in wanted if column != "name"]]
            if any(kind.kind not in "iuf" for kind in numbers.dtypes) or not np.isfinite(numbers).all(axis=None):
                raise ValueError("it holds values that are no numbers")
            if "trained_episodes" not in frame:
                frame["trained_episodes"] = UNKNOWN
            elif frame["trained_episodes"].dtype.kind != "i":
                raise ValueError("it holds trained_episodes that are no whole numbers")
        except (OSError, ValueError) as error:
            text = f"{path} cannot be used: {error}; write it anew with python -m planet.evaluate --open-loop"
            results.problems.append(Problem("unusable", f"{run.name}/predictions/{name}", text, run.preset))
            continue
        frame = frame.assign(run=run.name, variant=run.variant, series=run.series, seed=run.seed)
        if "task" not in frame:
            frame["task"] = run.task
        repeat = run.config["env"].get("action_repeat", 0)  # 0: each task's own
        frame["own_repeat"] = [repeat in (0, ACTION_REPEAT.get(str(task), repeat)) for task in frame["task"]]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def predictions_section(results: Results) -> Section | None:
    """Return errors over distance, film strips and videos, state diagnostics and reconstructions; None without any."""
    blocks: list[Block] = []
    errors = read_predictions(results, "open_loop.csv", ["episode", "distance", *ERRORS])
    if len(errors):
        same, others = same_episodes(errors)
        blocks += [distance_figure(same, results)] if len(same) else []
        table = ratio_table(same)
        blocks += [table] if table is not None else []
        blocks += [Text(others)] if others else []
    blocks += strips(results, dict(zip(errors["run"], errors["trained_episodes"], strict=True)) if len(errors) else {})
    probes = read_predictions(results, "probe.csv", ["episode", "distance", "dimension", "name", "error"])
    if len(probes):
        blocks += probe_figures(probes, results)
    blocks += reconstructions(results)
    if not blocks:
        return None
    lead = (
        f"The model sees {CONTEXT} frames of a held-out episode and nothing before them, then predicts with the "
        "episode's own actions and without looking. The episodes are the same for every variant that keeps the paper's "
        "action repeat. With another, a decision takes the action recorded for its time: from the same start states, "
        "a coarser repeat leaves actions out and comes to other episodes."
    )
    return Section("predictions", "Figures 10 and 11: how far the model sees", blocks, lead)


def same_episodes(errors: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows of runs whose action repeat is their task's own, and a sentence about the others ("": none)."""
    others = errors[~errors["own_repeat"]]
    names = [
        f"{series_label(series)} on {', '.join(task_label(task) for task in sort_tasks(own['task']))}"
        for series, own in others.groupby("series", sort=False)
    ]
    text = (
        f"Not drawn with the others: {'; '.join(names)}. Their action repeat is not the paper's, so their held-out "
        "episodes are not the same and one decision ahead is another time; the numbers are in their predictions/."
    )
    return errors[errors["own_repeat"]], text if names else ""


def furthest(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows of each series' furthest trained models on a task, and the words for what that left out.

    Models after unequal numbers of episodes are no repetitions of one another. An unknown number is below all known
    ones, so such files are pooled with one another only.
    """
    most = frame.groupby(["series", "task"])["trained_episodes"].transform("max")
    kept, left = frame[frame["trained_episodes"] == most], frame[frame["trained_episodes"] < most]
    words = ""
    if (kept["trained_episodes"] == UNKNOWN).any():
        words += (
            " Where the number of episodes is unknown, the files are of an earlier version, with other windows and "
            "states: <code>python -m planet.evaluate RUN_DIR --open-loop</code> writes them anew."
        )
    if len(left):
        counts = dict(zip(left["run"], left["trained_episodes"], strict=True))
        runs = ", ".join(f"{run} ({models_of([count])})" for run, count in counts.items())
        words += (
            f" Left out: {len(counts)} run{'s' * (len(counts) > 1)} whose model is not, or not known to be, as far as "
            f"the furthest of the same agent and task: {runs}."
        )
    return kept, words


def models_of(counts: Iterable[int]) -> str:
    """Return after how many collected episodes models were taken: `after 100 or 200 episodes`."""
    numbers = sorted(set(counts), key=lambda n: (n == UNKNOWN, n))
    return f"after {' or '.join('an unknown number of' if n == UNKNOWN else f'{n:,}' for n in numbers)} episodes"


def with_blanks(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame for its CSV: an unknown number of episodes is no number there."""
    counts = frame["trained_episodes"].astype("Int64")
    return frame.assign(trained_episodes=counts.mask(counts == UNKNOWN))


def over_distance(errors: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return per series, task and distance the mean over seeds and episodes of each column, with the counts."""
    by = ["series", "variant", "task", "trained_episodes", "distance"]
    groups = errors.groupby(by, sort=False, observed=True)
    frame = groups[list(columns)].mean()
    frame["seeds"] = groups["seed"].nunique()
    frame["episodes"] = groups.size()
    return frame.reset_index()


def distance_figure(errors: pd.DataFrame, results: Results) -> Figure:
    errors, left_out = furthest(errors)
    frame = over_distance(errors, list(ERRORS))
    series = dict(zip(frame["series"], frame["variant"], strict=True))
    tasks = sort_tasks(frame["task"])
    panels = []
    for task in tasks:
        own = frame[frame["task"] == task]
        groups = told_apart(dict(zip(own["series"], own["variant"], strict=True)))
        for group in groups:
            names = ", ".join(series_label(name) for name in group if name != "base" or len(group) == 1)
            shown = own[own["series"].isin(list(group))]
            for column, label in ERRORS.items():
                title = [f"{task_label(task)}: {label.split(':')[0]}"]
                title += textwrap.wrap(names, TITLE_WIDTH) if len(groups) > 1 else []
                draw = functools.partial(distance_panel, own=shown, column=column)
                said = f"{label} over distance, {task_label(task)}" + (f": {names}" if len(groups) > 1 else "")
                panels.append(Panel("\n".join(title), draw, said))
    caption = (
        "Error against the distance of the prediction, in decisions after the last frame seen; lower is better. Mean "
        "over seeds, held-out episodes and the windows of each. "
        + "; ".join(label for label in ERRORS.values())
        + ". The state is read off the features by a linear probe fitted on the other episodes, dynamics frozen: "
        "positions without the place on the track, hinges that turn freely as sine and cosine, velocities."
        + (" Every row has PlaNet beside a few variants." if len(panels) > len(tasks) * len(ERRORS) else "")
        + left_out
    )
    taken = {name: models_of(own["trained_episodes"]) for name, own in frame.groupby("series")}
    keys = [
        Key(
            f"{series_label(name)}, {taken[name]}",
            style.colour(variant),
            "dashed" if style.dashes(name, variant) else "line",
        )
        for name, variant in series.items()
    ]
    figure = Figure(
        "open-loop-error", "Open-loop error over distance", caption, panels, with_blanks(frame), keys, 3,
        panel_size=(3.3, 2.0), note=note_of(results),
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


def error_ratios(errors: pd.DataFrame) -> pd.DataFrame:
    """Return how many times its partner's errors each variant makes: one row per series and task.

    Partner: the run of the same task, seed and number of collected episodes that the variant should differ from by its
    own keys alone (`published.COMPARED_WITH`, else base). `<error>_near` and `<error>_far`: over distances 1..12 (the
    planner's horizon) and all, the error summed over distances and divided by the partner's, geometric mean over seeds.
    A pair whose partner makes no error at all has no ratio. `pairs`: how many seeds have a partner; 0 where none has.
    """
    known = errors[errors["trained_episodes"] != UNKNOWN]
    reaches = {"near": known["distance"] <= NEAR, "far": known["distance"] > 0}
    by = ["series", "variant", "task", "seed", "trained_episodes"]
    sums = pd.concat(
        [known[inside].groupby(by)[list(ERRORS)].sum().add_suffix(f"_{name}") for name, inside in reaches.items()],
        axis=1,
    ).reset_index()
    columns = [column for column in sums if column not in by]
    partners = sums[sums["series"] == sums["variant"]].drop(columns="series")
    rows = []
    for (series, variant, task), own in sums[sums["variant"] != "base"].groupby(by[:3], sort=False):
        against = published.COMPARED_WITH.get(variant, "base")
        theirs = partners[partners["variant"] == against].drop(columns="variant")
        pairs = own.merge(theirs, on=["task", "seed", "trained_episodes"], suffixes=("", " of partner"))
        with np.errstate(divide="ignore"):  # no error at all is 0 times the partner's
            logs = {c: np.log(pairs[c] / pairs[f"{c} of partner"].where(pairs[f"{c} of partner"] > 0)) for c in columns}
        ratios = {column: float(np.exp(values.mean())) for column, values in logs.items()}
        rows.append(
            {"series": series, "variant": variant, "against": against, "task": task, "pairs": len(pairs), **ratios}
        )
    return pd.DataFrame(rows)


def ratio_table(errors: pd.DataFrame) -> Table | None:
    """Return `error_ratios` for the page, None where there is no variant."""
    data = error_ratios(errors)
    if data.empty:
        return None
    shown = pd.DataFrame(
        {
            "variant": series_label(row["series"]),
            "against": series_label(row["against"]),
            "task": task_label(row["task"]),
            "pairs": str(row["pairs"]),
        }
        | {
            f"{column.split('_')[0]}, {words}": _times(row[f"{column}_{name}"])
            for column in ERRORS
            for name, words in (("near", f"1–{NEAR}"), ("far", "all"))
        }
        for row in data.to_dict("records")
    )
    caption = (
        f"Open-loop errors as multiples of the partner's, over distances 1–{NEAR} (the planner's horizon) and over "
        "all; above 1 the variant predicts worse. Pairs: seeds at which both models were taken after the same number "
        "of collected episodes; geometric mean over them. Models of unequal age are not compared."
    )
    return Table(
        "open-loop-ratios", "Open-loop errors against the partner", caption, data, shown,
        ("variant", "against", "task"), group="variant",
    )  # fmt: skip


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if np.isfinite(ratio) else "–"


def probe_figures(probes: pd.DataFrame, results: Results) -> list[Block]:
    """Return Figure 11 for PlaNet: the error of every simulator dimension over distance, a panel per task."""
    base = probes[probes["variant"] == "base"]
    shown = base if len(base) else probes
    blocks: list[Block] = []
    for series in dict.fromkeys(shown["series"]):
        own, left_out = furthest(shown[shown["series"] == series])
        groups = own.groupby(["task", "trained_episodes", "dimension", "name", "distance"], sort=False)
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
            "dark: the error is as large as the quantity's own spread (one standard deviation) or larger. The models "
            f"were taken {models_of(frame['trained_episodes'])}.{left_out}"
        )
        figure = Figure(
            f"state-diagnostics-{series}".replace(" · ", "-").replace(" ", "-"),
            f"State diagnostics, {series_label(series)}", caption, panels, with_blanks(frame), [], 3,
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


def strips(results: Results, trained_episodes: Mapping[str, int]) -> list[Block]:
    """Return film strips and GIFs: one run per series and task, the lowest seed that has them.

    `trained_episodes` holds, by the run's name, after how many episodes the model was taken.
    """
    blocks: list[Block] = []
    for (series, task), runs in _by_series(results).items():
        for run in runs:
            films = sorted((run.path / "predictions").glob("strip_*.png"))
            videos = sorted((run.path / "predictions").glob("open_loop_*.gif"))
            if not films and not videos:
                continue
            where = f"{series_label(series)} on {task_label(task)}"
            model = models_of([trained_episodes.get(run.name, UNKNOWN)])
            caption = (
                f"{run.name}, model {model}. Rows of the strips, columns of the videos: truth, prediction, error "
                f"(grey is none). The line marks where the model stops seeing frames: {CONTEXT} of context, then open "
                "loop. Time runs from left to right."
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
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return None
    number = re.search(r"_(\d+)$", path.stem)
    name = path.name
    if number:
        count = int(number[1])
        name = f"after {count} episodes" if path.stem.startswith("reconstruction") else f"held-out episode {count}"
    return Picture(path, f"{alt}, {name}", name)
