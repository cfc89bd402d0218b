"""How many random action sequences catch the ball within a plan's horizon, from states along an episode without action.

    python results/true_simulator/cup_candidates.py

Prints a table.
"""

from __future__ import annotations

import numpy as np

from planet import streams
from planet.config import EnvConfig
from planet.envs import make_env
from planet.simulator_score import SimulatorScore
from planet.tasks import TASKS


def main() -> None:
    env = make_env(TASKS["cup_catch"], EnvConfig())
    score = SimulatorScore([env], threads=1)
    rng = np.random.default_rng(0)
    print("| seed | decisions before | spread 1, H 12, of 2000 | spread 0.4, H 12, of 1000 | spread 1, H 24, of 500 |")
    print("|---|---|---|---|---|")
    for seed in range(3):
        env.reset(streams.integer(seed, "eval_env", 0, 0, 0))
        done = 0
        for before in (0, 5, 20, 60):
            for _ in range(before - done):
                env.step(np.zeros(env.action_size, np.float32))
            done = before
            counts = []
            for spread, horizon, candidates in ((1.0, 12, 2000), (0.4, 12, 1000), (1.0, 24, 500)):
                shape = (1, candidates, horizon, env.action_size)
                rewards = score.rewards(np.clip(spread * rng.standard_normal(shape), -1, 1))[0]
                counts.append(int((rewards.sum(-1) > 0).sum()))
            print(f"| {seed} | {before} | {' | '.join(map(str, counts))} |", flush=True)
    score.close()
    env.close()


if __name__ == "__main__":
    main()
