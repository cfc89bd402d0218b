"""TensorBoard events beside the run's own files; optional, from the same rows. What figures read are the rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardWriter:
    """Writes every number of a row under its name, at its env_steps.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, directory: Path, *, purge_env_steps: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "runtime.tensorboard is true, but the package tensorboard is missing: "
                "pip install 'planet-suite[tensorboard]', or set runtime.tensorboard=false"
            ) from error
        # What a killed start wrote beyond its checkpoint is made again; TensorBoard hides the first copy.
        self._writer = SummaryWriter(str(directory), purge_step=purge_env_steps + 1 if purge_env_steps else None)

    def metrics(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("episode", "env_steps", "agent_steps", "updates") and value is not None:
                self._writer.add_scalar(f"train/{name}", value, row["env_steps"])

    def episode(self, row: Mapping[str, Any]) -> None:
        self._writer.add_scalar(f"{row['kind']}/{row['task']}/return", row["return"], row["env_steps"])

    def close(self) -> None:
        self._writer.close()
