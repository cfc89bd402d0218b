"""Presets and the order in which a run's values are decided: preset, task, ablation, `--set`, seed.

Presets set sizes, never the algorithm.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from planet import tasks
from planet.config import Config, override, typed

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Learns cartpole swingup in about two hours of one processor core (four where it has no bfloat16). Many small
    # batches see more per second than few large ones. Adam moves a layer's output by about width x learning rate, so
    # half the width takes twice the paper's rate (LOG.md: at 1e-3 a quarter as wide, cartpole's pole was missing from
    # the pictures for 45 episodes).
    "quick": {
        "model.conv_depth": 16,
        "model.deter": 100,
        "model.hidden": 100,
        "model.reward_units": 100,
        "optimizer.learning_rate": 2e-3,
        "batch.size": 8,
        "batch.chunk": 16,
        "objective.overshooting_distance": 16,
        "planner.candidates": 100,
        "planner.elites": 10,
        "planner.iterations": 5,
        "schedule.train_episodes": 320,
        "schedule.updates": 150,
        "schedule.eval_points": 8,
        "runtime.precision": "auto",
        "runtime.threads": 1,
    },
    # Proves the path in seconds; cannot learn.
    "smoke": {
        "env.episode_env_steps": 80,
        "model.conv_depth": 4,
        "model.deter": 16,
        "model.hidden": 16,
        "model.stoch": 6,
        "model.reward_units": 16,
        "batch.size": 4,
        "batch.chunk": 8,
        "objective.overshooting_distance": 8,
        "planner.horizon": 4,
        "planner.candidates": 20,
        "planner.elites": 4,
        "planner.iterations": 2,
        "schedule.seed_episodes": 2,
        "schedule.train_episodes": 2,
        "schedule.updates": 3,
        "schedule.eval_points": 0,
        "schedule.eval_episodes": 2,
        "schedule.open_loop_episodes": 2,
        "runtime.threads": 1,
    },
}


def with_elites(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes in which a number of elites takes the place of an earlier fraction, which would go before it."""
    if "planner.elites" in changes and "planner.elite_fraction" not in changes:
        return {**changes, "planner.elite_fraction": 0.0}
    return dict(changes)


def resolve(
    task: str,
    *,
    preset: str = "paper",
    ablation: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Config:
    """Return the complete configuration of one run.

    Raises:
        KeyError: an unknown preset, task or key. ValueError: a value of the wrong type (a string for a number is one
            in an ablation, which is TOML; `changes` are parsed) or out of range.
    """
    if preset not in PRESETS:
        close = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"; perhaps {close[0]}" if close else ""
        raise KeyError(f"no preset {preset!r}: known are {', '.join(PRESETS)}{hint}")
    name = tasks.canonical(task)
    repeat = tasks.TASKS[name].action_repeat if name in tasks.TASKS else 0
    layers: tuple[Mapping[str, Any], ...] = (
        PRESETS[preset],
        {"task": name, "env.action_repeat": repeat},
        typed(ablation or {}, toml=True),
        changes or {},
        {"seed": seed},
    )
    # Merged before they are checked: a later layer may mend what an earlier one alone would break.
    merged: dict[str, Any] = {}
    for layer in layers:
        for key in ("task", "seed"):
            if key in layer and layer is not layers[1] and layer is not layers[4]:
                raise KeyError(f"{key!r} cannot be set here: name tasks and seeds on the command line")
        merged.update(with_elites(layer))
    config = override(Config(), merged)
    # 0 given by a later layer is the task's own, too: the same run, so the same configuration.
    return config if config.env.action_repeat else override(config, {"env.action_repeat": repeat})
