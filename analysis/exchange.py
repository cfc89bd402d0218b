"""Other people's score files in, ours out: Dreamer's json(.gz), TD-MPC2's csv, and one tidy csv.

Dreamer: a list of `{"task", "method", "seed", "xs", "ys"}`, xs in environment steps. TD-MPC2: `step,reward,seed` per
task, the task in the file's name (`cheetah-run.csv`), step in environment steps. Both hold means per evaluation.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.content import Section
from analysis.curves import learning_curves
from analysis.figures import Figure, Key, Panel
from analysis.questions import series_label, task_label
from analysis.runs import TASKS, BadInput, Results, sort_tasks
from analysis.scores import note_of, planned_episodes, slug, with_commits

STEPS_PER_EPISODE = 1000
OURS_ELSEWHERE = {"cup_catch": "ball_in_cup_catch"}
COLOURS = ("vermilion", "green", "purple", "amber", "sky", "brown", "slate")

# ------------------------------------------------------------------------------------------------------ overlays


def task_name(text: str) -> str:
    """Return our name of a task: `dmc_ball_in_cup_catch`, `cup-catch` and `cup_catch` are the same."""
    name = re.sub(r"^(dmc|dmcontrol|dm_control)_", "", text.lower().replace("-", "_"))
    name = re.sub(r"_(vision|proprio|pixels)$", "", name)
    return {theirs: ours for ours, theirs in OURS_ELSEWHERE.items()}.get(name, name)


def read_overlay(text: str) -> pd.DataFrame:
    """Return task, method, seed, env_steps, return of `[LABEL:]PATH`: a Dreamer file, a TD-MPC2 file or folder.

    Raises:
        BadInput: no such file, neither of the formats, or none of our tasks in it.
    """
    label, path = _split_label(text)
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise BadInput(f"{path} holds no .csv file; --overlay takes a folder of TD-MPC2's TASK.csv files")
        frame = pd.concat([_tdmpc2(file, label or path.name) for file in files], ignore_index=True)
    elif not path.is_file():
        raise BadInput(f"{path} does not exist; --overlay takes [LABEL:]FILE.json, FILE.json.gz, TASK.csv or a folder")
    elif path.suffix == ".csv":
        frame = _tdmpc2(path, label or path.parent.name)
    else:
        frame = _dreamer(path, label)
    frame = frame[frame["task"].isin(TASKS)]
    if frame.empty:
        raise BadInput(f"{path} has none of the tasks {', '.join(TASKS)}")
    if not np.isfinite(frame[["env_steps", "return"]].to_numpy(float)).all():
        raise BadInput(f"{path} holds values that are no finite numbers")
    return frame.reset_index(drop=True)


def _split_label(text: str) -> tuple[str, Path]:
    label, found, rest = text.partition(":")
    return (label, Path(rest)) if found and rest and not Path(text).exists() else ("", Path(text))


def _dreamer(path: Path, label: str) -> pd.DataFrame:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        runs: list[dict[str, Any]] = json.loads(raw)
        rows = [
            pd.DataFrame(
                {
                    "task": task_name(str(run["task"])), "method": label or str(run["method"]),
                    "seed": str(run["seed"]),
                    "env_steps": np.asarray(run["xs"], float), "return": np.asarray(run["ys"], float),
                }
            )
            for run in runs
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        wanted = "a list of {task, method, seed, xs, ys}"
        raise BadInput(f"{path} is not a Dreamer score file ({what}); wanted {wanted}, .json or .json.gz") from None
    if not rows:
        raise BadInput(f"{path} holds no run")
    return pd.concat(rows, ignore_index=True)


def _tdmpc2(path: Path, label: str) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not a csv file: {error}") from None
    lacking = [name for name in ("step", "reward", "seed") if name not in frame]
    if lacking:
        raise BadInput(f"{path} lacks the columns {', '.join(lacking)}; TD-MPC2's files have step,reward,seed")
    return pd.DataFrame(
        {
            "task": task_name(path.stem), "method": label, "seed": frame["seed"].astype(str),
            "env_steps": frame["step"].astype(float), "return": frame["reward"].astype(float),
        }
    )  # fmt: skip


def overlay_section(results: Results, overlays: Sequence[pd.DataFrame]) -> Section | None:
    """Return our PlaNet with the other agents' curves over it, up to where ours ends; None without overlays."""
    if not overlays:
        return None
    others = pd.concat(overlays, ignore_index=True)
    evals = results.frame("eval")
    curves = learning_curves(evals[evals["variant"] == "base"])
    limit = planned_episodes(results, ["base"]) * STEPS_PER_EPISODE * 1.03
    others = others[others["env_steps"] <= limit]
    methods = list(dict.fromkeys(others["method"]))
    colours = {name: style.PALETTE[COLOURS[i % len(COLOURS)]][0] for i, name in enumerate(methods)}
    panels = []
    for i, task in enumerate(sort_tasks({*curves["task"], *others["task"]})):
        draw = functools.partial(
            overlay_panel, ours=curves[curves["task"] == task], others=others[others["task"] == task], colours=colours,
            x_max=limit, y_label=i % 3 == 0,
        )  # fmt: skip
        panels.append(Panel(task_label(task), draw, f"PlaNet and {', '.join(methods)} on {task_label(task)}"))
    caption = (
        "Ours: median and 5–95 % of evaluation episodes, as in Figure 4. The others, from the files given: mean over "
        "their seeds, band from the lowest to the highest seed, over the steps that all of them reach, as far as our "
        "runs are planned; between reports a seed's curve is a straight line. Their protocols differ (action repeat, "
        "evaluation); x is environment steps for all."
    )
    base = curves[["series", "variant"]].drop_duplicates()
    keys = [Key(f"ours: {series_label(s)}", style.colour(v)) for s, v in base.itertuples(index=False)]
    keys += [Key(name, colour) for name, colour in colours.items()]
    data = pd.concat(
        [
            curves[["series", "task", "env_steps", "median", "p5", "p95", "seeds"]].assign(source="this suite"),
            others.rename(columns={"method": "series", "return": "mean"}).assign(source="overlay"),
        ],
        ignore_index=True,
    )
    figure = Figure("overlay", "PlaNet beside other agents", caption, panels, data, keys, 3, note=note_of(results))
    return Section("overlay", "Beside other agents", [with_commits(figure, results, set(curves["series"]))])


def overlay_panel(
    axes: Axes, *, ours: pd.DataFrame, others: pd.DataFrame, colours: dict[str, str], x_max: float, y_label: bool
) -> None:
    for method, colour in colours.items():
        own = others[others["method"] == method]
        if own.empty:
            continue
        steps, returns = across_seeds(own)
        axes.fill_between(steps, returns.min(axis=0), returns.max(axis=0), color=colour, alpha=0.13, linewidth=0)
        axes.plot(steps, returns.mean(axis=0), color=colour, linewidth=1.2)
    for (series, variant), curve in ours.groupby(["series", "variant"], sort=False):
        colour, dash = style.colour(str(variant)), style.dashes(str(series), str(variant))
        axes.fill_between(curve["env_steps"], curve["p5"], curve["p95"], color=colour, alpha=0.22, linewidth=0)
        axes.plot(curve["env_steps"], curve["median"], color=colour, linewidth=1.8, dashes=dash or (None, None))
    axes.set_xlim(0, x_max)
    axes.set_ylim(-15, 1015)
    axes.set_yticks([0, 250, 500, 750, 1000])
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("environment steps")
    if y_label:
        axes.set_ylabel("return")


def across_seeds(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return environment steps and the returns [seed, step] there: agents report at steps of their own (episodes end
    where they end), so each seed's curve is interpolated, over the steps that all seeds reach."""
    curves = [own.groupby("env_steps")["return"].mean() for _, own in runs.groupby("seed", sort=False)]
    first, last = max(curve.index[0] for curve in curves), min(curve.index[-1] for curve in curves)
    steps = np.unique(runs["env_steps"].to_numpy(float))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.stack([np.interp(steps, curve.index, curve) for curve in curves])


# ------------------------------------------------------------------------------------------------------- exports


def evaluation_means(results: Results) -> pd.DataFrame:
    """Return one row per evaluation of every run that learns: identity, episode, env_steps, mean return, episodes."""
    evals = results.frame("eval")
    evals = evals[evals["dynamics"] == "latent"]
    if evals.empty:
        raise BadInput("nothing to export: no run that learns has an evaluation yet")
    keys = ["preset", "series", "task", "seed", "episode", "env_steps"]
    groups = evals.groupby(keys, sort=False, observed=True)["return"]
    return pd.DataFrame({"return": groups.mean(), "episodes": groups.size()}).reset_index()


def export_dreamer(results: Results, folder: Path) -> list[Path]:
    """Write planet.json.gz: one entry per run, xs in environment steps, ys mean returns, dm_control's task names."""
    entries = []
    for (preset, series, task, seed), own in evaluation_means(results).groupby(
        ["preset", "series", "task", "seed"], sort=False
    ):
        own = own.sort_values("env_steps")
        entries.append(
            {
                "task": f"dmc_{OURS_ELSEWHERE.get(task, task)}", "method": _method(preset, series), "seed": str(seed),
                "xs": own["env_steps"].astype(int).tolist(), "ys": own["return"].astype(float).tolist(),
            }
        )  # fmt: skip
    path = folder / "planet.json.gz"
    # No time stamp in the header: the same runs give the same bytes.
    path.write_bytes(gzip.compress(json.dumps(entries).encode(), mtime=0))
    return [path]


def export_tdmpc2(results: Results, folder: Path) -> list[Path]:
    """Write METHOD/TASK.csv with step,reward,seed, as TD-MPC2's results/ have them."""
    paths = []
    for (preset, series, task), own in evaluation_means(results).groupby(["preset", "series", "task"], sort=False):
        path = folder / _method(preset, series) / f"{OURS_ELSEWHERE.get(str(task), str(task)).replace('_', '-')}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = own.sort_values(["seed", "env_steps"])
        table = pd.DataFrame({"step": rows["env_steps"], "reward": rows["return"], "seed": rows["seed"]})
        path.write_text(table.to_csv(index=False, float_format="%.10g"))
        paths.append(path)
    return paths


def export_csv(results: Results, folder: Path) -> list[Path]:
    """Write evaluations.csv: every evaluation episode of every run, one tidy row each."""
    evals = results.frame("eval")
    if evals.empty:
        raise BadInput("nothing to export: no run has an evaluation yet")
    columns = ["preset", "variant", "series", "run_task", "task", "seed", "episode", "env_steps", "updates",
               "wall_seconds", "env_seed", "return"]  # fmt: skip
    path = folder / "evaluations.csv"
    path.write_text(evals[columns].to_csv(index=False, float_format="%.10g"))
    return [path]


def _method(preset: str, series: str) -> str:
    return slug("planet" if (preset, series) == ("paper", "base") else f"planet-{preset}-{series}")


EXPORTS: dict[str, Callable[[Results, Path], list[Path]]] = {
    "dreamer": export_dreamer,
    "tdmpc2": export_tdmpc2,
    "csv": export_csv,
}
