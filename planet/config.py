"""The complete configuration of one run: a tree of frozen dataclasses whose defaults are the paper's.

Knows the standard library and the tasks' names only, so that planning ten thousand runs or printing help never imports
torch or a simulator. There is one way to change a value, `override(config, {"planner.candidates": 500})`; presets,
ablation files and `--set` all go through it. Values bound to a task (the action repeat) live in `planet.tasks`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from planet import tasks

Picture = Literal["exact", "near", "fast"]
Transition = Literal["rssm", "ssm", "drnn"]
Precision = Literal["auto", "float32", "bfloat16"]

HELD_OUT_EPISODES = 10
"""Held-out episodes that the package has of each task (`planet.held_out`)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_device(name: str, device: str) -> None:
    """Raise ValueError where this is no device; `name` is the key or the option that it was given by."""
    _require(
        re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", device) is not None,
        f"{name} must be auto, cpu, cuda or cuda:N (N the GPU's number), got {device!r}",
    )


def _at_least(section: str, low: float | int, **values: float | int) -> None:
    for name, value in values.items():
        _require(value >= low, f"{section}.{name} must be at least {low}, got {value!r}")


def _positive(section: str, **values: float | int) -> None:
    for name, value in values.items():
        _require(value > 0, f"{section}.{name} must be greater than 0, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    action_repeat: int = 0
    """R: environment steps per decision, rewards summed, last frame kept. 0: each task's own (`planet.tasks`)."""
    episode_env_steps: int = 1000
    """Length of an episode in environment steps (dm_control's own limit, 1,000)."""
    picture: Picture = "exact"
    """`exact` equals dm_control's own picture; `near` and `fast` trade small pixel differences for speed."""

    def __post_init__(self) -> None:
        _at_least("env", 0, action_repeat=self.action_repeat)
        _at_least("env", 1, episode_env_steps=self.episode_env_steps)
        _require(
            self.episode_env_steps <= 1000,
            f"env.episode_env_steps must be at most 1000 (dm_control's limit), got {self.episode_env_steps}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    transition: Transition = "rssm"
    """`rssm`: deterministic and stochastic path (PlaNet). `ssm`: stochastic only. `drnn`: two GRUs around a
    stochastic sequence (paper, Figure 8)."""
    stoch: int = 30
    """Size of s_t."""
    deter: int = 200
    """Size of h_t (GRU units)."""
    hidden: int = 200
    """Width of the dense layers inside the transition."""
    min_std: float = 0.1
    """Added after the softplus in prior and posterior."""
    mean_only: bool = False
    """Use the mean in place of a sample, in prior and posterior (the deterministic ablations)."""
    fixed_std: float = 0.0
    """If above 0, the standard deviation of prior and posterior, in place of a learned one: with 1, KL is half the
    squared distance of the means, which trains the prior of a `mean_only` model (learned ones could grow instead)."""
    activation: Literal["relu", "elu"] = "relu"
    """Of the dense layers in transition and reward head; convolutions stay ReLU."""
    conv_depth: int = 32
    """Channels of the encoder's first layer; 32 gives the paper's 32/64/128/256 and 1024 features."""
    reward_layers: int = 2
    reward_units: int = 200
    bit_depth: int = 5
    """Bits per colour channel the model sees; 8 keeps the picture as it is (dequantisation noise stays)."""

    def __post_init__(self) -> None:
        _at_least(
            "model", 1, stoch=self.stoch, deter=self.deter, hidden=self.hidden, conv_depth=self.conv_depth,
            reward_layers=self.reward_layers, reward_units=self.reward_units,
        )  # fmt: skip
        _at_least("model", 0, min_std=self.min_std, fixed_std=self.fixed_std)
        _require(1 <= self.bit_depth <= 8, f"model.bit_depth must be in 1..8, got {self.bit_depth}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    kl_scale: float = 1.0
    """beta: weight of KL(posterior || prior)."""
    free_nats: float = 3.0
    """The KL of every (batch, time) element, summed over latent dimensions, counts at least this much."""
    image_scale: float = 1.0
    reward_scale: float = 10.0
    """Weight of the reward's log-likelihood (the official code's 10; the paper does not mention it)."""
    global_kl_scale: float = 0.0
    """Weight of KL(posterior || N(0, 1)); the first agent (arXiv v3) used 0.1."""
    overshooting_scale: float = 0.0
    """Weight of latent overshooting, over the mean of the distances 2..overshooting_distance; 0: off."""
    overshooting_distance: int = 50
    overshooting_free_nats: float = 3.0

    def __post_init__(self) -> None:
        _at_least(
            "objective", 0, kl_scale=self.kl_scale, free_nats=self.free_nats, image_scale=self.image_scale,
            reward_scale=self.reward_scale, global_kl_scale=self.global_kl_scale,
            overshooting_scale=self.overshooting_scale, overshooting_free_nats=self.overshooting_free_nats,
        )  # fmt: skip
        _at_least("objective", 2, overshooting_distance=self.overshooting_distance)
        scales = (self.image_scale, self.reward_scale, self.kl_scale, self.global_kl_scale, self.overshooting_scale)
        _require(any(scales), "one of the objective's scales must be above 0, got only zeros: nothing would be learned")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    learning_rate: float = 1e-3
    eps: float = 1e-4
    """Adam's epsilon, added after the bias correction as torch does (TF1 adds it before)."""
    clip_norm: float = 1000.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        _positive("optimizer", learning_rate=self.learning_rate, eps=self.eps, clip_norm=self.clip_norm)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    size: int = 50
    """B: chunks per update."""
    chunk: int = 50
    """L: steps per chunk."""

    def __post_init__(self) -> None:
        _at_least("batch", 1, size=self.size)
        _at_least("batch", 2, chunk=self.chunk)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannerConfig:
    dynamics: Literal["latent", "simulator"] = "latent"
    """`latent`: the learned model. `simulator`: the true MuJoCo state (Table 1's upper bound; nothing is learned)."""
    horizon: int = 12
    iterations: int = 10
    candidates: int = 1000
    elites: int = 100
    """K: candidates the next iteration is fitted to."""
    elite_fraction: float = 0.0
    """If above 0, K is this fraction of the candidates (at least one) in place of `elites`."""
    init_std: float = 1.0
    """Standard deviation of the first iteration's candidates."""
    min_std: float = 0.0
    """Lower bound of the refitted standard deviation."""
    warm_start: bool = False
    """Start from the previous decision's mean, shifted by one step (the paper starts from zero each time)."""
    refit_clipped: bool = True
    """Refit to the elites clipped to [-1, 1], as they are executed (the released code); false: as they were drawn (the
    paper's Algorithm 2 does not mention clipping). Either way they are scored clipped."""
    samples: int = 1
    """State trajectories sampled per candidate; their returns are averaged."""

    def __post_init__(self) -> None:
        _at_least(
            "planner", 1, horizon=self.horizon, iterations=self.iterations, candidates=self.candidates,
            samples=self.samples,
        )  # fmt: skip
        _require(
            0.0 <= self.elite_fraction <= 1.0,
            f"planner.elite_fraction must be in 0..1, got {self.elite_fraction}",
        )
        _require(
            self.elite_fraction > 0 or 1 <= self.elites <= self.candidates,
            f"planner.elites must be in 1..planner.candidates ({self.candidates}), got {self.elites}",
        )
        _positive("planner", init_std=self.init_std)
        _at_least("planner", 0, min_std=self.min_std)

    @property
    def num_elites(self) -> int:
        """K, whichever way it is given."""
        return max(1, round(self.elite_fraction * self.candidates)) if self.elite_fraction else self.elites


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    seed_episodes: int = 5
    """S: episodes of uniform random actions before the first update."""
    train_episodes: int = 1000
    """Cycles of C gradient steps followed by one collected episode (N tasks: N x C steps, one episode of each)."""
    updates: int = 100
    """C: gradient steps per collected episode; an agent of N tasks makes `updates_per_cycle(N)` before the next N."""
    collection: Literal["planner", "random"] = "planner"
    """`random`: training episodes act uniformly at random; evaluation still plans."""
    action_noise: float = 0.3
    """Standard deviation of the exploration noise added to the planned action, before clipping."""
    eval_points: int = 19
    """Evaluations at the middles of this many equal parts of training; one more comes at the end."""
    eval_episodes: int = 10
    open_loop_episodes: int = 10
    """Held-out episodes of each task to predict open loop at the end of training (at most 10; 0: none)."""

    def __post_init__(self) -> None:
        _at_least(
            "schedule", 1, seed_episodes=self.seed_episodes, updates=self.updates, eval_episodes=self.eval_episodes
        )
        _at_least(
            "schedule", 0, train_episodes=self.train_episodes, action_noise=self.action_noise,
            eval_points=self.eval_points, open_loop_episodes=self.open_loop_episodes,
        )  # fmt: skip
        _require(
            self.open_loop_episodes <= HELD_OUT_EPISODES,
            f"schedule.open_loop_episodes must be at most {HELD_OUT_EPISODES}, the held-out episodes there are of a "
            f"task, got {self.open_loop_episodes}",
        )

    def updates_per_cycle(self, num_tasks: int) -> int:
        """Return the gradient steps between collections: C for one task; 6C for the agent of all six, as the official
        code's flag has it (arXiv v5 says C, v3 says 6C)."""
        return self.updates * num_tasks

    def eval_at(self) -> tuple[int, ...]:
        """Return the counts of collected episodes at which an evaluation is due, ascending, the end included."""
        total, points = self.train_episodes, self.eval_points
        middles = {self.seed_episodes + math.floor((k + 0.5) * total / points + 0.5) for k in range(points)}
        return tuple(sorted(middles | {self.seed_episodes + total}))


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """How a run is executed. `device`, `checkpoint_seconds` and `tensorboard` are no part of a run's identity."""

    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`; whatever N, the first visible GPU draws."""
    precision: Precision = "float32"
    """Matrix products of the update and the plan: float32 (TF32 on a GPU), bfloat16 (parameters stay float32;
    a GPU's plans too), or `auto`: bfloat16 where the processor has it. Resolved at a run's first start and kept."""
    threads: int = 0
    """Threads of torch on the CPU; 0: resolved at a run's first start and kept, since it moves the last digits."""
    checkpoint_seconds: float = 120.0
    """At most one periodic checkpoint in this time, after a collected episode."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra `tensorboard`)."""

    def __post_init__(self) -> None:
        _at_least("runtime", 0, threads=self.threads, checkpoint_seconds=self.checkpoint_seconds)
        check_device("runtime.device", self.device)


NOT_IDENTITY = ("runtime.device", "runtime.checkpoint_seconds", "runtime.tensorboard")
"""Keys that do not change what a run computes; `identity_hash` leaves them out."""
LATER: dict[str, Any] = {"planner.refit_clipped": True}
"""Keys that came after the first runs, with what those did. A config.toml without one is read as if it said so, and
`identity_hash` leaves it out where it has this value: runs made before stay the runs they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything a run needs. `task` is a name of `planet.tasks`, or of a task group for the multi-task agent."""

    task: str = "cartpole_swingup"
    seed: int = 0
    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, f"config.seed must be in 0..{2**63 - 1} (TOML's largest), got {self.seed}")
        repeat = self.env.action_repeat or tasks.largest_action_repeat(self.task)
        if repeat:
            decisions = self.env.episode_env_steps // repeat
            _require(
                self.batch.chunk <= decisions + 1,
                f"batch.chunk must be at most the {decisions + 1} frames of an episode (env.episode_env_steps "
                f"{self.env.episode_env_steps} // action repeat {repeat}, and the first frame), got {self.batch.chunk}",
            )
        if self.objective.overshooting_scale:
            _require(
                self.objective.overshooting_distance <= self.batch.chunk,
                f"objective.overshooting_distance must be at most batch.chunk ({self.batch.chunk}), got "
                f"{self.objective.overshooting_distance}",
            )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return `{"planner.horizon": 12, ...}`: every leaf of the tree under its dotted key, in order of definition."""
    flat: dict[str, Any] = {}
    for name in _field_names(type(config)):
        value = getattr(config, name)
        if hasattr(type(value), "__dataclass_fields__"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


# Asked again for each of ten thousand runs of a sweep; what a class has does not change.
@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def diff(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return `{key: (old value, new value)}` for the keys that differ."""
    before, after = flatten(old), flatten(new)
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def parse_changes(assignments: Iterable[str], option: str = "--set") -> dict[str, str]:
    """Return `{"planner.candidates": "500"}` for `["planner.candidates=500"]`; errors name the option.

    Raises:
        ValueError: no `=`, or one key twice with different values.
    """
    changes: dict[str, str] = {}
    for assignment in assignments:
        key, found, value = assignment.partition("=")
        if not found or not key.strip():
            raise ValueError(f"{option} takes key=value, got {assignment!r}")
        if changes.get(key.strip(), value.strip()) != value.strip():
            raise ValueError(f"{option} {key.strip()} is given twice, {changes[key.strip()]} and {value.strip()}")
        changes[key.strip()] = value.strip()
    return changes


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a copy with the dotted keys replaced; all changes are applied before the result is checked.

    Strings are parsed to the field's type (so `--set planner.candidates=500` works).

    Raises:
        KeyError: an unknown key, or a whole section; the message has the nearest or all legal names.
        ValueError: a value of the wrong type or out of range.
    """
    tree: dict[str, Any] = {}
    for key, value in typed(changes).items():
        node = tree
        *parents, leaf = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return _replace(config, tree)


def typed(changes: Mapping[str, Any], *, toml: bool = False) -> dict[str, Any]:
    """Return the changes with each value in its key's type; ranges are not looked at.

    Strings are parsed, except where the values come from TOML, which writes numbers without quotes.

    Raises:
        KeyError, ValueError: as `override`.
    """
    everything, found = Config(), {}
    for key, value in changes.items():
        owner, name = _owner_of(everything, key)
        hint = _field_types(type(owner))[name]
        if toml and isinstance(value, str) and hint in (int, float, bool):
            raise ValueError(f"{key} must be {_WANTED[hint]}, got the string {value!r}: write it without quotes")
        found[key] = _parse(key, value, hint)
    return found


def _replace(node: Any, tree: Mapping[str, Any]) -> Any:
    fields = {
        name: _replace(getattr(node, name), value) if isinstance(value, dict) else value for name, value in tree.items()
    }
    return dataclasses.replace(node, **fields)


def _owner_of(config: Any, key: str) -> tuple[Any, str]:
    node, path = config, key.split(".")
    for depth, part in enumerate(path):
        names = [f.name for f in dataclasses.fields(node)]
        if part not in names:
            everything = flatten(config)
            close = difflib.get_close_matches(key, everything, n=3, cutoff=0.6)
            same_leaf = [k for k in everything if k.split(".")[-1] == path[-1] and k not in close]
            where = f"{type(node).__name__} has {', '.join(names)}"
            hint = f"; perhaps {' or '.join([*close, *same_leaf])}" if close or same_leaf else ""
            raise KeyError(f"no config key {key!r}: {where}{hint}")
        if depth == len(path) - 1:
            break
        node = getattr(node, part)
        if not dataclasses.is_dataclass(node):
            raise KeyError(f"no config key {key!r}: {'.'.join(path[: depth + 1])} is a value, not a section")
    if dataclasses.is_dataclass(getattr(node, path[-1])):
        names = ", ".join(f"{key}.{f.name}" for f in dataclasses.fields(getattr(node, path[-1])))
        raise KeyError(f"{key!r} is a whole section; set one of its keys: {names}")
    return node, path[-1]


_WANTED = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def _parse(key: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value in allowed:
            return value
        raise ValueError(f"{key} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if isinstance(hint, types.UnionType):
        raise TypeError(f"unsupported config type {hint} at {key}")
    problem = ValueError(f"{key} must be {_WANTED[hint]}, got {value!r}")
    if hint is bool:
        parsed = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        if isinstance(parsed, bool):
            return parsed
        raise problem
    if hint is str:
        if isinstance(value, str):
            return value
        raise problem
    if isinstance(value, bool):
        raise problem
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise problem from None
    if not math.isfinite(number):
        raise problem
    if hint is float:
        return number
    if number != int(number):
        raise problem
    return int(value) if isinstance(value, int) else int(number)


def to_toml(config: Config) -> str:
    """Return the complete configuration as TOML that `from_toml` reads back to an equal `Config`."""
    lines: list[str] = []
    sections: list[tuple[str, Any]] = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            sections.append((f.name, value))
        else:
            lines.append(f"{f.name} = {toml_value(value)}")
    for name, section in sections:
        lines += ["", f"[{name}]"]
        lines += [f"{f.name} = {toml_value(getattr(section, f.name))}" for f in dataclasses.fields(section)]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Return one scalar as TOML source."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value)  # JSON's strings and numbers are TOML's


def parse_toml(data: bytes, source: str) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ValueError: not UTF-8, or not TOML; the message names the source and the place.
    """
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{source} is not UTF-8: byte {data[error.start]:#04x} at position {error.start}, line {line}; save it as "
            "UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source} is not valid TOML: {error}") from None


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys: `planner.horizon = 6`, quoted or not, and `[planner]` with `horizon = 6` mean the same.

    Raises:
        ValueError: one key in two of these spellings, with different values.
    """
    flat: dict[str, Any] = {}
    for name, value in table.items():
        leaves = dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        for key, leaf in leaves.items():
            if flat.setdefault(key, leaf) != leaf:
                raise ValueError(f"{key} is given twice, {flat[key]!r} and {leaf!r}: leave one of them out")
    return flat


def from_toml(text: str, source: str = "config.toml") -> Config:
    """Return the configuration written by `to_toml`. A missing key is an error (but for `LATER`): a run reads only its
    own file."""
    return _complete(parse_toml(text.encode(), source), source)


def _complete(table: Mapping[str, Any], source: str) -> Config:
    try:
        flat = LATER | dotted(table)
        config = override(Config(), typed(flat, toml=True))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{source}: {error.args[0]}") from None
    missing = [key for key in flatten(config) if key not in flat]
    _require(
        not missing,
        f"{source} lacks {', '.join(missing)}; it must be complete (for a run of other code, python -m "
        "planet.reproduce says which)",
    )
    return config


def load(path: Path) -> Config:
    """Read a run's config.toml."""
    return _complete(parse_toml(path.read_bytes(), str(path)), str(path))


def identity_hash(config: Config) -> str:
    """Return the hash that tells two configurations apart: 16 hex digits over all keys but `NOT_IDENTITY` and `LATER`.

    A number of elites is the same whether it is given as such or as a fraction of the candidates.
    """
    if config.planner.elite_fraction:
        planner = dataclasses.replace(config.planner, elites=config.planner.num_elites, elite_fraction=0.0)
        config = dataclasses.replace(config, planner=planner)
    identity = {
        key: value
        for key, value in flatten(config).items()
        if key not in NOT_IDENTITY and not (key in LATER and value == LATER[key])
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
