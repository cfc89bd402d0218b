"""Variants: what one experiment changes against `base`, one TOML file each in ablations/.

Knows files, tasks and config keys; knows nothing of suites, seeds or run directories. Standard library only.
`python -m benchmarks.variants` rewrites ablations/README.md from the files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planet import presets, tasks
from planet.config import dotted, flatten, parse_toml, toml_value

FOLDER = Path(__file__).resolve().parent.parent / "ablations"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TEXTS = ("title", "question", "figure", "claim", "note", "task")
REQUIRED = ("title", "question")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    name: str
    title: str
    """A few words, for legends and tables."""
    question: str
    figure: str = ""
    """Where the paper shows it, e.g. `Figure 4`; empty if it does not."""
    claim: str = ""
    """What the paper reports."""
    note: str = ""
    """What a reader must know before comparing it with the paper."""
    task: str = ""
    """If not empty: runs once, on this task or group, in place of once per task (the multi-task agent)."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Changed config keys, dotted."""
    path: Path | None = None

    def task_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the tasks this variant runs on where a sweep asks for `names`."""
        return (self.task,) if self.task else names


BASE = Variant(
    name="base",
    title="PlaNet",
    question="How well does the agent of the paper do, nothing changed?",
    figure="Figures 4-9, Table 1",
    claim="Median of the last point: 824 / 952 / 662 / 700 / 953 / 960 in the order of the paper's tasks.",
)


def load(name: str) -> Variant:
    """Return `base`, a variant of ablations/ by name, or the one in a TOML file given by its path.

    Raises:
        KeyError: no variant of this name; the message lists the nearest and where all are.
        FileNotFoundError: a path to nothing. ValueError: the file is not a variant; the message says what is wrong.
    """
    if name == BASE.name:
        return BASE
    if name.endswith(".toml") or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no ablation file {name}; shipped ones are given by name: {', '.join(names())}")
        shipped = FOLDER / path.name
        if path.stem == BASE.name or (shipped.exists() and shipped.resolve() != path.resolve()):
            raise ValueError(f"{path} has the name of the shipped variant {path.stem!r}: choose another file name")
        return read(path)
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=3)
        hint = f"; perhaps {' or '.join(close)}" if close else f": known are {', '.join(names())}"
        raise KeyError(f"no ablation {name!r}{hint} (the files in ablations/; a file of your own is given by its path)")
    return read(FOLDER / f"{name}.toml")


def names() -> tuple[str, ...]:
    """Return `base` and the names of the shipped files, sorted, numbers by size."""
    shipped = (path.name.removesuffix(".toml") for path in FOLDER.glob("*.toml"))
    return (
        BASE.name,
        *sorted(shipped, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]),
    )


def read(path: Path) -> Variant:
    """Return the variant in a file.

    Raises:
        ValueError: not TOML, an unknown or missing entry, a config key or value that no task accepts, a key with two
            values.
    """
    name = path.name.removesuffix(".toml")
    if not NAME.fullmatch(name):
        raise ValueError(f"{path}: a variant's name is letters, digits, '.', '_' and '-', got {name!r}")
    data = parse_toml(path.read_bytes(), str(path))
    for key in data:
        if key not in (*TEXTS, "overrides"):
            close = difflib.get_close_matches(key, [*TEXTS, "overrides"], n=1)
            hint = f"; perhaps {close[0]}" if close else ""
            raise ValueError(f"{path}: unknown entry {key!r}: known are {', '.join(TEXTS)}, [overrides]{hint}")
    for key in TEXTS:
        if not isinstance(data.get(key, ""), str):
            raise ValueError(f"{path}: {key} must be a string, got {data[key]!r}")
    missing = [key for key in REQUIRED if not data.get(key, "").strip()]
    if missing:
        raise ValueError(f"{path} lacks {' and '.join(missing)}")
    if not isinstance(data.get("overrides", {}), dict):
        raise ValueError(f"{path}: overrides must be a table, [overrides], got {data['overrides']!r}")
    try:
        overrides = dotted(data.pop("overrides", {}))
        if not overrides and not data.get("task"):
            raise ValueError("changes nothing: give a task or keys under [overrides]")
        if data.get("task"):
            data["task"] = tasks.canonical(data["task"])
        # Keys and types are checked here, sizes against a preset when a sweep is planned.
        presets.resolve(data.get("task") or next(iter(tasks.TASKS)), ablation=overrides)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error.args[0]}") from None
    return Variant(name=name, overrides=overrides, path=path, **{key: value.strip() for key, value in data.items()})


HEADER = """\
# Ablations

*Generated from the files by `python -m benchmarks.variants`; edit those.*

One file is one experiment: the question it answers, where the paper shows it, and only the keys it changes against
`base` (the paper's agent). Run any of them by name, or your own by its path:

```
python benchmarks/launch.py --ablations overshooting my/idea.toml --tasks cheetah_run --seeds 3
```

Your own, in five lines (`figure`, `claim` and `note` are for what the paper says):

```toml
title = "Half the free nats"
question = "Does the agent need 3 free nats, or do 1.5 do?"

[overrides]
objective.free_nats = 1.5
```

Keys and their meaning: [planet/config.py](../planet/config.py). An unknown key or a wrong value
is refused before anything runs.
"""


def readme() -> str:
    """Return ablations/README.md."""
    shipped = [load(name) for name in names() if name != BASE.name]
    lines = [HEADER, "| variant | changes | question | paper | reported |", "|---|---|---|---|---|"]
    for variant in shipped:
        changes = [f"`{key} = {toml_value(value)}`" for key, value in variant.overrides.items()]
        if variant.task:
            changes.insert(0, f"one agent for all of `{variant.task}`")
        cells = (
            f"[{variant.name}]({variant.name}.toml)",
            "<br>".join(changes),
            variant.question,
            variant.figure or "-",
            variant.claim or "-",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    notes = [f"- **{variant.name}**: {' '.join(variant.note.split())}" for variant in shipped if variant.note]
    before = ["## Before comparing with the paper", "", _other_bases(shipped), "", *notes]
    return "\n".join([*lines, "", *before]) + "\n"


def _other_bases(shipped: Sequence[Variant]) -> str:
    """Return which of the changed keys begin elsewhere under `quick` than the questions say."""
    paper, quick = flatten(presets.resolve("cartpole_swingup")), presets.PRESETS["quick"]
    keys = [key for key in quick if any(key in variant.overrides for variant in shipped)]
    values = [f"`{key} = {toml_value(quick[key])}` in place of {toml_value(paper[key])}" for key in keys]
    return (
        f"Questions speak of the `paper` preset. Under `quick` the unchanged agent has {', '.join(values)}, and a file "
        "changes from there: 300 candidates are three times as many. The report says both values of every change."
    )


def main() -> None:
    path = FOLDER / "README.md"
    path.write_text(readme())
    print(f"wrote {path}: {len(names()) - 1} variants")


if __name__ == "__main__":
    main()
