"""Suites: the paper's tables and figures by name, as tasks x variants (x changed keys).

Knows names and variants; knows nothing of seeds, presets or run directories. Standard library only. A cell names what
a run is, so suites that share a cell share its run: `fig5` after `fig4` finds its PlaNet runs done.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import variants
from planet.tasks import GROUPS

DMC6 = GROUPS["dmc6"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What is run, once per seed: `task` is a task, or a group for one agent of all its tasks."""

    task: str
    variant: str
    """`base`, a name or a file, as `variants.load` takes it."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Keys changed on top of the variant, as by `--set`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    name: str
    title: str
    tasks: tuple[str, ...] = DMC6
    variants: tuple[str, ...]
    changes: tuple[Mapping[str, Any], ...] = ({},)
    """Every variant is run with each of these."""

    def cells(self) -> tuple[Cell, ...]:
        """Return the suite's cells: by variant, then change, then task."""
        return cells(self.tasks, self.variants, self.changes)


def cells(
    tasks: Sequence[str], variant_names: Sequence[str], changes: Sequence[Mapping[str, Any]] = ({},)
) -> tuple[Cell, ...]:
    """Return tasks x variants x changes; a variant that is one agent for a group of tasks has one cell for all.

    A group among `tasks` stands for its members: one agent for all of them is a variant's to say (`multitask`).

    Raises:
        KeyError, ValueError, FileNotFoundError: as `variants.load`; two files make a variant of one name.
    """
    tasks = tuple(dict.fromkeys(name for task in tasks for name in GROUPS.get(task, (task,))))
    paths: dict[str, str] = {}
    for path in variant_names:
        name = variants.load(path).name
        if paths.setdefault(name, path) != path:
            raise ValueError(f"{paths[name]} and {path} are both a variant named {name}: give one file another name")
    return tuple(
        Cell(task=task, variant=name, changes=change)
        for name in variant_names
        for change in changes
        for task in variants.load(name).task_names(tuple(tasks))
    )


FIG12_GRID: dict[str, tuple[float, ...]] = {
    "planner.elite_fraction": (0.05, 0.1, 0.3, 0.5),
    "planner.horizon": (6, 8, 10, 12, 14),
    "planner.iterations": (3, 5, 10, 15),
    "planner.candidates": (100, 300, 500, 1000),
}
"""The paper's 320 cells."""

_PLANNER = ("horizon_6", "horizon_8", "horizon_10", "horizon_14", "iterations_3", "iterations_5", "iterations_15",
            "candidates_100", "candidates_300", "candidates_500", "elites_5pct", "elites_30pct", "elites_50pct",
            "warm_start", "samples_4", "refit_unclipped")  # fmt: skip

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(name="dmc6", title="The six tasks", variants=("base",)),
        Suite(name="table1", title="Table 1: against planning with the simulator", variants=("base", "true_simulator")),
        Suite(
            name="fig4",
            title="Figure 4: model designs",
            variants=("base", "stochastic", "deterministic_official", "deterministic"),
        ),
        Suite(name="fig5", title="Figure 5: agent designs", variants=("base", "random_collection", "random_shooting")),
        Suite(name="fig6", title="Figure 6: one agent for all tasks, on average", variants=("base", "multitask")),
        Suite(name="fig7", title="Figure 7: one agent for all tasks, per task", variants=("base", "multitask")),
        Suite(
            name="fig8",
            title="Figure 8: latent overshooting",
            variants=("base", "overshooting", "drnn", "drnn_overshooting"),
        ),
        Suite(name="fig9", title="Figure 9: activation", variants=("base", "elu", "stochastic", "stochastic_elu")),
        Suite(
            name="fig10",
            title="Figure 10: open-loop video predictions",
            tasks=("cheetah_run",),
            variants=("base", "overshooting", "deterministic_official", "stochastic"),
        ),
        Suite(name="fig11", title="Figure 11: state diagnostics", tasks=("cheetah_run",), variants=("base",)),
        Suite(
            name="fig12",
            title="Figure 12: planner settings with the true simulator",
            tasks=("cheetah_run",),
            variants=("true_simulator",),
            # 28 hours of a processor core per seed in all (benchmarks/cost.py).
            changes=tuple(
                dict(zip(FIG12_GRID, values, strict=True)) for values in itertools.product(*FIG12_GRID.values())
            ),
        ),
        Suite(name="planner", title="Planner settings with the learned model", variants=("base", *_PLANNER)),
        Suite(
            name="sensitivity",
            title="The settings the authors call sensitive",
            variants=(
                "base",
                "action_repeat_2",
                "action_repeat_4",
                "action_repeat_8",
                "kl_scale_0.3",
                "kl_scale_3",
                "learning_rate_3e-4",
                "learning_rate_3e-3",
            ),
        ),
        Suite(
            name="details",
            title="Details on which paper, code and ports differ",
            variants=(
                "base",
                "official_head",
                "no_reward_scale",
                "no_free_nats",
                "no_bit_depth",
                "paper_v3",
                "seed_notebook",
            ),
        ),
    )
}


def load(name: str) -> Suite:
    """Return a suite by name.

    Raises:
        KeyError: an unknown name; the message lists the nearest and all.
    """
    if name in SUITES:
        return SUITES[name]
    close = difflib.get_close_matches(name, SUITES, n=1)
    hint = f"; perhaps {close[0]}" if close else ""
    raise KeyError(f"no suite {name!r}: known are {', '.join(SUITES)}{hint}")
