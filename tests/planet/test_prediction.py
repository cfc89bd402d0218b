import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from planet import held_out, images, prediction, streams
from planet.config import ModelConfig, ObjectiveConfig
from planet.presets import resolve
from planet.rollout import Episode
from planet.run_dir import RunDir
from planet.strips import GAP, difference, film_strip
from planet.tasks import TASKS
from planet.world_model import WorldModel

CPU = torch.device("cpu")


def test_a_probe_finds_a_linear_map():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(200, 5)) * [1, 10, 0.1, 1, 1] for _ in range(3)]
    weights, constant = rng.normal(size=(5, 2)), np.array([3.0, -1.0])
    states = [f @ weights + constant for f in features]

    probe = prediction.fit_probe(features[:2], states[:2])

    spread = np.concatenate(states).std(axis=0)
    assert np.abs(prediction.apply_probe(probe, features[2]) - states[2]).max() < 0.02 * spread.min()


def test_a_probe_of_noise_predicts_the_mean():
    rng = np.random.default_rng(0)
    features, states = [rng.normal(size=(5000, 3))], [rng.normal(size=(5000, 1)) + 7]

    probe = prediction.fit_probe(features, states)

    np.testing.assert_allclose(prediction.apply_probe(probe, rng.normal(size=(10, 3))), 7, atol=0.2)


def test_a_film_strip_shows_the_named_frames_and_where_prediction_begins():
    video = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 64, 64), np.uint8)

    picture = film_strip([video, video], columns=[0, 3, 9], marks=3)

    assert picture.shape == (2 * 64 + GAP, 3 * 64 + 2 * GAP, 3)
    assert [int(picture[70, x, 0]) for x in (0, 64 + GAP, 2 * (64 + GAP))] == [0, 3, 9]
    assert tuple(picture[0, 64]) == (213, 94, 0)


def test_a_difference_is_grey_where_there_is_none():
    truth = np.full((1, 3, 64, 64), 100, np.uint8)

    assert (difference(truth, truth) == 128).all()
    assert (difference(truth, truth + 50) == 153).all()
    assert (difference(truth, truth - 100) == 78).all()


@pytest.fixture(scope="module")
def model() -> WorldModel:
    # hidden: of only eight ReLUs all may be silent, and a frame then leaves no trace
    config = ModelConfig(stoch=3, deter=8, hidden=32, conv_depth=2, reward_units=8)
    return WorldModel(config, ObjectiveConfig(), 1, torch.Generator().manual_seed(0))


def test_open_loop_states_follow_the_actions_and_ignore_later_frames(model):
    rng = np.random.default_rng(0)
    obs = rng.integers(256, size=(9, 3, 64, 64), dtype=np.uint8)
    action = rng.uniform(-1, 1, (9, 1)).astype(np.float32)
    episode = Episode(obs, action, np.zeros(9, np.float32))
    other = Episode(np.concatenate([obs[:5], 255 - obs[5:]]), action, episode.reward)

    def predict(e: Episode, actions: np.ndarray) -> torch.Tensor:
        posterior = prediction.observe(model, e, generator=torch.Generator().manual_seed(1))
        future = torch.from_numpy(actions[None, 5:])
        return prediction.imagine(model, prediction.at(posterior, 4), future, torch.Generator().manual_seed(2)).stoch

    assert torch.equal(predict(episode, action), predict(other, action))
    assert not torch.equal(predict(episode, action), predict(episode, -action))


def random_episode(decisions: int, action_size: int = 1) -> Episode:
    rng = np.random.default_rng(decisions)
    obs = rng.integers(256, size=(decisions + 1, 3, 64, 64), dtype=np.uint8)
    action = rng.uniform(-1, 1, (decisions + 1, action_size)).astype(np.float32)
    return Episode(obs, action, rng.uniform(size=decisions + 1).astype(np.float32))


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        (4, []),  # five frames: all of them context
        (5, [(0, 6)]),
        (53, [(0, 54)]),
        (54, [(0, 55)]),
        (103, [(0, 55)]),
        (104, [(0, 55), (50, 105)]),
        (250, [(0, 55), (50, 105), (100, 155), (150, 205)]),
    ],
)
def test_windows_have_five_frames_of_context_and_predict_no_frame_twice(decisions, expected):
    found = prediction.windows(random_episode(decisions))

    assert [(window.start, window.stop) for window in found] == expected


def test_the_model_sees_the_five_frames_of_a_window_and_no_other(model):
    episode = random_episode(104)
    frames = prediction.windows(episode)

    def second_window(*changed: int) -> torch.Tensor:
        obs = episode.obs.copy()
        obs[list(changed)] = 255
        other = Episode(obs, episode.action, episode.reward)
        found = prediction.predict(model, other, frames, generator=torch.Generator().manual_seed(0))
        assert found.image.shape == (2, 55, 3, 64, 64)
        return found.state.deter[1, 5:]

    unchanged = second_window()
    assert torch.equal(second_window(*range(50)), unchanged)  # before the context
    assert torch.equal(second_window(*range(55, 105)), unchanged)  # the frames that are predicted
    for t in range(50, 55):
        assert not torch.equal(second_window(t), unchanged)


@pytest.mark.parametrize("decisions", [3, 4, 5, 60])
def test_a_strip_is_drawn_of_an_episode_of_any_length(model: WorldModel, decisions: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episode = Episode(
        rng.integers(256, size=(decisions + 1, 3, 64, 64), dtype=np.uint8),
        rng.uniform(-1, 1, size=(decisions + 1, model.action_size)).astype(np.float32),
        np.zeros(decisions + 1, np.float32),
    )

    prediction.reconstruction_strip(model, episode, tmp_path / "strip.png", generator=torch.Generator().manual_seed(0))

    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.height == 3 * 64 + 2 * GAP


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        ([k % 3 == 0 for k in range(10)], [0, 3, 6]),
        ([True, False, False, True], [0, 1, 3]),
        ([False, False], [0, 1]),
    ],
)
def test_planned_episodes_are_drawn_first(planned, expected):
    assert prediction.to_show(planned) == expected


def made_up_episodes(count: int) -> list[held_out.HeldOut]:
    rng = np.random.default_rng(0)
    return [
        held_out.HeldOut(random_episode(54), rng.normal(size=(55, 2)), ("a position", "a velocity"), k % 3 == 0)
        for k in range(count)
    ]


def test_strips_are_of_planned_episodes_and_older_pictures_go(model, tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "episodes", lambda task, config, count: made_up_episodes(count))
    run = RunDir.create(
        tmp_path / "seed_0", resolve("cartpole_swingup", preset="smoke"), preset="smoke", variant="base"
    )
    run.predictions.mkdir()
    (run.predictions / "strip_cartpole_swingup_1.png").write_bytes(b"of an earlier model")

    written = prediction.write_open_loop(run, run.config(), model, trained_episodes=4, device=CPU, count=7)

    pictures = {f"{kind}_cartpole_swingup_{k}" for kind in ("strip", "open_loop") for k in (0, 3, 6)}
    assert {path.stem for path in run.predictions.iterdir()} == pictures | {"open_loop", "probe"}
    assert {path.name for path in written} == {path.name for path in run.predictions.iterdir()}


@pytest.mark.slow
def test_the_table_holds_the_errors_of_every_distance(model, tmp_path):
    config = resolve(
        "cartpole_swingup", preset="smoke", changes={"env.episode_env_steps": 840}
    )  # 106 frames, 2 windows
    run = RunDir.create(tmp_path / "seed_0", config, preset="smoke", variant="base")

    written = prediction.write_open_loop(run, config, model, trained_episodes=7, device=CPU, count=2)

    with (run.predictions / "open_loop.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["episode"]), int(r["distance"])) for r in rows] == [(k, d) for k in (0, 1) for d in range(1, 51)]
    assert {r["trained_episodes"] for r in rows} == {"7"}
    assert all(path.exists() for path in written)

    # One row again, by hand: both windows of episode 0, each from the zero state, at distance 2.
    truth = held_out.episodes(TASKS["cartpole_swingup"], config.env, 2)[0].episode
    generator = streams.torch_generator(config.seed, "predict", 1_000_000, 0)
    prediction.observe(model, truth, generator=generator)  # for the probe; only its draws count here
    picture_noise = images.image_noise((2, 5), generator)
    noise = torch.randn(2, 55, model.transition.stoch_size, generator=generator)
    image_errors, reward_errors = [], []
    for w, first in enumerate((0, 50)):
        state = model.initial(1)
        for t in range(7):
            action = torch.from_numpy(truth.action[None, first + t])
            if t < 5:
                obs = torch.from_numpy(truth.obs[None, first + t])
                seen = images.preprocess(obs, picture_noise[w, t][None], bit_depth=model.bit_depth)
                state = model.transition.posterior(state, action, model.encoder(seen), noise[w, t][None])
            else:
                state = model.transition.prior(state, action, noise[w, t][None])
        with torch.no_grad():
            features = model.transition.features(state)
            picture = images.to_uint8(model.decoder(features))[0].numpy()
            reward_errors.append(abs(model.reward(features).item() - truth.reward[first + 6]))
        image_errors.append(np.mean(((picture.astype(float) - truth.obs[first + 6]) / 255) ** 2))
    assert float(rows[1]["image_error"]) == pytest.approx(np.mean(image_errors), rel=1e-3)
    assert float(rows[1]["reward_error"]) == pytest.approx(np.mean(reward_errors), rel=1e-3, abs=1e-5)

    with (run.predictions / "probe.csv").open() as file:
        probe = [r for r in csv.DictReader(file) if r["episode"] == "0" and r["distance"] == "2"]
    rms = np.sqrt(np.mean([float(r["error"]) ** 2 for r in probe]))
    assert float(rows[1]["state_error"]) == pytest.approx(rms, rel=1e-3)
    assert {r["trained_episodes"] for r in probe} == {"7"}
    assert len(probe) == 5  # the cart's position, the pole's sine and cosine, both velocities


def test_held_out_episodes_are_the_same_every_time():
    config = resolve("reacher_easy", preset="smoke").env
    once = held_out.episodes(TASKS["reacher_easy"], config, 2)
    again = held_out.episodes(TASKS["reacher_easy"], config, 2)

    for a, b in zip(once, again, strict=True):
        assert (a.episode.obs == b.episode.obs).all() and (a.state == b.state).all()
        assert len(a.state_names) == a.state.shape[1]
        assert len(a.state) == len(a.episode.obs)


def test_a_probe_decays_as_of_standardised_features():
    # Features of spread 5 and 1: as z = -1, 1 each, the weight is z'y / (z'z + RIDGE) = 2 / (2 + 1).
    for spread in (5.0, 1.0):
        probe = prediction.fit_probe([np.array([[-spread], [spread]])], [np.array([[-1.0], [1.0]])])

        assert prediction.apply_probe(probe, np.array([[spread]])).item() == pytest.approx(2 / 3, rel=1e-5)


def test_a_reconstruction_strip_holds_truth_posteriors_and_a_prediction_from_five_frames_on(
    model, tmp_path, monkeypatch
):
    episode, shown, decoded, decode = random_episode(9), [], [], prediction.decode

    def noted(model, state):
        decoded.append((state, decode(model, state)))
        return decoded[-1][1]

    monkeypatch.setattr(prediction, "decode", noted)
    monkeypatch.setattr(prediction, "film_strip", lambda rows, **where: shown.extend(rows) or film_strip(rows, **where))

    prediction.reconstruction_strip(model, episode, tmp_path / "strip.png", generator=torch.Generator().manual_seed(4))

    generator = torch.Generator().manual_seed(4)  # the pictures' noise, the posteriors', the priors'
    pictures, action = torch.from_numpy(episode.obs), torch.from_numpy(episode.action)
    embed = model.encoder(images.preprocess(pictures, images.image_noise((10,), generator), bit_depth=5))
    noise, priors_noise = (torch.randn(n, model.transition.stoch_size, generator=generator) for n in (10, 5))
    state = imagined = model.initial(1)
    posteriors, priors = [], []
    for t in range(10):
        state = model.transition.posterior(state, action[t : t + 1], embed[t : t + 1], noise[t : t + 1])
        posteriors.append(state.stoch)
        if t == 4:
            imagined = state
        elif t > 4:
            imagined = model.transition.prior(imagined, action[t : t + 1], priors_noise[t - 5 : t - 4])
            priors.append(imagined.stoch)
    (seen, seen_pictures), (future, future_pictures) = decoded
    torch.testing.assert_close(seen.stoch[0], torch.cat(posteriors))
    torch.testing.assert_close(future.stoch[0], torch.cat(priors))
    for row, expected in zip(
        shown, (episode.obs, seen_pictures, np.concatenate([seen_pictures[:5], future_pictures])), strict=True
    ):
        np.testing.assert_array_equal(row, expected)


def test_a_probe_has_never_seen_the_episode_it_reads_and_errors_are_in_deviations_of_all(model, tmp_path, monkeypatch):
    made, fitted, scales, keys = made_up_episodes(3), [], [], []
    fit, errors, torch_generator = prediction.fit_probe, prediction._errors, streams.torch_generator

    def noted_fit(features, states):
        fitted.append(states)
        return fit(features, states)

    def noted_errors(*given):
        scales.append(given[-1])
        return errors(*given)

    def noted_generator(*key, device):
        keys.append(key)
        return torch_generator(*key, device=device)

    monkeypatch.setattr(held_out, "episodes", lambda task, config, count: made)
    monkeypatch.setattr(prediction, "fit_probe", noted_fit)
    monkeypatch.setattr(prediction, "_errors", noted_errors)
    monkeypatch.setattr(streams, "torch_generator", noted_generator)
    config = resolve("cartpole_swingup", preset="smoke", seed=3)
    run = RunDir.create(tmp_path / "seed_3", config, preset="smoke", variant="base")

    prediction.write_open_loop(run, config, model, trained_episodes=4, device=CPU, count=3)

    assert keys == [(3, "predict", 1_000_000, k) for k in range(3)]
    for k, states in enumerate(fitted):
        others = [made[j].state for j in range(3) if j != k]
        assert len(states) == 2 and all(a is b for a, b in zip(states, others, strict=True))
    assert len(fitted) == len(scales) == 3
    for scale in scales:
        np.testing.assert_allclose(scale, np.concatenate([e.state for e in made]).std(axis=0), rtol=1e-6)


def test_the_first_window_is_shown_beside_its_own_truth(model, tmp_path, monkeypatch):
    episode = random_episode(104)  # two windows
    made = [held_out.HeldOut(episode, np.random.default_rng(0).normal(size=(105, 1)), ("a position",), True)]
    shown, predict = [], prediction.predict

    def constant(*arguments, **keywords):
        found = predict(*arguments, **keywords)
        picture = torch.zeros_like(found.image)
        picture[1] = 0.25  # the second window
        return dataclasses.replace(found, image=picture)

    monkeypatch.setattr(held_out, "episodes", lambda task, config, count: made)
    monkeypatch.setattr(prediction, "predict", constant)
    monkeypatch.setattr(prediction, "film_strip", lambda rows, **where: shown.extend(rows) or film_strip(rows, **where))
    config = resolve("cartpole_swingup", preset="smoke")
    run = RunDir.create(tmp_path / "seed_0", config, preset="smoke", variant="base")

    prediction.write_open_loop(run, config, model, trained_episodes=4, device=CPU, count=1)

    truth, predicted, error = shown
    np.testing.assert_array_equal(truth, episode.obs[:50])
    assert (predicted == 128).all() and len(predicted) == 50
    np.testing.assert_array_equal(error, difference(truth, predicted))
