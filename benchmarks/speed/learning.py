"""Does the fast code learn like the plain code? Trains one run with `plain.py` in place of every fast path.

    python benchmarks/speed/learning.py RUN_DIR [--task TASK] [--seed K] [--set KEY=VALUE ...]

The loss, its gradient, the predicted returns of candidates and the filter step are those of `plain.py` in float32, on
the CPU; collecting, replay, CEM and random streams are the suite's own, so that the run starts from the weights and
draws the numbers of the quick preset's run of the same seed. It is a run directory like any other: it can be stopped
and goes on when started again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import plain
from planet import presets
from planet.config import parse_changes
from planet.learner import Learner
from planet.run_dir import RunDir
from planet.train import train
from planet.transition import State
from planet.world_model import ReturnPredictor, WorldModel


def step(
    self: Learner, obs: Tensor, action: Tensor, reward: Tensor, image_noise: Tensor, state_noise: Tensor, _: Tensor
) -> dict[str, Tensor]:
    """Stand in for `Learner.step`."""
    uniform = (image_noise.float() + 0.5) / 256
    self.optimizer.zero_grad()
    total, terms = plain.loss(self.world_model, obs, action, reward, uniform, state_noise)
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(self.world_model.parameters(), self.clip_norm)
    self.optimizer.step()
    return {name: value.detach() for name, value in {**terms, "loss": total, "grad_norm": norm}.items()}


@torch.no_grad()
def predicted_returns(self: ReturnPredictor, actions: Tensor) -> Tensor:
    """Stand in for `ReturnPredictor.__call__`."""
    noise = next(self._noises).transpose(0, 1).flatten(1, 2)  # [H, N * J, S]
    with torch.autocast("cpu", enabled=False):
        return plain.returns(self.model, latent(self.state), actions, noise)


@torch.no_grad()
def filter_given_noise(
    self: WorldModel, state: State, action: Tensor, obs: Tensor, frame_noise: Tensor, noise: Tensor
) -> State:
    """Stand in for `WorldModel.filter_given_noise`."""
    image = plain.preprocess(obs, (frame_noise.float() + 0.5) / 256, self.bit_depth)
    h = plain.recur(self, latent(state), action)
    head, inputs = plain.the_rssm(self).posterior_head, torch.cat([h, plain.encode(self, image)], 1)
    found = plain.draw(self, head, inputs, h, noise)
    return State(found.h, found.s, found.mean, found.std)


def latent(state: State) -> plain.Latent:
    return plain.Latent(state.deter, state.stoch, state.mean, state.std)


IN_PLACE: tuple[tuple[Any, str, Any], ...] = (
    (Learner, "step", step),
    (ReturnPredictor, "__call__", predicted_returns),
    (WorldModel, "filter_given_noise", filter_given_noise),
)
"""(class, method, what stands in for it): every fast path of a run on the CPU."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--task", default="cartpole_swingup")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="changes")
    arguments = parser.parse_args()
    if not (arguments.run_dir / "config.toml").exists():
        changes = {"runtime.precision": "float32", "runtime.device": "cpu", **parse_changes(arguments.changes)}
        config = presets.resolve(arguments.task, preset="quick", changes=changes, seed=arguments.seed)
        RunDir.create(arguments.run_dir, config, preset="quick", variant="plain")
    for owner, name, function in IN_PLACE:
        setattr(owner, name, function)
    return train(arguments.run_dir)


if __name__ == "__main__":
    sys.exit(main())
