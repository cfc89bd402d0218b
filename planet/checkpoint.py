"""Saving and loading all that a resumed run needs beside its append-only files. Atomic; the previous one is kept.

A checkpoint never holds generators (see `planet.streams`) or episodes (see `planet.episode_store`): it holds weights,
optimiser state, the progress counters, and how far each append-only file was valid when it was taken.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
LATEST, PREVIOUS = "latest.pt", "previous.pt"


class CheckpointError(RuntimeError):
    """No readable checkpoint where one is needed."""


def save(directory: Path, content: dict[str, Any]) -> Path:
    """Write `content` (tensors, numbers, strings, lists and dicts) durably as the latest checkpoint.

    A kill at any moment leaves the old or the new one readable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    latest, previous, partial = directory / LATEST, directory / PREVIOUS, directory / "partial.pt"
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    if latest.exists():
        _replace(latest, previous)
    _replace(partial, latest)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return latest


def _replace(source: Path, target: Path) -> None:
    os.replace(source, target)  # a name of its own, so that a test can end the process just before it


def load(directory: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the latest readable checkpoint, or None where none was ever written.

    Falls back to the previous one if the latest is missing (a kill between two renames) or damaged.

    Raises:
        CheckpointError: files are there but none can be read, or they are of another format.
    """
    problems = []
    for name in (LATEST, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        try:
            content = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            problems.append(f"{path}: {type(error).__name__}: {error}")
            continue
        if content.get("format") != FORMAT:
            raise CheckpointError(f"{path} has checkpoint format {content.get('format')!r}, this code reads {FORMAT}")
        return content
    if problems:
        raise CheckpointError(
            "no readable checkpoint: " + "; ".join(problems) + "; remove the checkpoints folder to start over"
        )
    return None
