"""How far the model can see: open-loop predictions against the truth, as numbers, film strips and short videos.

The truth is a set of held-out episodes, the same for every variant of a task (`planet.held_out`). From the posterior
after some context frames the prior is rolled with the episode's own actions; images, rewards and, through a linear
probe, simulator states are compared at every distance. (paper, Figures 10 and 11.)
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from planet import held_out, images, streams, tasks
from planet.config import Config
from planet.rollout import Episode
from planet.run_dir import RunDir
from planet.strips import difference, film_strip, write_gif, write_png
from planet.transition import State
from planet.world_model import WorldModel

CONTEXT = 5
"""Frames the model sees before it predicts (paper, Figure 10)."""
DISTANCES = 50
RIDGE = 1.0
"""Weight decay of the probe, in units of standardised features."""


def _frames(episode: Episode, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(episode.obs)[None].to(device), torch.from_numpy(episode.action)[None].to(device)


def _noise(model: WorldModel, time: int, generator: torch.Generator) -> Tensor:
    return torch.randn(1, time, model.transition.stoch_size, generator=generator, device=generator.device)


@torch.no_grad()
def observe(model: WorldModel, episode: Episode, *, generator: torch.Generator) -> State:
    """Return the posteriors [1, T+1] of a whole episode, filtered from its first frame."""
    obs, action = _frames(episode, generator.device)
    noise = images.image_noise(tuple(obs.shape[:2]), generator)
    embed = model.encoder(images.preprocess(obs, noise, bit_depth=model.bit_depth))
    posterior, _ = model.transition.observe(embed, action, model.initial(1), _noise(model, action.shape[1], generator))
    return posterior


@torch.no_grad()
def imagine(
    model: WorldModel, start: State, action: Float[Tensor, "1 time action"], generator: torch.Generator
) -> State:
    """Return the states [1, time] that the actions lead to from `start` [1], without looking."""
    return model.transition.imagine(start, action, _noise(model, action.shape[1], generator))


@torch.no_grad()
def decode(model: WorldModel, state: State) -> UInt8[np.ndarray, "time 3 64 64"]:
    """Return the pictures of states [1, time]."""
    return images.to_uint8(model.decoder(model.transition.features(state)))[0].cpu().numpy()


def at(state: State, t: slice | int) -> State:
    """Return the states [1, ...] at time(s) t."""
    return state.map(lambda x: x[:, t])


def reconstruction_strip(model: WorldModel, episode: Episode, path: Path, *, generator: torch.Generator) -> None:
    """Write a film strip of an episode's beginning: truth, reconstruction, and prediction from five frames on."""
    time = min(episode.length + 1, CONTEXT + DISTANCES - 5)
    posterior = observe(model, episode, generator=generator)
    action = _frames(episode, generator.device)[1]
    seen = predicted = decode(model, at(posterior, slice(0, time)))
    if time > CONTEXT:
        future = imagine(model, at(posterior, CONTEXT - 1), action[:, CONTEXT:time], generator)
        predicted = np.concatenate([seen[:CONTEXT], decode(model, future)])
    columns = sorted({round(t) for t in np.linspace(0, time - 1, 12)})
    write_png(path, film_strip([episode.obs[:time], seen, predicted], columns=columns, marks=CONTEXT))


def write_open_loop(
    run_dir: RunDir, config: Config, model: WorldModel, *, device: torch.device, count: int = 10
) -> list[Path]:
    """Write predictions/ of a run: errors per distance, probe results, film strips and videos; return the paths.

    Looks at `count` held-out episodes of each task; the probe that reads one episode's states is fitted to the others.

    open_loop.csv has a row per (task, episode, distance 1..50), averaged over the windows of the episode: `image_error`
    (squared error per pixel and channel, of values in [0, 1]), `reward_error` (absolute, per decision) and
    `state_error` (root mean square over the probe's dimensions, in standard deviations of each). probe.csv has the
    state error by dimension. Where an episode is shorter than 55 frames, fewer distances are written.
    """
    was_training = model.training
    model.eval()
    written: list[Path] = []
    rows: list[dict[str, object]] = []
    probe_rows: list[dict[str, object]] = []
    action_size = max(member.action_size for member in tasks.members(config.task))
    for member in tasks.members(config.task):
        if not held_out.available(member):
            continue
        episodes = held_out.episodes(member, config.env, count)
        padded = [_pad(e.episode, action_size) for e in episodes]
        generators = [
            streams.torch_generator(config.seed, "predict", 1_000_000, k, device=device) for k in range(len(episodes))
        ]
        posteriors = [observe(model, e, generator=g) for e, g in zip(padded, generators, strict=True)]
        features = [model.transition.features(p)[0].float().cpu().numpy() for p in posteriors]
        states = [e.state for e in episodes]
        scale = np.concatenate(states).std(axis=0) + 1e-8
        for k, (episode, posterior, generator) in enumerate(zip(padded, posteriors, generators, strict=True)):
            others = [j for j in range(len(episodes)) if j != k]
            probe = fit_probe([features[j] for j in others or [k]], [states[j] for j in others or [k]])
            errors = []
            for start, action in _windows(episode, device):
                future = imagine(model, at(posterior, start), action, generator)
                errors.append(_errors(model, episode, states[k], start, future, probe, scale))
            if not errors:
                continue
            shortest = min(len(e["image"]) for e in errors)
            mean = {name: np.mean([e[name][:shortest] for e in errors], axis=0) for name in errors[0]}
            for d in range(shortest):
                rows.append(
                    {
                        "task": member.name,
                        "episode": k,
                        "distance": d + 1,
                        "image_error": mean["image"][d],
                        "reward_error": mean["reward"][d],
                        "state_error": float(np.sqrt((mean["state"][d] ** 2).mean())),
                    }
                )
                for i, name in enumerate(episodes[k].state_names):
                    probe_rows.append(
                        {
                            "task": member.name,
                            "episode": k,
                            "distance": d + 1,
                            "dimension": i,
                            "name": name,
                            "error": mean["state"][d][i],
                        }
                    )
            if k < 3:
                written += _show(run_dir, member.name, k, model, episode, posterior, generator, config)
    model.train(was_training)
    run_dir.predictions.mkdir(parents=True, exist_ok=True)
    for name, table in (("open_loop.csv", rows), ("probe.csv", probe_rows)):
        if table:
            path = run_dir.predictions / name
            _write_csv(path, table)
            written.append(path)
    return written


def _pad(episode: Episode, action_size: int) -> Episode:
    missing = action_size - episode.action.shape[1]
    if not missing:
        return episode
    action = np.pad(episode.action, ((0, 0), (0, missing)))
    return Episode(obs=episode.obs, action=action, reward=episode.reward)


def _windows(episode: Episode, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield (time of the last seen frame, the actions after it) for windows of 50 steps that do not overlap."""
    action = _frames(episode, device)[1]
    for start in range(CONTEXT - 1, episode.length, DISTANCES):
        chunk = action[:, start + 1 : start + 1 + DISTANCES]
        if chunk.shape[1] == DISTANCES or (start == CONTEXT - 1 and chunk.shape[1]):
            yield start, chunk


def _errors(
    model: WorldModel,
    episode: Episode,
    truth: Float[np.ndarray, "time state"],
    start: int,
    future: State,
    probe: Float[np.ndarray, "feature_and_one state"],
    scale: Float[np.ndarray, " state"],
) -> dict[str, np.ndarray]:
    times = slice(start + 1, start + 1 + future.mean.shape[1])
    with torch.no_grad():
        features = model.transition.features(future)
        reward = model.reward(features)[0].float().cpu().numpy()
    image = decode(model, future).astype(np.float32)
    state = apply_probe(probe, features[0].float().cpu().numpy())
    return {
        "image": (((image - episode.obs[times]) / 255) ** 2).mean(axis=(1, 2, 3)),
        "reward": np.abs(reward - episode.reward[times]),
        "state": np.abs(state - truth[times]) / scale,
    }


def fit_probe(
    features: Sequence[Float[np.ndarray, "time feature"]], states: Sequence[Float[np.ndarray, "time state"]]
) -> Float[np.ndarray, "feature_and_one state"]:
    """Return the ridge regression from features to states; its last row is the constant."""
    x, y = np.concatenate(features).astype(np.float64), np.concatenate(states).astype(np.float64)
    middle, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = (x - middle) / spread
    weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (y - y.mean(axis=0)))
    weights = weights / spread[:, None]
    return np.vstack([weights, y.mean(axis=0) - middle @ weights])


def apply_probe(
    probe: Float[np.ndarray, "feature_and_one state"], features: Float[np.ndarray, "time feature"]
) -> Float[np.ndarray, "time state"]:
    return features @ probe[:-1] + probe[-1]


def _show(
    run_dir: RunDir,
    task: str,
    k: int,
    model: WorldModel,
    episode: Episode,
    posterior: State,
    generator: torch.Generator,
    config: Config,
) -> list[Path]:
    time = min(episode.length + 1, 50)  # five frames of context, then 45 open loop, as the paper draws it
    if time <= CONTEXT:
        return []
    action = _frames(episode, generator.device)[1]
    future = imagine(model, at(posterior, CONTEXT - 1), action[:, CONTEXT:time], generator)
    predicted = np.concatenate([decode(model, at(posterior, slice(0, CONTEXT))), decode(model, future)])
    truth = episode.obs[:time]
    error = difference(truth, predicted)
    columns = sorted({round(t) for t in np.linspace(0, time - 1, 12)})
    strip = run_dir.predictions / f"strip_{task}_{k}.png"
    write_png(strip, film_strip([truth, predicted, error], columns=columns, marks=CONTEXT))
    video = run_dir.predictions / f"open_loop_{task}_{k}.gif"
    write_gif(video, np.concatenate([truth, predicted, error], axis=3), frames_per_second=12.0)
    return [strip, video]


def _write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float | np.floating) else v for k, v in row.items()})
    partial.replace(path)
