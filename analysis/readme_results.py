"""results/ -> the block of README.md between its markers, results/README.md, and the figures in results/figures/.

`make results` (`python analysis/readme_results.py`) rewrites them from the run directories that are there; nothing in
them is typed by hand, and a test fails when they do not say what the runs say. README.md has what a reader wants first,
results/README.md every run's hours, machine, code and comparison with random actions.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from analysis import published, style
from analysis.curves import against_paper, learning_curves
from analysis.figures import Figure, learning_curve_figure
from analysis.questions import series_label, task_label
from analysis.render import picture
from analysis.runs import TASKS, Results, Run, load, sort_tasks

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
DETAILS = "results/README.md"
FIGURES = "results/figures"
RANDOM = "results/random_policy.csv"
RULE = "5 % above random's 95 %"
PAPER_SEEDS = 5
ABLATIONS_NOTE = (
    "Thin steps: the paper's medians, in the same colours. Sizes of planner and network are the preset's, so random "
    "shooting takes the best of the preset's candidates (the paper's: of 1,000); `deterministic` trains its prior, the "
    "published flags do not (`deterministic_official`)."
)
OF_MACHINES = ("mean of each seed", "hours: wall", "processor", "machine")
"""Columns of a table of scores that results/README.md alone shows."""
UNCLIPPED = "true_simulator+planner.refit_clipped=false"
MIN_EPISODES = 60
"""Curves shorter than this are drawn over this many episodes: the paper's first point is the mean of its first 53."""


@dataclass(frozen=True, slots=True)
class Block:
    """What the README shows, and the whole of results/README.md."""

    text: str
    details: str
    figures: list[Figure]


def main() -> int:
    block = read(ROOT)
    write(ROOT, block)
    figures = ", ".join(f"{FIGURES}/{figure.name}.png" for figure in block.figures) or "no figure"
    print(f"README.md, {DETAILS} and {figures}")
    return 0


def read(root: Path) -> Block:
    """Return what the runs below root/results make.

    Raises:
        BadInput: there is no run.
    """
    results = load([root / "results"], now=0.0)
    parts = [results.of(preset) for preset in results.presets]
    # Presets with an agent that learned come first, those with most of it in front.
    parts.sort(key=lambda part: -len(learned(part)))
    drawn = [figures_of(part) for part in parts]
    table = root / RANDOM
    chance = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["task", "env_seed", "return"])
    texts = [text for part, figures in zip(parts, drawn, strict=True) for text in part_text(part, figures, chance)]
    details = [text for part in parts for text in part_details(part, chance)]
    return Block(
        "\n\n".join([*texts, how()]), "\n\n".join([INTRODUCTION, *details, codes(parts)]) + "\n",
        [figure for figures in drawn for figure in figures],
    )  # fmt: skip


def write(root: Path, block: Block) -> None:
    folder = root / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.png"), *folder.glob("*.csv")]:
        path.unlink()
    for figure in block.figures:
        picture(figure, folder / f"{figure.name}.png")
        (folder / f"{figure.name}.csv").write_text(csv(figure))
    (root / DETAILS).write_text(block.details)
    readme = root / "README.md"
    readme.write_text(with_block(readme.read_text(), block.text))


def csv(figure: Figure) -> str:
    return figure.data.to_csv(index=False, float_format="%.6g")


def with_block(readme: str, text: str) -> str:
    """Return the README with its block replaced."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


# -------------------------------------------------------------------------------------------------------- figures


def learned(part: Results) -> pd.DataFrame:
    """Return the evaluations of agents that learned a model."""
    evals = part.frame("eval")
    return evals[evals["dynamics"] == "latent"]


def figures_of(part: Results) -> list[Figure]:
    """Return PlaNet over the paper's band on the tasks it was run on, then its ablations where there are any."""
    evals = learned(part)
    preset = part.presets[0]
    base = evals[evals["variant"] == "base"]
    found = []
    if len(base):
        title = f"PlaNet, {preset} preset, and the paper"
        found.append(_figure(f"{preset}-planet", title, base, published.FIGURES["fig4"]))
    ablations = []
    for name in ("fig4", "fig5"):
        figure = published.FIGURES[name]
        others = evals[evals["variant"].isin(figure.own - {"base"})]
        if len(others):
            both = pd.concat([base[base["task"].isin(set(others["task"]))], others])
            own = _figure(name, "", both, figure, paper_band=False)
            panels = [replace(panel, title=f"{panel.title}: {figure.title.lower()}") for panel in own.panels]
            ablations.append(replace(own, panels=panels, data=own.data.assign(figure=name)))
    if ablations:
        panels = [panel for each in ablations for panel in each.panels]
        drawn = [replace(p, draw=functools.partial(p.draw, y_label=i % 2 == 0)) for i, p in enumerate(panels)]
        keys = list(dict.fromkeys(key for each in ablations for key in each.keys))
        keys.sort(key=lambda key: key.colour in (style.PAPER, style.MUTED))
        data = pd.concat([each.data for each in ablations], ignore_index=True)
        name, title = f"{preset}-ablations", f"Ablations, {preset} preset"
        found.append(Figure(name, title, "", drawn, data, keys, columns=2))
    return found


def _figure(
    name: str, title: str, evals: pd.DataFrame, figure: published.PaperFigure, *, paper_band: bool = True
) -> Figure:
    curves = against_paper(learning_curves(evals), figure)
    tasks = sort_tasks(curves["task"])
    last = float(curves["episode"].max())
    return learning_curve_figure(
        name, title, "", ours=curves, figure=figure, tasks=tasks, planned=last, columns=min(3, max(2, len(tasks))),
        paper_band=paper_band, limit=max(last, MIN_EPISODES) * 1.03,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- text


def part_text(part: Results, figures: Sequence[Figure], chance: pd.DataFrame) -> list[str]:
    """Return the paragraphs of one preset. chance: what random actions earn (results/random_policy.py)."""
    preset = part.presets[0]
    texts = []
    for figure in figures:
        said = "; ".join(panel.label.removeprefix("Learning curve, ") for panel in figure.panels)
        texts.append(f"![{figure.title}. {said}]({FIGURES}/{figure.name}.png)")
        if figure.name == f"{preset}-planet":
            texts.append(
                f"Blue: PlaNet as this suite trains it with the `{preset}` preset, median and 5–95 % of all evaluation "
                "episodes; grey: the same of the paper's evaluations within 53 episodes."
                + ("" if preset == "paper" else " The preset's sizes are smaller than the paper's.")
            )
        else:
            texts.append(ABLATIONS_NOTE)
    if rows := score_rows(part):
        texts.append(markdown(without(rows, OF_MACHINES)))
        texts.append(score_note(rows))
    if rows := chance_rows(part, chance):
        above = sum(row[RULE] == "yes" for row in rows)
        texts.append(
            f"{above} of {len(rows)} runs ended above random actions from the same start states by the stricter of two "
            f"rules ([{DETAILS}]({DETAILS}))."
        )
    if rows := simulator_rows(part):
        texts.append("The planner alone, with the true simulator in place of a learned model (the paper's Table 1):")
        texts.append(markdown(rows))
        if "refitted unclipped" in rows[0]:
            texts.append("Refitted unclipped: `--set planner.refit_clipped=false`, which Algorithm 2 leaves open.")
        texts.append("Where it differs, and why: [results/true_simulator/](results/true_simulator/README.md).")
    return [*texts, missing(part)]


def part_details(part: Results, chance: pd.DataFrame) -> list[str]:
    """Return what results/README.md says of one preset."""
    texts = [f"## {part.presets[0]}"]
    if rows := score_rows(part):
        texts.append(markdown(rows))
        texts.append(
            score_note(rows) + " Hours: wall, mean of those runs; processor, of each seed's process from its first "
            "episode on, all its starts together."
        )
    if rows := chance_rows(part, chance):
        texts.append("Each run's last evaluation beside random actions from the same start states:")
        texts.append(markdown(rows))
        texts.append("p: of Mann and Whitney's one-sided rank test. The rule of the last column is the stricter one.")
    if notes := notes_of(part):
        texts.append("\n".join(f"- {note}" for note in notes))
    return texts


def score_note(rows: Sequence[dict[str, str]]) -> str:
    return (
        "Return: median [5 %, 95 %] of the last evaluation that any seed reached (10 fresh episodes of each seed that "
        "did). "
        + ("PlaNet then: the unchanged agent after as many episodes. " if "PlaNet then" in rows[0] else "")
        + "Paper: the same of its evaluations within the 53 episodes (in brackets) that ours falls into."
    )


def without(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> list[dict[str, str]]:
    return [{name: text for name, text in row.items() if name not in columns} for row in rows]


def score_rows(part: Results) -> list[dict[str, str]]:
    """Return one row per series and task: where its seeds stand after the last evaluation that any of them had."""
    evals = learned(part)
    seeds = evals.groupby(["series", "task"], observed=True)["seed"].nunique()
    rows = []
    groups = evals.groupby(["series", "variant", "task"], sort=False, observed=True)
    for (series, variant, task), group in sorted(groups, key=_row_order):
        point = int(group["episode"].max())
        last = group[group["episode"] == point]
        runs = [
            run for run in part.runs if run.series == series and run.seed in set(last["seed"]) and task in run.tasks
        ]
        each = last.groupby("seed")["return"].mean()
        all_seeds = int(seeds[series, task])
        rows.append(
            {
                "task": task_label(str(task)),
                "agent": series_label(str(series)),
                "episodes": str(point),
                "seeds": f"{len(each)} of {all_seeds}" if len(each) < all_seeds else str(all_seeds),
                "return": _band(last["return"], bold=True),
                "mean of each seed": ", ".join(f"{value:.0f}" for value in each),
                "PlaNet then": _base_at(evals, str(task), point) if variant != "base" else "",
                "paper": _paper(str(variant), str(task), point, last),
                "hours: wall": f"{last.groupby('seed')['hours'].max().mean():.1f}",
                "processor": _cpu_hours(runs, point),
                "machine": "; ".join(dict.fromkeys(machine(run) for run in runs)),
            }
        )
    if not any(row["PlaNet then"] for row in rows):
        rows = [{name: text for name, text in row.items() if name != "PlaNet then"} for row in rows]
    return rows


def _base_at(evals: pd.DataFrame, task: str, episode: int) -> str:
    """Return what the unchanged agent had after as many episodes, "–" where it was not evaluated then."""
    base = evals[(evals["series"] == "base") & (evals["task"] == task) & (evals["episode"] == episode)]
    seeds = base["seed"].nunique()
    return f"{_band(base['return'])}, {seeds} seed{'s' * (seeds != 1)}" if seeds else "–"


def chance_rows(part: Results, chance: pd.DataFrame) -> list[dict[str, str]]:
    """Return one row per run: its last evaluation and random actions from that evaluation's start states."""
    rows = []
    groups = learned(part).groupby(["series", "variant", "task", "seed"], sort=False, observed=True)
    for (series, _, task, seed), group in sorted(groups, key=lambda item: (_row_order(item), item[0][3])):
        last = group[group["episode"] == group["episode"].max()]
        random = chance[(chance["task"] == task) & chance["env_seed"].isin(last["env_seed"])]["return"]
        if len(random) < len(last):
            continue
        ours, theirs = np.percentile(last["return"], 5), np.percentile(random, 95)
        ties = pd.concat([last["return"], random]).duplicated().any()
        p = mannwhitneyu(last["return"], random, alternative="greater", method="asymptotic" if ties else "exact").pvalue
        rows.append(
            {
                "task": task_label(str(task)),
                "agent": f"{series_label(str(series))}, seed {seed}",
                "episodes": str(int(last["episode"].iloc[0])),
                "return": _band(last["return"]),
                "random": _band(random),
                "p": f"{p:.0e}",
                RULE: "yes" if ours > theirs else "no",
            }
        )
    return rows


def _band(returns: pd.Series, *, bold: bool = False) -> str:
    low, middle, high = np.percentile(returns, [5, 50, 95])
    return f"**{middle:.0f}** [{low:.0f}, {high:.0f}]" if bold else f"{middle:.0f} [{low:.0f}, {high:.0f}]"


def _row_order(item: tuple[tuple[str, ...], pd.DataFrame]) -> tuple[object, ...]:
    series, variant, task = item[0][:3]
    return variant != "base", variant, sort_tasks([*TASKS, task]).index(task), series


def _paper(variant: str, task: str, episode: int, rows: pd.DataFrame) -> str:
    """Return the paper's median, percentiles and episodes of the bin that holds an episode count, "–" without one."""
    name = next((name for name, figure in published.FIGURES.items() if variant in figure.own), None)
    index = published.bin_of(episode)
    if (
        name is None
        or index is None
        or variant in published.NOT_IN_PAPER
        or not (rows["max_return"] == published.MAX_RETURN).all()
    ):
        return "–"
    curve = published.curves(name)
    label = published.FIGURES[name].curves[variant]
    found = curve[(curve["label"] == label) & (curve["task"] == task) & (curve["bin"] == index)].to_dict("records")
    if not found:
        return "–"
    here = found[0]
    return f"{here['median']:.0f} [{here['p5']:.0f}, {here['p95']:.0f}] ({here['left']:.0f}–{here['right']:.0f})"


def _cpu_hours(runs: Iterable[Run], episode: int) -> str:
    """Return the processor hours of each run up to an episode count, "–" where one did not measure them."""
    hours = []
    for run in sorted(runs, key=lambda run: run.seed):
        if "cpu_seconds" not in run.metrics:
            return "–"
        own = run.metrics[run.metrics["episode"] <= episode]["cpu_seconds"].dropna()
        hours.append(float(own.iloc[-1]) / 3600 if len(own) else 0.0)
    return ", ".join(f"{each:.2f}" for each in hours) or "–"


def machine(run: Run) -> str:
    """Return what a run was made on, in words, and in which precision."""
    if run.resolved("device", "cpu").startswith("cuda"):
        return f"{run.device}, {run.precision}"
    threads = run.resolved("threads", run.config["runtime"].get("threads", ""))
    cores = next((start["cores"] for start in run.starts if start.get("cores")), None)
    of = f" of {cores}" if cores else ""
    return f"{run.device}, {threads}{of} core{'s' * ((cores or int(threads or 1)) != 1)}, {run.precision}"


def simulator_rows(part: Results) -> list[dict[str, str]]:
    evals = part.frame("eval")
    own = evals[(evals["dynamics"] == "simulator") & (evals["variant"] == "true_simulator")]
    other = evals[evals["variant"] == UNCLIPPED]
    paper = published.table1().set_index("method").loc["CEM + true simulator"]
    rows = []
    for (series, task), group in sorted(
        own[own["task"].isin(TASKS)].groupby(["series", "task"], sort=False, observed=True),
        key=lambda item: (TASKS.index(item[0][1]), item[0][0]),
    ):
        returns = group["return"]
        unlike = "" if series == "true_simulator" else f" ({series_label(str(series))})"
        rows.append(
            {
                "task": task_label(str(task)) + unlike,
                "return": _mean_and_range(returns),
                "episodes": str(len(returns)),
                "paper": f"{paper[task]:.0f}",
            }
        )
        if len(other):
            unclipped = other.loc[other["task"] == task, "return"]
            rows[-1]["refitted unclipped"] = _mean_and_range(unclipped) if len(unclipped) else ""
    return rows


def _mean_and_range(returns: pd.Series) -> str:
    span = f" ({returns.min():.0f}–{returns.max():.0f})" if len(returns) > 1 else ""
    return f"**{returns.mean():.0f}**{span}"


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Return a GitHub table; columns of text flush left."""
    names = list(rows[0])
    left = {"task", "agent", "machine"}
    lines = [" | ".join(names), " | ".join("---" if name in left else "---:" for name in names)]
    lines += [" | ".join(row[name] for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


# ------------------------------------------------------------------------------------------------ what is missing


def missing(part: Results) -> str:
    """Return in plain words what the paper has and these runs have not."""
    preset = part.presets[0]
    evals = part.frame("eval")
    said = []
    base = learned(part)
    base = base[base["variant"] == "base"]
    simulated = set(evals.loc[evals["variant"] == "true_simulator", "task"])
    if simulated and (left := [task for task in TASKS if task not in simulated]):
        said.append(f"{_tasks(left)} in the true simulator")
    if len(base):
        if left := [task for task in TASKS if task not in set(base["task"])]:
            said.append(f"PlaNet on {_tasks(left)}")
        seeds = base.groupby("task")["seed"].nunique()
        if (seeds < PAPER_SEEDS).any():
            counts = Counter(int(n) for n in seeds)
            each = ", ".join(
                f"{n} on {_tasks([t for t in sort_tasks(seeds.index) if seeds[t] == n], 'and')}" for n in sorted(counts)
            )
            said.append(f"seeds (the paper has {PAPER_SEEDS}; here {each})")
        ablations = [name for figure in ("fig4", "fig5") for name in sorted(published.FIGURES[figure].own - {"base"})]
        if left := [name for name in ablations if name not in set(learned(part)["variant"])]:
            said.append(f"of the ablations of Figures 4 and 5 {', '.join(f'`{name}`' for name in left)}")
    elif preset == "paper":
        said.append("PlaNet itself at the paper's sizes, on any task")
    learning = [run for run in part.runs if run.dynamics == "latent"]
    if stopped := sum(run.status.get("state") != "done" for run in learning):
        said.append(f"the end of {stopped} of {len(learning)} runs, which were stopped before")
    return f"**Missing with the `{preset}` preset:** {'; '.join(said) or 'nothing'}."


def notes_of(part: Results) -> list[str]:
    """Return what a reader must know about single runs, and what is wrong with them together."""
    notes = [note for run in part.runs if (note := _note(run))]
    told = ("unusable", "duplicate", "split", "mixed", "torn", "short")
    notes += [f"{p.where}: {p.text}" for p in part.problems if p.kind in told]
    return list(dict.fromkeys(notes))


def _note(run: Run) -> str:
    """Return what a reader must know about one run, "" if nothing."""
    state = str(run.status.get("state", "new"))
    said = []
    if state == "failed":
        said.append(f"failed at {run.status.get('episode')} of {run.episodes_total} episodes")
    elif state != "done":
        evals = run.evals()
        point = evals["episode"].max()
        mean = evals.loc[evals["episode"] == point, "return"].mean()
        score = f" (evaluation after {point}: mean {mean:.0f})" if len(evals) else ""
        said.append(f"ended at {run.status.get('episode') or 0} of {run.episodes_total} episodes{score}")
    if len(run.commits) > 1:
        said.append(f"made with the code of {', then '.join(commit[:7] for commit, _ in run.commits)}")
    if run.code:
        said.append(f"made with {run.code}")
    return f"`{run.preset}/{run.name}` {', '.join(said)}" if said else ""


def _tasks(tasks: Sequence[str], joined: str = "or") -> str:
    names = [task_label(task).lower() for task in tasks]
    if len(names) == len(TASKS):
        return "any task" if joined == "or" else "each task"
    return ", ".join(names[:-1]) + f" {joined} {names[-1]}" if len(names) > 1 else names[0]


def how() -> str:
    return (
        "All of it is drawn by `make results` from the run directories in [results/](results/README.md), which says of "
        "each run how long it took, on what, with which code, and how it ended. The whole report: `python "
        "analysis/report.py results --out report/`."
    )


INTRODUCTION = """# Results

*Written by `make results` from the run directories here.* Figures and main table: [README.md](../README.md).

`PRESET/VARIANT/TASK/seed_K/` are runs without replay and checkpoints, copied by `collect.py`; `random_policy.csv`
what random actions earn from their start states (`random_policy.py`); [speed/](speed/README.md) times;
[true_simulator/](true_simulator/README.md) the planner alone."""


def codes(parts: Sequence[Results]) -> str:
    commits = sorted({commit[:7] for part in parts for run in part.runs for commit, _ in run.commits if commit})
    return f"Made with the code of {', '.join(f'`{commit}`' for commit in commits) or 'not recorded'}."


if __name__ == "__main__":
    sys.exit(main())
