"""Copies the small files of finished true-simulator runs here and rewrites the tables of README.md from them.

    python results/true_simulator/collect.py [RUNS]

Without RUNS only the tables are rewritten. Checkpoints and leases stay behind; from run.json's command lines the
folders are left out, and a run that was started with `--set schedule.eval_episodes=1`, which `true_simulator` has meant
by itself since, is filed under that name (its configuration is the same).
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from planet.run_dir import RunDir, read_json, read_jsonl
from planet.tasks import TASKS

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "analysis" / "reference"
TABLE1 = dict(zip(TASKS, (850, 964, 656, 825, 993, 994), strict=True))
UNCLIPPED = "true_simulator+planner.refit_clipped=false"
OLD_NAME = "+schedule.eval_episodes=1"
FILES = ("config.toml", "episodes.jsonl", "metrics.jsonl", "status.json", "log.txt")


def copy(source: Path) -> None:
    paths = sorted(source.glob("paper/true_simulator*/*/seed_*"))
    if not paths:
        print(f"collect: {source} holds no run (paper/true_simulator*/TASK/seed_K); name a folder", file=sys.stderr)
        sys.exit(2)
    for path in paths:
        status = RunDir(path).status()
        if not status or status["state"] != "done":
            continue
        variant = path.parts[-3].replace(OLD_NAME, "")
        target = HERE / "paper" / variant / path.parts[-2] / path.parts[-1]
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(path / name, target / name)
        record = read_json(path / "run.json") or {}
        record["variant"] = variant
        for entry in (record, *record["starts"]):
            entry["argv"] = [argument.rsplit("/", 1)[-1] for argument in entry["argv"]]
        (target / "run.json").write_text(json.dumps(record, indent=1) + "\n")


def runs() -> list[dict[str, Any]]:
    """Return one row per run: its planner's settings, task, seed, return, and seconds per decision."""
    found = []
    for path in sorted((HERE / "paper").glob("*/*/seed_*")):
        [episode] = read_jsonl(path / "episodes.jsonl")[0]
        [metrics] = read_jsonl(path / "metrics.jsonl")[0]
        text = (path / "config.toml").read_text()
        settings = dict(re.findall(r"^(\w+) = (.+)$", text.split("[planner]")[1].split("[", 1)[0], flags=re.MULTILINE))
        found.append(
            {
                "variant": path.parts[-3],
                "task": path.parts[-2],
                "seed": int(path.parts[-1].removeprefix("seed_")),
                "return": episode["return"],
                "seconds": metrics["plan_seconds_per_agent_step"],
                "cpu_seconds": metrics.get("plan_cpu_seconds_per_agent_step"),
                "threads": metrics["threads"],
                **{key: float(settings[key]) for key in ("elite_fraction", "horizon", "iterations", "candidates")},
            }
        )
    return found


def table1(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| task | paper | ours, mean | episodes | wall s a decision | processor s a decision | refitted unclipped |",
        "|---|---|---|---|---|---|---|",
    ]
    by_task, unclipped = defaultdict(list), defaultdict(list)
    for row in rows:
        if row["variant"] == "true_simulator":
            by_task[row["task"]].append(row)
        elif row["variant"] == UNCLIPPED:
            unclipped[row["task"]].append(f"{row['return']:.0f}")
    for task, paper in TABLE1.items():
        mine = by_task[task]
        if not mine:
            lines.append(f"| {task} | {paper} | - | not run yet | | | |")
            continue
        each = ", ".join(f"{row['return']:.0f}" for row in mine)
        cpu = [row["cpu_seconds"] for row in mine if row["cpu_seconds"]]
        lines.append(
            f"| {task} | {paper} | {mean(row['return'] for row in mine):.0f} | "
            f"{each} | {mean(row['seconds'] for row in mine):.1f} | "
            f"{f'{mean(cpu):.1f}' if cpu else '-'} | {', '.join(unclipped[task])} |"
        )
    return lines


def fig12(rows: list[dict[str, Any]]) -> list[str]:
    with (REFERENCE / "fig12_planner_sweep_cheetah_true_sim.csv").open() as file:
        paper = {
            tuple(float(row[key]) for key in ("elite_fraction", "horizon", "iterations", "proposals")): row[
                "return_approx"
            ]
            for row in csv.DictReader(file)
        }
    lines = ["| candidates | iterations | horizon | elites | paper | ours (episodes) |", "|---|---|---|---|---|---|"]
    cells = defaultdict(list)
    for row in rows:
        if row["task"] == "cheetah_run" and row["variant"] != UNCLIPPED:
            fraction = row["elite_fraction"] or 0.1  # K = 100 of J = 1000
            cells[row["candidates"], row["iterations"], row["horizon"], fraction].append(row["return"])
    for (j, i, h, f), returns in sorted(cells.items()):
        lines.append(
            f"| {j:.0f} | {i:.0f} | {h:.0f} | {f:.0%} | {paper[f, h, i, j]} | "
            f"{mean(returns):.0f} ({', '.join(f'{r:.0f}' for r in returns)}) |"
        )
    return lines


def gaps() -> list[str]:
    path = HERE / "planner_gap.csv"
    if not path.exists():
        return ["not run yet"]
    returns: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    columns = ("task", "horizon", "iterations", "candidates", "control_steps", "variant")
    with path.open() as file:
        for row in csv.DictReader(file):
            returns[tuple(row[column] for column in columns)][row["seed"]] = float(row["return"])
    lines = ["| task | H | I | J | control steps | planner | returns (seeds) |", "|---|---|---|---|---|---|---|"]
    for key, found in returns.items():
        seeds = "" if list(found) == ["0"] else f" ({', '.join(found)})"
        lines.append(f"| {' | '.join(key)} | {', '.join(f'{r:.0f}' for r in found.values())}{seeds} |")
    return lines


def main() -> None:
    if len(sys.argv) > 1:
        copy(Path(sys.argv[1]))
    rows = runs()
    text = (HERE / "README.md").read_text()
    for name, lines in (("table1", table1(rows)), ("fig12", fig12(rows)), ("gap", gaps())):
        block = f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- end {name} -->"
        text, count = re.subn(rf"<!-- {name} -->.*?<!-- end {name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        assert count == 1, f"README.md needs one block {name}"
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
