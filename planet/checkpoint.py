"""Saving and loading all that a resumed run needs beside its append-only files. Atomic; the previous one is kept.

A checkpoint never holds generators (see `planet.streams`) or episodes (see `planet.episode_store`): it holds weights,
optimiser state, the progress counters, and how far each append-only file was valid when it was taken.

`python -m planet.checkpoint export RUN_DIR TARGET` hands a trained agent on: config.toml, run.json and weights.pt, the
model alone, which is all that `python -m planet.evaluate TARGET` needs. Weights cannot be trained further.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from planet.run_dir import CHECKPOINT_FILES, RunDir, writable_folder

FORMAT = 1
LATEST, PREVIOUS = CHECKPOINT_FILES


class CheckpointError(RuntimeError):
    """No readable checkpoint where one is needed."""


def save(directory: Path, content: dict[str, Any]) -> Path:
    """Write `content` (tensors, numbers, strings, lists and dicts) durably as the latest checkpoint.

    A kill at any moment leaves the old or the new one readable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    latest, previous, partial = directory / LATEST, directory / PREVIOUS, directory / "partial.pt"
    _write(partial, content)
    if latest.exists():
        _replace(latest, previous)
    _replace(partial, latest)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return latest


def _write(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())


def _replace(source: Path, target: Path) -> None:
    os.replace(source, target)  # a name of its own, so that a test can end the process just before it


class _Damaged(Exception):
    """A file torch cannot read."""


def begun_anew(run_dir: RunDir, every_seconds: float) -> str | None:
    """Return what to tell where a run was started before, but never got as far as a checkpoint; else None.

    Args:
        every_seconds: `runtime.checkpoint_seconds`.
    """
    if len(run_dir.run()["starts"]) < 2:  # the last one is this one
        return None
    return (
        "begun anew at the first episode: no checkpoint had been written yet "
        f"(runtime.checkpoint_seconds is {every_seconds:g})"
    )


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise _Damaged(f"{path}: {type(error).__name__}: {error}") from None
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {content.get('format')!r}, this code reads {FORMAT}")
    return content


def load(directory: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the latest readable checkpoint, or None where none was ever written.

    Falls back to the previous one if the latest is missing (a kill between two renames) or damaged.

    Raises:
        CheckpointError: files are there but none can be read, or they are of another format.
    """
    problems = []
    for path in (directory / LATEST, directory / PREVIOUS):
        if path.exists():
            try:
                return _read(path, device)
            except _Damaged as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError(
            "no readable checkpoint: " + "; ".join(problems) + "; move the run directory away to start over"
        )
    return None


def export_weights(run_dir: RunDir, target: Path) -> RunDir:
    """Write the model of the run's latest checkpoint, with config.toml and run.json, to the folder `target`.

    The same again changes nothing; what is there from another time or run is not replaced.

    Raises:
        FileNotFoundError: the run has no checkpoint. FileExistsError: it is an export already, or `target` holds
            another run or an earlier export of this one. ValueError: its config.toml, or the run.json there, cannot
            be read. OSError: `target` cannot be written. CheckpointError: the weights there cannot be read.
    """
    run_dir.config()  # the export would be of no use
    content = load(run_dir.checkpoints)
    if content is None and run_dir.weights.exists():
        path = shlex.quote(str(run_dir.path))
        raise FileExistsError(
            f"{run_dir.path} is an export already; python -m planet.evaluate {path} takes it as it is"
        )
    if content is None or "learner" not in content:
        raise FileNotFoundError(f"nothing to export: {why_no_model(run_dir)}")
    exported = RunDir(target)
    writable_folder(target, "choose another folder")
    _check_target(run_dir, content["progress"], exported)
    for source, copy in ((run_dir.config_toml, exported.config_toml), (run_dir.run_json, exported.run_json)):
        if not copy.exists():
            shutil.copyfile(source, copy)
    partial = exported.weights.with_suffix(".partial")
    _write(partial, {"world_model": content["learner"]["world_model"], "progress": content["progress"]})
    os.replace(partial, exported.weights)
    return exported


def _check_target(run_dir: RunDir, progress: Mapping[str, Any], exported: RunDir) -> None:
    """Raise FileExistsError, with what to do, where an export of the run at this progress would replace something."""
    pairs = ((run_dir.config_toml, exported.config_toml), (run_dir.run_json, exported.run_json))
    others = [copy for source, copy in pairs if copy.exists() and copy.read_bytes() != source.read_bytes()]
    if others and not _is_earlier(run_dir, exported):
        raise FileExistsError(f"{others[0]} is of another run than {run_dir.path}; choose another folder")
    own = exported.path.samefile(run_dir.path)
    if others and exported.checkpoints.exists():
        raise FileExistsError(f"{exported.path} is an earlier copy of {run_dir.path}; choose another folder")
    if others or (exported.weights.exists() and _read_weights(exported)["progress"] != progress):
        there = [exported.weights] if own else [*(copy for _, copy in pairs), exported.weights]
        names = ", ".join(file.name for file in there if file.exists())
        raise FileExistsError(
            f"{exported.path} holds an earlier export of this run; remove its {names} to export anew, or choose "
            "another folder"
        )


def _is_earlier(run_dir: RunDir, other: RunDir) -> bool:
    """Return whether the other's run.json is this run's, or was before later starts."""
    now, then = run_dir.run(), other.record()
    if then is None:
        return False
    same = all(now.get(name) == then.get(name) for name in ("config_hash", "preset", "variant", "created"))
    return same and now["starts"][: len(then["starts"])] == then["starts"]


def load_model(run_dir: RunDir, device: torch.device | str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the model's parameters and the progress counters: of the latest checkpoint, else of exported weights.

    Raises:
        FileNotFoundError: the run has neither. CheckpointError: the file cannot be read.
    """
    content = load(run_dir.checkpoints, device)
    if content is not None and "learner" in content:
        return content["learner"]["world_model"], content["progress"]
    if run_dir.weights.exists():
        content = _read_weights(run_dir, device)
        return content["world_model"], content["progress"]
    raise FileNotFoundError(why_no_model(run_dir))


def _read_weights(run_dir: RunDir, device: torch.device | str = "cpu") -> dict[str, Any]:
    try:
        return _read(run_dir.weights, device)
    except _Damaged as error:
        raise CheckpointError(f"no readable weights: {error}") from None


def why_no_model(run_dir: RunDir) -> str:
    """Return why a run has neither a checkpoint of a model nor exported weights, and how to get one."""
    path = shlex.quote(str(run_dir.path))
    if run_dir.config().planner.dynamics == "simulator":
        return f"{path} plans in the true simulator and has no model; its returns are in {run_dir.episodes_jsonl.name}"
    if run_dir.lost_checkpoint():
        return (
            f"{path} was trained, but has no checkpoint and no {run_dir.weights.name} (copies and results/ come "
            f"without); bring {run_dir.checkpoints.name}/ back, or train it again: python -m planet.reproduce {path} "
            "says how"
        )
    return f"{path} has no checkpoint yet and no {run_dir.weights.name}; train it first: python -m planet.train {path}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m planet.checkpoint", description="Hand a trained agent on.")
    export = parser.add_subparsers(required=True).add_parser("export", help="write the model alone, for evaluation")
    export.add_argument("run_dir", type=Path)
    export.add_argument("target", type=Path, help="folder for config.toml, run.json and weights.pt")
    arguments = parser.parse_args(argv)
    try:
        exported = export_weights(RunDir.open(arguments.run_dir), arguments.target)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"planet.checkpoint: {error}", file=sys.stderr)
        return 2
    print(f"{exported.weights}: {exported.weights.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
