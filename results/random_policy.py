"""What acting at random earns from the start states of committed runs' last evaluations: results/random_policy.csv.

    python results/random_policy.py

Every episode begins where one episode of a run's last evaluation began, and each of its actions is drawn uniformly from
[-1, 1] and held for the task's action repeat, as in the seed episodes. Nothing is drawn, so it takes seconds. Rows of
runs that have gone, or have been evaluated since, are replaced.
"""

from __future__ import annotations

import csv
import importlib.metadata
from pathlib import Path

import numpy as np

from planet.gl import choose_backend
from planet.run_dir import read_jsonl
from planet.tasks import TASKS

HERE = Path(__file__).parent
TABLE = HERE / "random_policy.csv"
COLUMNS = ("task", "seed", "episode", "env_seed", "return", "dm_control", "mujoco")
CONTROL_STEPS = 1000


def start_states(results: Path) -> list[tuple[str, int, int, int]]:
    """Return (task, run's seed, episodes, start state's seed) of all runs' last evaluations, each state once."""
    found = {}
    for path in sorted(results.glob("*/*/*/seed_*/episodes.jsonl"), key=lambda path: (path.parts[-5] != "quick", path)):
        evals = [row for row in read_jsonl(path)[0] if row["kind"] == "eval"]
        last = max((row["episode"] for row in evals), default=None)
        task, seed = path.parts[-3], int(path.parts[-2].removeprefix("seed_"))
        for row in evals:
            if row["episode"] == last:  # runs of one seed begin the evaluations after as many episodes alike
                found.setdefault((task, row["env_seed"]), (task, seed, last, row["env_seed"]))
    return sorted(found.values(), key=lambda each: each[:3])


def random_return(task: str, env_seed: int) -> float:
    """Return what one episode of random actions earns."""
    choose_backend()
    from dm_control import suite  # after the GL back end is chosen

    chosen = TASKS[task]
    env = suite.load(chosen.domain, chosen.task, task_kwargs={"random": env_seed})
    rng = np.random.default_rng(env_seed)
    spec = env.action_spec()
    env.reset()
    total = 0.0
    for _ in range(CONTROL_STEPS // chosen.action_repeat):
        action = rng.uniform(-1, 1, spec.shape)
        for _ in range(chosen.action_repeat):
            total += env.step((spec.maximum + spec.minimum) / 2 + (spec.maximum - spec.minimum) / 2 * action).reward
    return total


def main() -> None:
    versions = {name: importlib.metadata.version(name) for name in ("dm_control", "mujoco")}
    known = {}
    if TABLE.exists():
        with TABLE.open() as file:
            known = {(row["task"], row["env_seed"]): row for row in csv.DictReader(file)}
    rows = []
    for task, seed, episode, env_seed in start_states(HERE):
        row = {"task": task, "seed": seed, "episode": episode, "env_seed": env_seed}
        old = known.get((task, str(env_seed)))
        rows.append(old or row | {"return": round(random_return(task, env_seed), 6)} | versions)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{TABLE.name}: {len(rows)} episodes")


if __name__ == "__main__":
    main()
