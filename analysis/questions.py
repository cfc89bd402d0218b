"""What each variant asks: the files in ablations/, read as plain TOML (without benchmarks/); names for people."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.runs import TASKS

FOLDER = Path(__file__).resolve().parent.parent / "ablations"


@dataclass(frozen=True, slots=True)
class Question:
    variant: str
    title: str
    question: str = ""
    figure: str = ""
    claim: str = ""
    note: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)


BASE = Question("base", "PlaNet", "How well does the agent of the paper do, nothing changed?")


@functools.cache
def questions(folder: Path = FOLDER) -> dict[str, Question]:
    """Return every variant with a file, and base."""
    found = {"base": BASE}
    for path in sorted(folder.glob("*.toml")):
        data = tomllib.loads(path.read_text())
        name = path.name.removesuffix(".toml")
        texts = {key: " ".join(str(data.get(key, "")).split()) for key in ("question", "figure", "claim", "note")}
        found[name] = Question(name, str(data.get("title", name)), overrides=_flat(data.get("overrides", {})), **texts)
    return found


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def split(variant: str) -> tuple[str, dict[str, str]]:
    """Return the named part of a variant and its `--set` keys: `base+planner.candidates=500` -> base, {...}."""
    name, *changes = variant.split("+")
    return name, dict(change.split("=", 1) for change in changes if "=" in change)


def series_label(series: str) -> str:
    """Return a series' name for people: the ablation's title, its `--set` keys, what sets it apart from its variant."""
    variant, *apart = series.split(" · ")
    name, changes = split(variant)
    known = questions().get(name)
    title = known.title if known else name.replace("_", " ")
    with_keys = title + "".join(f" + {key.split('.')[-1]} {value}" for key, value in changes.items())
    return " · ".join([with_keys, *apart])


def task_label(task: str) -> str:
    """Return `Cheetah run` for `cheetah_run`; a group of tasks by its own name."""
    return task.replace("_", " ").capitalize() if task in TASKS or "_" in task else task
