"""The tasks by name: dm_control's domain and task, and the paper's action repeat. Knows names only, loads nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    name: str
    domain: str
    task: str
    action_repeat: int
    """The paper's R (Appendix A)."""
    action_size: int


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="cartpole_swingup", domain="cartpole", task="swingup", action_repeat=8, action_size=1),
        Task(name="reacher_easy", domain="reacher", task="easy", action_repeat=4, action_size=2),
        Task(name="cheetah_run", domain="cheetah", task="run", action_repeat=4, action_size=6),
        Task(name="finger_spin", domain="finger", task="spin", action_repeat=2, action_size=2),
        Task(name="cup_catch", domain="ball_in_cup", task="catch", action_repeat=4, action_size=2),
        Task(name="walker_walk", domain="walker", task="walk", action_repeat=2, action_size=6),
    )
}
"""The paper's six tasks, in the order of its figures."""

ALIASES = {"ball_in_cup_catch": "cup_catch"}

GROUPS: dict[str, tuple[str, ...]] = {"dmc6": tuple(TASKS)}
"""Names for several tasks; as a run's task, a group means one agent for all of them."""


def register(task: Task) -> None:
    """Add a task of your own, so that `planet.presets.resolve` knows its name and action repeat.

    Raises:
        ValueError: the name is taken.
    """
    if task.name in TASKS or task.name in GROUPS or task.name in ALIASES:
        raise ValueError(f"a task named {task.name!r} exists already")
    TASKS[task.name] = task


def canonical(name: str) -> str:
    """Return the suite's own name of a task or group.

    Raises:
        KeyError: an unknown name; the message lists the nearest and all.
    """
    name = ALIASES.get(name, name)
    if name in TASKS or name in GROUPS:
        return name
    known = [*TASKS, *GROUPS]
    close = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
    hint = f"; perhaps {close[0]}" if close else ""
    raise KeyError(f"no task {name!r}: known are {', '.join(known)}{hint}")


def largest_action_repeat(name: str) -> int:
    """Return the largest R of the tasks a run of this name acts in; 0 for one that is not registered here."""
    return max((TASKS[n].action_repeat for n in GROUPS.get(name, (name,)) if n in TASKS), default=0)


def members(name: str) -> tuple[Task, ...]:
    """Return the tasks a run of this name acts in: one, or all of a group."""
    name = canonical(name)
    return tuple(TASKS[n] for n in GROUPS.get(name, (name,)))
