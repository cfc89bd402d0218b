"""What a run will cost: an estimate in hours from its configuration, by counting multiplications. Not a promise.

Three parts make up a run: gradient updates, planned decisions, and pictures. Of the first two each has a fixed time per
step in time (overhead of calls, kernels launched one after the other) and its multiplications over a rate. Large
matrices are multiplied faster than small ones, so a rate that fits the quick preset is low for the paper's sizes.
`benchmarks/packing.py` measures the truth for one machine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from planet import processor, tasks
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
    """Of updates in bfloat16 where the hardware has it, which is what `runtime.precision=auto` means."""
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
"""One core of a server processor with AVX-512 BF16 or AMX, one thread, pictures drawn in software. Such that a run of
the quick preset on cartpole swingup (48,000 updates, bfloat16) costs 1.8 hours: the three in results/ took 1.75, 1.96
and 2.04 of processor time (Intel Xeon with AMX). Updates in float32 were measured on another processor (AMD EPYC)."""
OLDER_CPU_CORE = dataclasses.replace(
    CPU_CORE,
    name="processor core (no bfloat16 in hardware)",
    update_rate=21e9,
    short_update_rate=21e9,
    plan_rate=17e9,
)
"""One core without these, where `runtime.precision=auto` is float32. Measured with the quick preset on an AMD EPYC with
AVX2, both cores busy: an update took 0.21 s, a decision 0.049 s."""
GPU = Hardware(
    name="GPU", unit="GPU", update_step_seconds=0.00004, plan_step_seconds=0.000016, update_rate=15e12,
    short_update_rate=24e12, plan_rate=46e12, picture_seconds=0.0015,
)  # fmt: skip
"""An NVIDIA H200 with pictures drawn by it (results/speed/gpu.csv): at the paper's size an update
took 14.4 ms in bfloat16 and 21.8 in float32, a decision 2.9 ms, one for ten episodes 11.5."""


def core() -> Hardware:
    """Return what a core of this machine is."""
    return CPU_CORE if processor.has_bfloat16() else OLDER_CPU_CORE


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
    transition = _transition(config, action_size)
    dense = transition.features * 32 * depth + _reward(config, transition.features)
    multiplications = frames * (encoder + decoder + transition.observe + dense)
    distance, chunk = config.objective.overshooting_distance, config.batch.chunk
    if config.objective.overshooting_scale:
        # A rollout from every state, as far as the chunk goes: one start fewer at each distance.
        multiplications += config.batch.size * distance * (2 * chunk - distance + 1) // 2 * transition.prior
    return multiplications


def decision_multiplications(config: Config, action_size: int) -> float:
    """Return the multiply-adds of one planned decision."""
    planner = config.planner
    steps = planner.iterations * planner.candidates * planner.samples * planner.horizon
    transition = _transition(config, action_size)
    return steps * (transition.prior + _reward(config, transition.features))


@dataclass(frozen=True, slots=True)
class _Transition:
    prior: int
    """Multiply-adds of one open-loop step."""
    observe: int
    """Of one step of a chunk: its prior and its posterior."""
    features: int


def _transition(config: Config, action_size: int) -> _Transition:
    model = config.model
    embed, stoch, deter, hidden = 32 * model.conv_depth, model.stoch, model.deter, model.hidden
    gaussian = 2 * hidden * stoch
    match model.transition:
        case "rssm":
            cell = (stoch + action_size) * hidden + 3 * (hidden + deter) * deter
            prior = cell + deter * hidden + gaussian
            return _Transition(prior, prior + (deter + embed) * hidden + gaussian, deter + stoch)
        case "ssm":
            prior = (stoch + action_size) * hidden + gaussian
            return _Transition(prior, prior + (2 * stoch + embed) * hidden + gaussian, stoch)
        case "drnn":
            head = (2 * deter + stoch) * hidden + gaussian
            decoder = 3 * (stoch + deter) * deter
            prior = 3 * (action_size + stoch + deter) * deter + head + decoder
            return _Transition(prior, 2 * prior + 3 * embed * deter, deter)


def _reward(config: Config, features: int) -> int:
    units = config.model.reward_units
    return features * units + (config.model.reward_layers - 1) * units**2 + units


def text(hours: float) -> str:
    """Return `40 s`, `12 min`, `7 h` or `3.5 days`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.1f} days"
