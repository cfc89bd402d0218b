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
