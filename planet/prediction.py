"""How far the model can see: open-loop predictions against the truth, as numbers, film strips and short videos.

The truth is a set of held-out episodes, the same for every variant that keeps the task's action repeat
(`planet.held_out`). From the posterior after five frames of context, all the model has seen of the episode, the prior
is rolled with the episode's own actions; images, rewards and, through a linear probe, simulator states are compared at
every distance, counted in decisions. (paper, Figures 10 and 11.)

Shapes: W windows, T frames of a window, D of them predicted.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
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
from planet.world_model import OpenLoop, WorldModel

CONTEXT = 5
"""Frames the model sees before it predicts (paper, Figure 10)."""
DISTANCES = 50
"""Frames it then predicts, at most."""
SHOWN = 50
"""Frames of a film strip, context included (paper, Figure 10)."""
STRIPS = 3
"""Film strips per task (paper, Figure 10)."""
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


def windows(episode: Episode) -> list[slice]:
    """Return the frames of an episode's windows: five of context, then those to predict, fifty in each.

        frames 0..4 | 5 ............ 54
                          50..54 | 55 ............ 104       and so on: every frame is predicted once

    What is left after the last whole window is in none. An episode too short for a whole one has one window with fewer
    frames to predict, and none where nothing is left to predict.
    """
    frames, whole = episode.length + 1, CONTEXT + DISTANCES
    if frames < whole:
        return [slice(0, frames)] if frames > CONTEXT else []
    return [slice(start, start + whole) for start in range(0, frames - whole + 1, DISTANCES)]


def to_show(planned: Sequence[bool]) -> list[int]:
    """Return the episodes to draw, in order: planned ones, as the paper's Figure 10; others where those are too few."""
    return sorted(sorted(range(len(planned)), key=lambda k: not planned[k])[:STRIPS])


def predict(model: WorldModel, episode: Episode, frames: Sequence[slice], *, generator: torch.Generator) -> OpenLoop:
    """Return what the model makes of windows of equal length, [W, T]: five steps filtered, the others open loop.

    Each window is filtered from the zero state, as a chunk is in training: of what came before its first frame the
    model knows the action that led to it and nothing else.
    """
    obs = np.stack([episode.obs[window][:CONTEXT] for window in frames])  # [W, 5, 3, 64, 64]
    action = np.stack([episode.action[window] for window in frames])  # [W, T, A]
    device = generator.device
    return model.open_loop(torch.from_numpy(obs).to(device), torch.from_numpy(action).to(device), CONTEXT, generator)


def reconstruction_strip(model: WorldModel, episode: Episode, path: Path, *, generator: torch.Generator) -> None:
    """Write a film strip of an episode's beginning: truth, reconstruction, and prediction from five frames on."""
    time = min(episode.length + 1, SHOWN)
    posterior = observe(model, episode, generator=generator)
    action = _frames(episode, generator.device)[1]
    seen = predicted = decode(model, at(posterior, slice(0, time)))
    if time > CONTEXT:
        future = imagine(model, at(posterior, CONTEXT - 1), action[:, CONTEXT:time], generator)
        predicted = np.concatenate([seen[:CONTEXT], decode(model, future)])
    columns = sorted({round(t) for t in np.linspace(0, time - 1, 12)})
    write_png(path, film_strip([episode.obs[:time], seen, predicted], columns=columns, marks=CONTEXT))


def write_open_loop(
    run_dir: RunDir,
    config: Config,
    model: WorldModel,
    *,
    trained_episodes: int,
    device: torch.device,
    count: int = 10,
) -> list[Path]:
    """Write predictions/ of a run: errors per distance, probe results, film strips and videos; return the paths.

    The probe that reads one held-out episode's states is fitted to the others' posteriors, filtered from their first
    frames on.

    open_loop.csv has a row per (task, episode, distance 1..50), averaged over the `windows` of the episode:
    `image_error` (squared error per pixel and channel, of values in [0, 1]), `reward_error` (absolute, per decision)
    and `state_error` (root mean square over the probe's dimensions, in standard deviations of each). probe.csv has the
    state error by dimension. Where an episode is shorter than 55 frames, fewer distances are written.

    Args:
        trained_episodes: episodes of each task, seed episodes included, that were collected when the model was taken;
            a column of both tables, which says what model they are of.
        count: held-out episodes to look at, of each task.
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
        shown = to_show([e.planned for e in episodes])
        for k, (episode, generator) in enumerate(zip(padded, generators, strict=True)):
            others = [j for j in range(len(episodes)) if j != k]
            probe = fit_probe([features[j] for j in others or [k]], [states[j] for j in others or [k]])
            frames = windows(episode)
            if not frames:
                continue
            found = predict(model, episode, frames, generator=generator)
            mean = _errors(model, episode, states[k], frames, found, probe, scale)
            for d in range(len(mean["image"])):
                rows.append(
                    {
                        "task": member.name,
                        "trained_episodes": trained_episodes,
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
                            "trained_episodes": trained_episodes,
                            "episode": k,
                            "distance": d + 1,
                            "dimension": i,
                            "name": name,
                            "error": mean["state"][d][i],
                        }
                    )
            if k in shown:
                written += _show(run_dir, member.name, k, episode, found)
    model.train(was_training)
    run_dir.predictions.mkdir(parents=True, exist_ok=True)
    for pattern in ("strip_*.png", "open_loop_*.gif"):  # of an earlier model, or of other episodes than today's
        for path in set(run_dir.predictions.glob(pattern)) - set(written):
            path.unlink()
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


def _errors(
    model: WorldModel,
    episode: Episode,
    state: Float[np.ndarray, "frame state"],
    frames: Sequence[slice],
    found: OpenLoop,
    probe: Float[np.ndarray, "feature_and_one state"],
    scale: Float[np.ndarray, " state"],
) -> dict[str, np.ndarray]:
    """Return the errors by distance, each the mean over the windows: image [D], reward [D], state [D, state]."""

    def truth(values: np.ndarray) -> np.ndarray:
        return np.stack([values[window][CONTEXT:] for window in frames])  # [W, D, ...]

    with torch.no_grad():
        features = model.transition.features(at(found.state, slice(CONTEXT, None))).float().cpu().numpy()
    image = images.to_uint8(found.image[:, CONTEXT:]).cpu().numpy().astype(np.float32)
    reward = found.reward[:, CONTEXT:].cpu().numpy()
    return {
        "image": (((image - truth(episode.obs)) / 255) ** 2).mean(axis=(0, 2, 3, 4)),
        "reward": np.abs(reward - truth(episode.reward)).mean(axis=0),
        "state": (np.abs(apply_probe(probe, features) - truth(state)) / scale).mean(axis=0),
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
    probe: Float[np.ndarray, "feature_and_one state"], features: Float[np.ndarray, "*batch feature"]
) -> Float[np.ndarray, "*batch state"]:
    """Return the states that the probe reads off the features."""
    return features @ probe[:-1] + probe[-1]


def _show(run_dir: RunDir, task: str, k: int, episode: Episode, found: OpenLoop) -> list[Path]:
    """Draw the first window: five frames of context, then up to 45 open loop, as the paper does."""
    predicted = images.to_uint8(found.image[0, :SHOWN]).cpu().numpy()
    truth = episode.obs[: len(predicted)]
    error = difference(truth, predicted)
    columns = sorted({round(t) for t in np.linspace(0, len(truth) - 1, 12)})
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
