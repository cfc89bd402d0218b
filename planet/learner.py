"""One gradient step: the loss of a batch, its gradient, clipping, Adam.

Knows batches of numpy arrays and a world model; knows nothing of replay or schedules.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from planet.config import OptimizerConfig
from planet.world_model import WorldModel


@runtime_checkable
class Sequences(Protocol):
    """A batch of chunks in the time convention of `planet.transition`, as `planet.replay.Batch` is one."""

    @property
    def obs(self) -> UInt8[np.ndarray, "batch time 3 64 64"]: ...
    @property
    def action(self) -> Float32[np.ndarray, "batch time action"]: ...
    @property
    def reward(self) -> Float32[np.ndarray, "batch time"]: ...


class Learner:
    """A world model with its optimiser. The model is moved to `device`; parameters and Adam are float32."""

    def __init__(
        self,
        world_model: WorldModel,
        config: OptimizerConfig,
        device: torch.device,
        precision: str = "float32",
    ) -> None:
        """precision: of the convolutions and dense networks while the loss and its gradient are computed."""
        self.world_model = world_model.to(device)
        self.device = device
        self.precision = precision
        self.clip_norm = config.clip_norm
        self.optimizer = torch.optim.Adam(
            self.world_model.parameters(), lr=config.learning_rate, eps=config.eps, fused=True
        )

    def update(self, batch: Sequences, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one step and return the loss terms and `grad_norm` (global, before clipping), 0-dim on the device.

        Nothing here waits for the device or checks for NaN; the caller does both when it reads the numbers.
        """
        obs, action, reward = (self._to_device(x) for x in (batch.obs, batch.action, batch.reward))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss, metrics = self.world_model.loss(obs, action, reward, generator=generator)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.world_model.parameters(), self.clip_norm)
        self.optimizer.step()
        return metrics | {"grad_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        """Return parameters and optimiser state, for `load_state_dict`."""
        return {"world_model": self.world_model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the next update is then the one that would have followed."""
        self.world_model.load_state_dict(state["world_model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
