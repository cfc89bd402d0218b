"""Copies the small files of runs into results/, where the report and the README read them.

    python results/collect.py RUNS [PRESET]

Checkpoints, replay and leases stay behind; from run.json's command lines the folders are left out. A run whose `--set`
keys have become the preset's own since is filed as `base`: its configuration is the same, key by key.
"""

from __future__ import annotations

import json
import shutil
import sys
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


def collect(runs: Path, preset: str) -> None:
    for source in sorted((runs / preset).glob("*/*/seed_*")):
        variant, task, name = source.parts[-3:]
        variant = variant_of(RunDir.open(source), preset, variant, task, int(name.removeprefix("seed_")))
        target = HERE / preset / variant / task / name
        strips = sorted((source / "strips").glob("*.png"))
        chosen = [source / file for file in FILES] + strips[len(strips) // 2 :: max(1, len(strips) // 2)]
        chosen += sorted((source / "predictions").glob("strip_*_0.png"))
        for path in chosen:
            if path.exists():
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        record = read_json(source / "run.json") or {}
        record["variant"] = variant
        for entry in (record, *record["starts"]):
            entry["argv"] = [argument.rsplit("/", 1)[-1] for argument in entry["argv"]]
        (target / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        print(target.relative_to(HERE.parent))


if __name__ == "__main__":
    collect(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "quick")
