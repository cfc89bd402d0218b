"""Run directories with known numbers, made by the run directory's own writer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import variants
from planet import presets, tasks
from planet.run_dir import Recorder, RunDir, run_path

Returns = Callable[[int, int], "list[float]"]
"""(collected episodes, seed) -> the returns of one evaluation."""

CLEAN = {"commit": "c0ffee0123456789", "dirty": False}


def returns_of(variant: str, task: str) -> Returns:
    """Return plausible learning curves: a function of the arguments alone."""
    level = {
        "cartpole_swingup": 830,
        "reacher_easy": 900,
        "cheetah_run": 650,
        "finger_spin": 700,
        "cup_catch": 940,
    }.get(task, 950)
    factor = {
        "base": 1.0,
        "stochastic": 0.55,
        "deterministic_official": 0.1,
        "random_collection": 0.6,
        "multitask": 0.8,
    }.get(variant, 0.85)

    def returns(episode: int, seed: int) -> list[float]:
        rng = np.random.default_rng([episode, seed, *variant.encode(), *task.encode()])
        mean = level * factor * (1 - np.exp(-episode / 180)) + 25 * np.sin(seed)
        return np.clip(rng.normal(mean, 20 + 0.09 * mean, 10), 0, 999).tolist()

    return returns


def make_run(
    runs: Path,
    *,
    preset: str = "paper",
    variant: str = "base",
    task: str = "cheetah_run",
    seed: int = 0,
    returns: Returns | None = None,
    until: int | None = None,
    state: str = "done",
    git: Mapping[str, Any] = CLEAN,
    resolved: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    metrics_every: int = 1,
    train_rows: bool = True,
    **status: Any,
) -> RunDir:
    """Write one run up to `until` collected episodes (None: all) and return it."""
    name = variant.split("+")[0]
    config = presets.resolve(task, preset=preset, ablation=variants.load(name).overrides, changes=changes, seed=seed)
    run = RunDir.create(run_path(runs, preset, variant, task, seed), config, preset=preset, variant=variant)
    run.record_start(
        **{
            "device": "cpu",
            "precision": "float32",
            "threads": 1,
            "picture": "exact",
            "gl": "osmesa",
            **(resolved or {}),
        }
    )
    record = json.loads(run.run_json.read_text())
    record["git"] = record["starts"][-1]["git"] = dict(git)
    record["starts"][-1]["processor"] = "Test processor"
    run.run_json.write_text(json.dumps(record))
    schedule, members = config.schedule, tasks.members(task)
    simulator = config.planner.dynamics == "simulator"
    total = 0 if simulator else schedule.seed_episodes + schedule.train_episodes
    last = total if until is None else until
    due = {0} if simulator else set(config.schedule.eval_at())
    steps = config.env.episode_env_steps
    with Recorder(run) as recorder:
        for episode in range(last + 1):
            updates = max(0, episode - schedule.seed_episodes) * schedule.updates * len(members)
            common = {
                "episode": episode, "env_steps": episode * steps * len(members), "agent_steps": episode * steps // 4,
                "updates": updates, "length": steps // 4, "wall_seconds": 36.0 * episode + seed,
            }  # fmt: skip
            kind = "seed" if episode <= schedule.seed_episodes else "train"
            if episode and train_rows:
                for member in members:
                    value = float(np.mean((returns or returns_of(name, member.name))(episode, seed))) * 0.9
                    recorder.append_episode(
                        {"task": member.name, "kind": kind, **common, "return": value, "env_seed": episode}
                    )
            if episode > schedule.seed_episodes and not episode % metrics_every and not simulator:
                recorder.append_metrics(metrics_row(episode, seed, common))
            if episode in due:
                for member in members:
                    for k, value in enumerate((returns or returns_of(name, member.name))(episode, seed)):
                        row = {"task": member.name, "kind": "eval", **common, "return": value, "env_seed": 1000 + k}
                        recorder.append_episode(row)
        fields = {
            "state": state,
            "phase": "train",
            "episode": last,
            "episodes_total": total,
            "restarts": 0,
            "error": None,
        }
        heartbeat = status.pop("heartbeat", None)
        recorder.write_status(**{**fields, **status})
    if heartbeat is not None:
        content = json.loads(run.status_json.read_text())
        run.status_json.write_text(json.dumps({**content, "heartbeat": heartbeat}))
    return run


def metrics_row(episode: int, seed: int, common: Mapping[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng([episode, seed])
    decay = float(np.exp(-episode / 150))
    noise = float(rng.normal(1, 0.03))
    return {
        **{key: common[key] for key in ("episode", "env_steps", "agent_steps", "updates", "wall_seconds")},
        "loss": (60 + 300 * decay) * noise, "image": (50 + 280 * decay) * noise, "reward": (0.3 + 3 * decay) * noise,
        "kl": max(3.0, 12 * decay) * noise, "kl_raw": (2.2 + 10 * decay) * noise, "overshooting": 0.0, "global_kl": 0.0,
        "grad_norm": (30 + 400 * decay) * noise, "train_return": 100.0 * (1 - decay),
        "train_seconds": 24.0 * noise, "plan_seconds": 9.0, "env_seconds": 2.5,
        "eval_seconds": 1.0 if episode % 50 == 0 else 0.0, "cpu_seconds": common["wall_seconds"] * 1.9,
    }  # fmt: skip


def write_plan(runs: Path, preset: str, suite: str, entries: list[tuple[str, str, int]]) -> Path:
    """Write the plan file of a suite as `launch.py` does."""
    path = runs / preset / "plans" / f"{suite}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"path": f"{v}/{t}/seed_{s}", "variant": v, "task": t, "seed": s} for v, t, s in entries]
    path.write_text(json.dumps({"suite": suite, "preset": preset, "runs": rows}))
    return path


def now() -> float:
    return time.time()
