"""Every random number of a run, keyed by what it is for: a run carries no generator state.

One `SeedSequence(seed)` is the root; a stream's key and the index of its use (update 731, collected episode 12,
evaluation 3 of episode 9) select a child. So a resumed run draws what the unbroken run draws, and evaluating more or
less never changes training.
"""

from __future__ import annotations

import numpy as np
import torch

STREAMS = {
    "init": 0,
    "train": 1,  # noise of one update: dequantisation and latent samples
    "replay": 2,  # chunks of one update
    "explore": 3,  # one collected episode: planner, filter and action noise
    "env": 4,  # start state of one collected episode
    "eval": 5,  # planner and filter noise of one evaluation episode
    "eval_env": 6,  # its start state
    "predict": 7,  # open-loop predictions
}


def sequence(seed: int, stream: str, *index: int) -> np.random.SeedSequence:
    """Return the seed sequence of one use of a stream; equal arguments give equal numbers."""
    return np.random.SeedSequence(seed, spawn_key=(STREAMS[stream], *index))


def numpy_generator(seed: int, stream: str, *index: int) -> np.random.Generator:
    return np.random.default_rng(sequence(seed, stream, *index))


def integer(seed: int, stream: str, *index: int) -> int:
    """Return a seed below 2**31, for a simulator."""
    return int(sequence(seed, stream, *index).generate_state(1)[0] >> 1)


def torch_generator(seed: int, stream: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    state = int(sequence(seed, stream, *index).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device=device).manual_seed(state)
