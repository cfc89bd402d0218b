"""What a run will cost: an estimate in hours from its configuration, by counting multiplications. Not a promise.

Three parts make up a run: gradient updates, planned decisions, and pictures. Of the first two each has a fixed time per
step in time (overhead of calls, kernels launched one after the other) and its multiplications over a rate. Large
matrices are multiplied faster than small ones, so a rate that fits the quick preset is low for the paper's sizes.
`benchmarks/packing.py` measures the truth for one machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from planet import tasks
from planet.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Where a run executes: times in seconds, rates in multiply-adds a second."""

    name: str
    unit: str
    update_step_seconds: float
    """Fixed time of an update for each of the chunk's steps, gradient included."""
    plan_step_seconds: float
    """Fixed time of a decision for each step of each iteration's rollout."""
    update_rate: float
    """Of updates in float32."""
    short_update_rate: float
    """Of updates in bfloat16, which `runtime.precision=auto` is taken for."""
    plan_rate: float
    picture_seconds: float
    """One decision in the environment: physics and a picture."""


CPU_CORE = Hardware(
    name="processor core",
    unit="core",
    update_step_seconds=0.0006,
    plan_step_seconds=0.0002,
    update_rate=28e9,
    short_update_rate=52e9,
    plan_rate=45e9,
    picture_seconds=0.02,
)
"""One core of a server processor, one thread, pictures drawn in software. Such that a run of the quick preset on
cartpole swingup (48,000 updates, bfloat16) costs 1.8 hours: the three in results/ took 1.75, 1.96 and 2.04 of processor
time (Intel Xeon with AMX). Updates in float32 were measured on another processor (AMD EPYC)."""
GPU = Hardware(
    name="GPU", unit="GPU", update_step_seconds=0.0006, plan_step_seconds=0.0001, update_rate=20e12,
    short_update_rate=20e12, plan_rate=20e12, picture_seconds=0.003,
)  # fmt: skip
"""Assumed for a data-centre GPU of 2024, not measured."""


START_SECONDS = 10.0
"""Of processor time for any run: loading libraries, contexts, predictions at the end."""


@dataclass(frozen=True, slots=True)
class Cost:
    updates: int
    decisions: int
    """Planned ones; random decisions cost nothing."""
    hours: float


def estimate(config: Config, hardware: Hardware) -> Cost:
    """Return what one run costs on one GPU or one core of this kind."""
    schedule, planner = config.schedule, config.planner
    members = tasks.members(config.task)
    evals = len(schedule.eval_at()) * schedule.eval_episodes
    trained = schedule.train_episodes if schedule.collection == "planner" else 0
    lengths = [config.env.episode_env_steps // (config.env.action_repeat or task.action_repeat) for task in members]
    action_size = max(task.action_size for task in members)
    updates = schedule.updates_per_cycle(len(members)) * schedule.train_episodes
    pictures = (schedule.seed_episodes + schedule.train_episodes + evals) * sum(lengths)
    if planner.dynamics == "simulator":
        # Nothing is learned; a decision steps the simulator, which no GPU does.
        decisions = schedule.eval_episodes * sum(lengths)
        imagined = planner.iterations * planner.candidates * planner.horizon  # decisions for each of ours
        seconds = sum(
            length * (config.env.action_repeat or task.action_repeat)
            * SIMULATOR_SECONDS.get(task.name, OTHER_SIMULATOR_SECONDS)
            for length, task in zip(lengths, members, strict=True)
        )  # fmt: skip
        return Cost(0, decisions, schedule.eval_episodes * imagined * seconds / 3600)
    decisions = (trained + evals) * sum(lengths)
    # Evaluation episodes advance together: their decisions share the fixed time.
    calls = (trained + evals / schedule.eval_episodes) * sum(lengths)
    rate = hardware.update_rate if config.runtime.precision == "float32" else hardware.short_update_rate
    update = 3 * update_multiplications(config, action_size) / rate
    seconds = (
        updates * (update + config.batch.chunk * hardware.update_step_seconds)
        + calls * planner.iterations * planner.horizon * hardware.plan_step_seconds
        + decisions * decision_multiplications(config, action_size) / hardware.plan_rate
        + pictures * hardware.picture_seconds
        + START_SECONDS
    )
    return Cost(updates, decisions, seconds / 3600)


SIMULATOR_SECONDS = {
    "cartpole_swingup": 8e-6,
    "reacher_easy": 2.5e-6,
    "cheetah_run": 8e-6,
    "finger_spin": 10e-6,
    "cup_catch": 45e-6,
    "walker_walk": 87e-6,
}
"""One control step in MuJoCo's rollout with its reward, no picture, on one core of a 2024 server processor: measured at
full size. Cup and walker take ten physics steps for each."""
OTHER_SIMULATOR_SECONDS = 20e-6


def update_multiplications(config: Config, action_size: int) -> float:
    """Return the multiply-adds of one forward pass over a batch; the gradient costs twice as much again."""
    model, frames = config.model, config.batch.size * config.batch.chunk
    depth = model.conv_depth
    encoder = sum(
        16 * channels_in * channels_out * size**2
        for channels_in, channels_out, size in (
            (3, depth, 31), (depth, 2 * depth, 14), (2 * depth, 4 * depth, 6), (4 * depth, 8 * depth, 2)
        )
    )  # fmt: skip
    # A transposed convolution multiplies once per input element and kernel place.
    decoder = sum(
        kernel**2 * channels_in * channels_out * size**2
        for kernel, channels_in, channels_out, size in (
            (5, 32 * depth, 4 * depth, 1), (5, 4 * depth, 2 * depth, 5), (6, 2 * depth, depth, 13), (6, depth, 3, 30)
        )
    )  # fmt: skip
    step = _prior_step(config, action_size) + (model.deter + 32 * depth) * model.hidden + 2 * model.hidden * model.stoch
    dense = (model.deter + model.stoch) * 32 * depth + _reward(config)
    overshooting = config.objective.overshooting_distance * _prior_step(config, action_size)
    return frames * (encoder + decoder + step + dense + (overshooting if config.objective.overshooting_scale else 0))


def decision_multiplications(config: Config, action_size: int) -> float:
    """Return the multiply-adds of one planned decision."""
    planner = config.planner
    steps = planner.iterations * planner.candidates * planner.samples * planner.horizon
    return steps * (_prior_step(config, action_size) + _reward(config))


def _prior_step(config: Config, action_size: int) -> int:
    model = config.model
    return (
        (model.stoch + action_size) * model.hidden
        + 3 * (model.hidden + model.deter) * model.deter
        + model.deter * model.hidden
        + 2 * model.hidden * model.stoch
    )


def _reward(config: Config) -> int:
    units = config.model.reward_units
    return (config.model.deter + config.model.stoch) * units + (config.model.reward_layers - 1) * units**2 + units


def text(hours: float) -> str:
    """Return `40 s`, `12 min`, `7 h` or `3.5 days`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.1f} days"
