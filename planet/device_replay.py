"""The replay on a GPU: bytes in its memory, sampled there, so that no picture passes the bus twice.

The same chunks as `planet.replay.Replay` gives for the same random numbers.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from planet.replay import EpisodeMemory, Replay, memory_bytes
from planet.rollout import Episode

WORKING_MEMORY = 8 * 2**30
"""Bytes of a GPU left free for updates and plans at paper size with their CUDA graphs: on an H200 two learners and the
plans of one and of ten environments together held 5.2 GiB."""


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """`planet.replay.Batch` on a device."""

    obs: UInt8[Tensor, "batch time 3 64 64"]
    action: Float32[Tensor, "batch time action"]
    reward: Float32[Tensor, "batch time"]


class DeviceReplay(EpisodeMemory):
    """Episodes in a device's memory, sampled uniformly over episodes and then over starts."""

    def __init__(self, device: torch.device, *, frames: int, episodes: int, action_size: int) -> None:
        super().__init__(frames=frames, episodes=episodes, action_size=action_size)
        self._obs = torch.empty(frames, 64, 64, 3, dtype=torch.uint8, device=device)  # as in `Replay`
        self._action = torch.empty(frames, action_size, device=device)
        self._reward = torch.empty(frames, device=device)

    def _write(self, frames: slice, episode: Episode) -> None:
        self._obs[frames] = torch.from_numpy(episode.obs).to(self._obs.device).movedim(1, -1)
        self._action[frames] = torch.from_numpy(episode.action).to(self._obs.device)
        self._reward[frames] = torch.from_numpy(episode.reward).to(self._obs.device)

    def sample(self, batch_size: int, chunk: int, rng: np.random.Generator) -> DeviceBatch:
        """Return `batch_size` independent chunks of `chunk` frames, drawn with replacement as `starts` says.

        Raises:
            ValueError: no episode yet, or one shorter than the chunk.
        """
        index = self.starts(batch_size, chunk, rng)[:, None] + np.arange(chunk)
        frames = torch.from_numpy(index)  # [B, T]
        if self._obs.device.type == "cuda":  # from other memory the copy would wait for all work before it
            frames = frames.pin_memory().to(self._obs.device, non_blocking=True)
        return DeviceBatch(self._obs[frames].movedim(-1, 2), self._action[frames], self._reward[frames])


def make_replay(device: torch.device, *, frames: int, episodes: int, action_size: int) -> Replay | DeviceReplay:
    """Return a replay on the GPU where it fits beside the work, else in this machine's memory.

    The replay's memory is taken here, the work's only with the first update. Of runs that start together on one GPU
    each may therefore count on the same free memory: `benchmarks.packing` recommends no more runs than have both.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        needed = memory_bytes(frames, action_size) + WORKING_MEMORY
        if needed <= free:
            return DeviceReplay(device, frames=frames, episodes=episodes, action_size=action_size)
        warnings.warn(
            f"{device} has {free / 2**30:.1f} GiB free and the replay beside its work needs {needed / 2**30:.1f}: it "
            "stays in the machine's memory, and each batch is copied",
            stacklevel=2,
        )
    return Replay(frames=frames, episodes=episodes, action_size=action_size)
