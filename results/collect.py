"""Copies the small files of runs into results/, where the report and the README read them.

    python results/collect.py RUNS [PRESET]

Checkpoints, replay and leases stay behind, and so do videos but one of seed 0; folders are left out of run.json's
command lines. A run whose `--set` keys have become the preset's own since is filed as `base`: its configuration is the
same, key by key. What results/ had of a run is replaced whole; an exported agent (weights.pt) stays while the run has
made no update since. Runs that are under way, and two runs of one name, are refused before anything is copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from planet import config as configs
from planet.presets import resolve
from planet.run_dir import RunDir, read_json

HERE = Path(__file__).parent
FILES = (
    "config.toml",
    "episodes.jsonl",
    "metrics.jsonl",
    "status.json",
    "predictions/open_loop.csv",
    "predictions/probe.csv",
)


def variant_of(run: RunDir, preset: str, variant: str, task: str, seed: int) -> str:
    """Return `base` where the run's configuration is the preset's, else the name it has."""
    same = configs.identity_hash(run.config()) == configs.identity_hash(resolve(task, preset=preset, seed=seed))
    return "base" if same else variant


def sources(runs: Path, preset: str) -> dict[Path, Path]:
    """Return by target, relative to results/, the run directories to copy.

    Raises:
        ValueError: there is no run, one is under way, or two would become one.
    """
    found: dict[Path, Path] = {}
    paths = sorted((runs / preset).glob("*/*/seed_*"))
    if not paths:
        what = f"holds no run of {preset} ({preset}/VARIANT/TASK/seed_K)" if runs.is_dir() else "is no folder"
        raise ValueError(f"{runs} {what}; name a folder of runs, such as runs, and one of its presets")
    for source in paths:
        variant, task, name = source.parts[-3:]
        run = RunDir.open(source)
        if (state := (run.status() or {}).get("state")) not in ("done", "stopped", "failed"):
            raise ValueError(f"{source} is {state or 'new'}; stop it first, or wait until it is done")
        target = Path(preset, variant_of(run, preset, variant, task, int(name.removeprefix("seed_"))), task, name)
        if target in found:
            raise ValueError(f"{source} and {found[target]} have one configuration; leave one of them out")
        found[target] = source
    return found


def clear(target: Path, source: Path) -> None:
    """Empty what an earlier state of the run left."""
    weights = target / "weights.pt"
    before, now = (read_json(path / "status.json") or {} for path in (target, source))
    kept = weights.read_bytes() if weights.exists() and before.get("updates") == now.get("updates") else None
    if weights.exists() and kept is None:
        print(f"{weights}: the run went on, so this older agent is removed")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if kept is not None:
        weights.write_bytes(kept)


def collect(runs: Path, preset: str) -> None:
    for relative, source in sources(runs, preset).items():
        target = HERE / relative
        clear(target, source)
        strips = sorted((source / "strips").glob("*.png"))
        chosen = [source / file for file in FILES] + strips[-1:] + strips[len(strips) // 2 : len(strips) // 2 + 1]
        chosen += sorted((source / "predictions").glob("strip_*_0.png")) + sorted((source / "patches").glob("*"))
        if target.name == "seed_0":  # a megabyte each
            chosen += sorted((source / "predictions").glob("open_loop_*_0.gif"))
        for path in chosen:
            if path.exists():
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        record = read_json(source / "run.json") or {}
        record["variant"] = relative.parts[1]
        for entry in (record, *record["starts"]):
            entry["argv"] = [argument.rsplit("/", 1)[-1] for argument in entry["argv"]]
        (target / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        print(target.relative_to(HERE.parent))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python results/collect.py", description="Copy the small files of runs into results/."
    )
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder of run directories, such as runs")
    parser.add_argument("preset", nargs="?", default="quick", metavar="PRESET", help="whose runs (default: quick)")
    arguments = parser.parse_args(argv)
    try:
        collect(arguments.runs, arguments.preset)
    except (OSError, ValueError) as error:
        print(f"collect: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
