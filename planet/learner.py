"""One gradient step: the loss of a batch, its gradient, clipping, Adam.

Knows batches and a world model; knows nothing of replay or schedules.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from planet.config import OptimizerConfig
from planet.cuda_graph import CudaGraph
from planet.world_model import Noise, WorldModel


@runtime_checkable
class Sequences(Protocol):
    """A batch of chunks in the time convention of `planet.transition`, as `planet.replay.Batch` is one (arrays) and
    `planet.device_replay.DeviceBatch` (tensors)."""

    @property
    def obs(self) -> UInt8[np.ndarray | Tensor, "batch time 3 64 64"]: ...
    @property
    def action(self) -> Float32[np.ndarray | Tensor, "batch time action"]: ...
    @property
    def reward(self) -> Float32[np.ndarray | Tensor, "batch time"]: ...


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
            self.world_model.parameters(), lr=config.learning_rate, eps=config.eps, fused=True,
            capturable=self._on_gpu,
        )  # fmt: skip
        self._run = CudaGraph(self.step) if self._on_gpu else self.step
        self._staging = Staging(self.device)

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def update(self, batch: Sequences, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one step and return the loss terms and `grad_norm` (global, before clipping), 0-dim on the device.

        Nothing here waits for the device or checks for NaN; the caller does both when it reads the numbers. On a GPU
        all of it but the noise is one CUDA graph from the fourth update on.
        """
        arrays = (batch.obs, batch.action, batch.reward)
        if self._on_gpu and isinstance(batch.obs, np.ndarray):
            obs, action, reward = self._staging(*(torch.as_tensor(x) for x in arrays))
        else:
            obs, action, reward = (torch.as_tensor(x).to(self.device) for x in arrays)
        noise = self.world_model.draw_noise(obs.shape[0], obs.shape[1], generator)
        return self._run(obs, action, reward, noise.image, noise.state, noise.overshooting)

    def step(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        image_noise: Tensor,
        state_noise: Tensor,
        overshooting_noise: Tensor,
    ) -> dict[str, Tensor]:
        """Do what `update` does, as a function of tensors on the device that can be recorded as a CUDA graph."""
        self.optimizer.zero_grad(set_to_none=True)
        noise = Noise(image_noise, state_noise, overshooting_noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss, metrics = self.world_model.loss_given_noise(obs, action, reward, noise)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.world_model.parameters(), self.clip_norm)
        self.optimizer.step()
        return metrics | {"grad_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        """Return parameters and optimiser state, for `load_state_dict`."""
        return {"world_model": self.world_model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the next update is then the one that would have followed.

        The state may come from another kind of device.
        """
        self.world_model.load_state_dict(state["world_model"])
        optimizer = state["optimizer"]
        groups = [{**group, "capturable": self._on_gpu} for group in optimizer["param_groups"]]
        self.optimizer.load_state_dict({**optimizer, "param_groups": groups})
        if self._on_gpu:
            self._run = CudaGraph(self.step)  # a recorded one would go on with the old moments


class Staging:
    """The way of a batch from this machine's memory to a GPU, through page-locked memory for two batches in turn.

    From other memory a copy waits for all work before it and the program for the copy. Here the program waits only if
    it is two batches ahead: memory is written again when what it held has been copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._places: list[tuple[list[Tensor], torch.cuda.Event]] = []
        self._turn = 0

    def __call__(self, *batch: Tensor) -> list[Tensor]:
        """Return the tensors on the device. They may be overwritten at once; their shapes are the same each time."""
        if len(self._places) < 2:
            memory = [torch.empty_like(x, pin_memory=True) for x in batch]  # same order in memory too
            self._places.append((memory, torch.cuda.Event()))
        memory, copied = self._places[self._turn]
        self._turn = 1 - self._turn
        copied.synchronize()
        for place, x in zip(memory, batch, strict=True):
            place.copy_(x)
        there = [place.to(self._device, non_blocking=True) for place in memory]
        copied.record(torch.cuda.current_stream(self._device))
        return there
