"""Where CEM in the true simulator earns other returns than the paper's: which detail explains it? One at a time.

    python results/true_simulator/planner_gap.py OUT.csv [VARIANT ...] [--task finger_spin] [--control-steps 400]
        [--seeds 0 1] [--candidates 200] [--iterations 5] [--horizon 12]

Each row is the return of the first control steps of an episode, which pay 1 each at most. The planner is
`planet.cem.plan` written out again with the suspects as switches; `base` is checked to plan as the original does.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from planet import cem, streams
from planet.config import EnvConfig
from planet.envs import make_env
from planet.simulator_score import SimulatorScore
from planet.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Setting:
    candidates: int = 200
    iterations: int = 5
    elites: float = 0.1
    horizon: int = 12
    repeat: int = 0
    """0: the task's own."""
    clip: bool = True
    """Clip candidates before they are refitted to; the simulator clips them anyway."""
    spread: str = "std"
    """`printed`: the mean absolute deviation over K - 1, as printed in Algorithm 2; `variance`: no square root, which
    ends the search after four or five iterations."""
    discount: float = 1.0
    noise: float = 0.0
    """Of the executed action."""
    min_std: float = 0.0
    warm_start: bool = False
    best: bool = False
    """Execute the best candidate of the last iteration, not the mean."""
    whole_repeat: bool = True
    """False: count only the reward of the last control step of each decision."""


SETTINGS: dict[str, Setting] = {
    "base": Setting(),
    "unclipped": Setting(clip=False),
    "printed_spread": Setting(spread="printed"),
    "variance_spread": Setting(spread="variance"),
    "discount_0.99": Setting(discount=0.99),
    "noise_0.3": Setting(noise=0.3),
    "min_std_0.3": Setting(min_std=0.3),
    "warm_start": Setting(warm_start=True),
    "best_candidate": Setting(best=True),
    "last_reward": Setting(whole_repeat=False),
    "repeat_4": Setting(repeat=4),
    "repeat_8": Setting(repeat=8),
    "horizon_24": Setting(horizon=24),
    "unclipped_warm": Setting(clip=False, warm_start=True),
    "unclipped_noise": Setting(clip=False, noise=0.3),
    "unclipped_printed": Setting(clip=False, spread="printed"),
    # Diverges within ten iterations, and the episode ends with an error: name it last, or with --iterations 5 at most.
    "unclipped_variance": Setting(clip=False, spread="variance"),
}


SIZES = ("candidates", "iterations", "horizon")


class Planner:
    def __init__(self, setting: Setting, score: SimulatorScore, action_size: int) -> None:
        self.s, self.score, self.action_size = setting, score, action_size
        self.last: Tensor | None = None

    def returns(self, candidates: Tensor) -> Tensor:
        rewards = self.score.rewards(candidates.double().clamp(-1, 1).numpy())[0]  # [J, H * R]
        per_decision = rewards.reshape(len(rewards), self.s.horizon, self.s.repeat)
        per_decision = per_decision.sum(-1) if self.s.whole_repeat else per_decision[..., -1]
        weights = self.s.discount ** np.arange(self.s.horizon)
        return torch.from_numpy((per_decision * weights).sum(-1)).float()

    def plan(self, generator: torch.Generator) -> Tensor:
        s = self.s
        shape = (s.iterations, 1, s.candidates, s.horizon, self.action_size)
        noise = torch.randn((s.iterations, *shape[2:]), generator=generator)[:, None]
        mean = torch.zeros(1, s.horizon, self.action_size)
        if s.warm_start and self.last is not None:
            mean = torch.cat([self.last[:, 1:], torch.zeros_like(mean[:, :1])], dim=1)
        std = torch.ones_like(mean)
        chosen = best_candidate = mean
        for i in range(s.iterations):
            proposals = torch.addcmul(mean[:, None], std[:, None], noise[i])
            proposals = proposals.clamp(-1, 1) if s.clip else proposals
            scores = self.returns(proposals)[None]
            count = round(s.elites * s.candidates)
            best = scores.topk(count, dim=1).indices
            chosen = torch.take_along_dim(proposals, best[:, :, None, None], dim=1)
            mean = chosen.mean(dim=1)
            deviation = chosen - mean[:, None]
            if s.spread == "printed":
                std = deviation.abs().sum(dim=1) / (count - 1)
            elif s.spread == "variance":
                std = deviation.square().mean(dim=1)
            else:
                std = (deviation.square().mean(dim=1) + 1e-6).sqrt()
            std = std.clamp(min=s.min_std)
            best_candidate = chosen[:, 0]
        self.last = mean
        return (best_candidate if s.best else mean)[0, 0].clamp(-1, 1)


def episode(setting: Setting, task: str, seed: int, control_steps: int) -> tuple[float, float]:
    """Return (return, processor seconds) of the first `control_steps` control steps."""
    setting = setting if setting.repeat else dataclasses.replace(setting, repeat=TASKS[task].action_repeat)
    env = make_env(TASKS[task], EnvConfig(action_repeat=setting.repeat))
    env.reset(streams.integer(seed, "eval_env", 0, 0, 0))
    score = SimulatorScore([env], threads=1)
    planner = Planner(setting, score, env.action_size)
    rng = np.random.default_rng(seed)
    total, started = 0.0, time.process_time()
    for decision in range(control_steps // setting.repeat):
        action = planner.plan(streams.torch_generator(seed, "eval", 0, 0, 0, decision)).numpy()
        if setting.noise:
            action = np.clip(action + setting.noise * rng.standard_normal(action.shape), -1, 1).astype(np.float32)
        total += env.step(action).reward
    score.close()
    env.close()
    return total, time.process_time() - started


def check_base() -> None:
    """`base` and `unclipped` must plan as `planet.cem.plan` does, or the comparison says nothing about the latter."""
    env = make_env(TASKS["finger_spin"], EnvConfig())
    env.reset(0)
    with env.physics.reset_context():
        env.physics.data.qvel[2] = -16.0
    score = SimulatorScore([env], threads=1)
    for clip in (True, False):
        s = Setting(repeat=env.action_repeat, clip=clip)
        ours = Planner(s, score, env.action_size).plan(torch.Generator().manual_seed(0))
        original = cem.plan(
            score, num_envs=1, action_size=env.action_size, horizon=s.horizon, candidates=s.candidates, elites=20,
            iterations=s.iterations, refit_clipped=clip, generators=[torch.Generator().manual_seed(0)],
            device=torch.device("cpu"),
        )  # fmt: skip
        torch.testing.assert_close(ours, original.mean[0, 0].clamp(-1, 1))
    score.close()
    env.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*", default=list(SETTINGS))
    parser.add_argument("--task", choices=list(TASKS), default="finger_spin")
    parser.add_argument("--control-steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, default=getattr(Setting(), name))
    arguments = parser.parse_args()
    check_base()
    for seed in arguments.seeds:
        for name in arguments.variants:
            setting = SETTINGS[name]
            given = {size: getattr(arguments, size) for size in SIZES}
            changed = {size: value for size, value in given.items() if value != getattr(Setting(), size)}
            setting = dataclasses.replace(setting, **changed)
            total, seconds = episode(setting, arguments.task, seed, arguments.control_steps)
            sizes = [getattr(setting, size) for size in SIZES]
            new = not arguments.out.exists()
            with arguments.out.open("a") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["task", "variant", *SIZES, "seed", "control_steps", "return", "cpu_seconds"])
                row = [arguments.task, name, *sizes, seed, arguments.control_steps, round(total, 2), round(seconds, 1)]
                writer.writerow(row)
            print(f"{name}, seed {seed}: {total:.0f} of {arguments.control_steps} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
