"""Where an update and a decision of the paper's size spend a GPU's time: `python -m benchmarks.speed.gpu_kernels`.

Prints milliseconds as a program sees them, those of the recorded graph alone, and the kernels that take longest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.test_model import ACTIONS, batch_of, config_of, model_of
from planet import hardware
from planet.agent import Agent
from planet.device_replay import DeviceBatch
from planet.learner import Learner

REPEATED, LONGEST = 5, 40


def milliseconds(action: Callable[[], object], rounds: int = 30) -> float:
    """Return the median time of `action` with all that it starts on the GPU."""
    times = []
    for warming in (*[True] * 8, *[False] * rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        action()
        torch.cuda.synchronize()
        if not warming:
            times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def print_kernels(name: str, action: Callable[[], object]) -> None:
    whole = milliseconds(action)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(REPEATED):
            action()
        torch.cuda.synchronize()
    kernels: dict[str, tuple[int, float]] = {}
    for event in found.events() or []:
        if event.device_type.name == "CUDA":
            count, microseconds = kernels.get(event.name, (0, 0.0))
            kernels[event.name] = count + 1, microseconds + event.time_range.elapsed_us()
    count = sum(count for count, _ in kernels.values()) / REPEATED
    total = sum(microseconds for _, microseconds in kernels.values()) / REPEATED / 1000
    print(f"\n{name}: {whole:.2f} ms, {count:.0f} kernels of {total:.2f} ms")
    for kernel, (count, microseconds) in sorted(kernels.items(), key=lambda item: -item[1][1])[:LONGEST]:
        print(
            f"  {microseconds / REPEATED:8.1f} us {count / REPEATED:6.1f} x {microseconds / count:8.2f}  {kernel[:140]}"
        )


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_kernels: torch sees no GPU; python -m planet.doctor says why", file=sys.stderr)
        return 2
    device, config = torch.device("cuda:0"), config_of("paper")
    hardware.use(device)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    batch, generator = batch_of(config), torch.Generator(device).manual_seed(0)
    there = DeviceBatch(*(torch.from_numpy(x).to(device) for x in (batch.obs, batch.action, batch.reward)))
    for precision in ("bfloat16", "float32"):
        learner = Learner(model_of(config), config.optimizer, device, precision)
        print_kernels(f"update, {precision}", lambda learner=learner: learner.update(there, generator))
    for envs in (1, 10):
        agent = Agent(model_of(config).to(device), config.planner, action_size=ACTIONS, precision="bfloat16")
        state = agent.start([torch.Generator(device).manual_seed(n) for n in range(envs)])
        frames = np.zeros((envs, 3, 64, 64), np.uint8)

        def act(agent: Agent = agent, frames: np.ndarray = frames) -> None:
            nonlocal state
            _, state = agent.act(state, frames, action_noise=0.3)

        print_kernels(f"decision of {envs}", act)
    print(f"\nat most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
