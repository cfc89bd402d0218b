import numpy as np
import torch

from planet import streams


def test_equal_keys_give_equal_numbers_and_other_keys_others():
    draws = {
        (stream, index): streams.numpy_generator(0, stream, *index).integers(2**62)
        for stream in streams.STREAMS
        for index in [(), (0,), (1,), (0, 0), (0, 1)]
    }

    assert streams.numpy_generator(0, "env", 1).integers(2**62) == draws["env", (1,)]
    assert len(set(draws.values())) == len(draws)


def test_seeds_do_not_share_streams():
    seeds = [streams.integer(seed, "env", k) for seed in range(20) for k in range(50)]
    evaluation = [streams.integer(seed, "eval_env", e, 0, k) for seed in range(20) for e in range(5) for k in range(10)]

    assert len(set(seeds) | set(evaluation)) == len(seeds) + len(evaluation)


def test_simulator_seeds_fit_31_bits():
    values = np.array([streams.integer(5, "env", k) for k in range(200)])

    assert values.min() >= 0 and values.max() < 2**31


def test_torch_generators_repeat():
    a = torch.randn(5, generator=streams.torch_generator(3, "train", 9))
    b = torch.randn(5, generator=streams.torch_generator(3, "train", 9))
    c = torch.randn(5, generator=streams.torch_generator(3, "train", 10))

    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_run_draws_what_runs_made_before_have_drawn():
    """The key of each stream, and the way from a key to a seed, are for good: with others old runs cannot be resumed
    or repeated."""
    keys = {"init": 0, "train": 1, "replay": 2, "explore": 3, "env": 4, "eval": 5, "eval_env": 6, "predict": 7}
    assert keys.keys() == streams.STREAMS.keys()
    for stream, key in keys.items():
        low, high = map(int, np.random.SeedSequence(11, spawn_key=(key, 2, 9)).generate_state(2))  # 32 bits each

        assert streams.integer(11, stream, 2, 9) == low >> 1
        assert streams.torch_generator(11, stream, 2, 9).initial_seed() == (high << 32 | low) >> 1
        expected = np.random.default_rng(np.random.SeedSequence(11, spawn_key=(key, 2, 9))).random(3)
        np.testing.assert_array_equal(streams.numpy_generator(11, stream, 2, 9).random(3), expected)
