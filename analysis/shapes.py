"""What the files of a run directory hold as far as a report reads it, and in words what is wrong with a value.

A shape is the kind of a value in words, a tuple of the texts it may be, a list of one shape (of every item), or a table
of keys: `name?` may be missing or null, `*` is every key not named. Knows values, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

LARGEST = 2**53
"""Above it floats leave out whole numbers; no count of a run comes near."""
HUGE = 1e39
"""More than float32 can hold; the squares of smaller numbers are still numbers."""
MANY = 1_000_000
"""More episodes than any run has."""


def _is_whole(value: object, least: int = 0, most: int = LARGEST) -> bool:
    return type(value) is int and least <= value <= most


def is_number(value: object) -> bool:
    return (isinstance(value, float) and abs(value) < HUGE) or _is_whole(value, -LARGEST)


NAME, TEXT, SWITCH = "a name", "text", "true or false"
COUNT, POSITIVE, EPISODES = "a whole number from 0", "a whole number from 1", f"a whole number from 0 to {MANY:,}"
NUMBER = f"a finite number below {HUGE:.0e}".replace("+", "")
SETTING = f"text, {NUMBER}, true or false"
KINDS: dict[str, Callable[[Any], bool]] = {
    NAME: lambda value: isinstance(value, str) and value.isprintable() and value != "" and "/" not in value,
    TEXT: lambda value: isinstance(value, str),
    SWITCH: lambda value: isinstance(value, bool),
    COUNT: _is_whole,
    POSITIVE: lambda value: _is_whole(value, 1),
    EPISODES: lambda value: _is_whole(value, 0, MANY),
    NUMBER: is_number,
    SETTING: lambda value: isinstance(value, str | bool) or is_number(value),
}

Shape = Any
"""str | tuple[str, ...] | list[Shape] | dict[str, Shape]"""

_GIT: Shape = {"commit?": TEXT, "dirty?": SWITCH}
_RESOLVED: Shape = {"device?": TEXT, "precision?": TEXT, "picture?": TEXT, "threads?": COUNT}
_START: Shape = {
    "git?": _GIT, "code_hash?": TEXT, "versions?": {}, "processor?": TEXT, "cores?": COUNT, "gpus?": [{"name?": TEXT}],
    "changed?": [TEXT],
    "renderer?": TEXT,
}  # fmt: skip
RUN_JSON: Shape = {
    "preset": NAME, "variant": NAME, "task": NAME, "seed": COUNT, "git?": _GIT, "code_hash?": TEXT, "versions?": {},
    "starts": [_START], "resolved?": _RESOLVED,
}  # fmt: skip
STATUS_JSON: Shape = {
    "state": ("running", "done", "failed", "stopped"), "heartbeat?": NUMBER, "episode?": COUNT, "error?": TEXT,
    "wall_seconds?": NUMBER, "episodes_per_hour?": NUMBER,
}  # fmt: skip
CONFIG_TOML: Shape = {
    "task": NAME,
    "seed": COUNT,
    "env": {"episode_env_steps": POSITIVE, "picture": TEXT, "action_repeat?": COUNT, "*": SETTING},
    "model": {"*": SETTING},
    "objective": {"free_nats?": NUMBER, "*": SETTING},
    "optimizer": {"clip_norm?": NUMBER, "*": SETTING},
    "batch": {"*": SETTING},
    "planner": {
        "dynamics?": ("latent", "simulator"), "horizon": POSITIVE, "iterations": POSITIVE, "candidates": POSITIVE,
        "elites": POSITIVE, "elite_fraction?": NUMBER, "*": SETTING,
    },
    "schedule": {
        "seed_episodes": EPISODES, "train_episodes": EPISODES, "eval_points": EPISODES, "eval_episodes": EPISODES,
        "*": SETTING,
    },
    "runtime": {"device": TEXT, "precision": TEXT, "*": SETTING},
}  # fmt: skip
PLAN_JSON: Shape = {"suite?": NAME, "preset?": NAME, "runs": [{"variant": NAME, "task": NAME, "seed": COUNT}]}
EPISODE_ROW: dict[str, Shape] = {
    "task": NAME, "kind": ("seed", "train", "eval"), "episode": COUNT, "env_steps": COUNT, "updates": COUNT,
    "return": NUMBER, "env_seed": COUNT, "wall_seconds": NUMBER,
}  # fmt: skip


def wrong(value: object, shape: Shape, name: str = "") -> str:
    """Return the first way in which a value is not of a shape, "" where it is."""
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return _found(name, value, "a table")
        if lacking := [_join(name, key) for key in shape if key[-1] not in "?*" and key not in value]:
            return f"lacks {', '.join(lacking)}"
        named = {key.removesuffix("?"): part for key, part in shape.items() if key != "*"}
        parts = [(key, part) for key, part in named.items() if key in shape or value.get(key) is not None]
        parts += [(key, shape["*"]) for key in value if "*" in shape and key not in named]
        return _first(wrong(value[key], part, _join(name, key)) for key, part in parts)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _found(name, value, "a list")
        return _first(wrong(item, shape[0], f"{name}[{i}]") for i, item in enumerate(value))
    return "" if _is_a(shape)(value) else _found(name, value, shape if isinstance(shape, str) else " or ".join(shape))


def _is_a(shape: Shape) -> Callable[[Any], bool]:
    return KINDS[shape] if isinstance(shape, str) else lambda value: isinstance(value, str) and value in shape


def rows_wrong(rows: list[dict[str, Any]], shape: dict[str, Shape]) -> str:
    """Return the first way in which a row of a table is not of a shape, "" where all are. Quick: column by column."""
    for name, kind in shape.items():
        fits = _is_a(kind)
        if not all(name in row and fits(row[name]) for row in rows):
            return _first(
                f"row {i} {text}" if (text := wrong(row, {name: kind})) else "" for i, row in enumerate(rows, 1)
            )
    return ""


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _found(name: str, value: object, expected: str) -> str:
    text = repr(value)
    return f"has {name or 'content'} {text if len(text) <= 60 else text[:57] + '...'}, which is not {expected}"


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")
