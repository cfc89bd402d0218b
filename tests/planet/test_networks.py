"""Sizes, shapes and initial values of the networks."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.speed import plain
from planet.config import ModelConfig, ObjectiveConfig
from planet.networks import Decoder, Encoder, GaussianHead, RewardHead, initialise
from planet.world_model import WorldModel


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_at_paper_size() -> None:
    model = WorldModel(ModelConfig(), ObjectiveConfig(), action_size=6)

    assert count(model.encoder) == 690_144
    assert count(model.decoder) == 3_795_555
    assert count(model.reward) == 86_601
    assert count(model) == 5_130_220


@pytest.mark.parametrize("depth", [4, 8, 32])
def test_encoder_and_decoder_shapes(depth: int) -> None:
    encoder, decoder = Encoder(depth), Decoder(11, depth)

    assert encoder(torch.zeros(2, 3, 3, 64, 64)).shape == (2, 3, 32 * depth)
    assert encoder(torch.zeros(3, 64, 64)).shape == (32 * depth,)
    assert decoder(torch.zeros(2, 3, 11)).shape == (2, 3, 3, 64, 64)
    assert decoder(torch.zeros(11)).shape == (3, 64, 64)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_reward_head_is_layers_dense_layers_and_a_linear_one(layers: int) -> None:
    head = RewardHead(11, layers=layers, units=7)

    assert head(torch.zeros(2, 3, 11)).shape == (2, 3)
    assert count(head) == 11 * 7 + 7 + (layers - 1) * (7 * 7 + 7) + 8


def test_reward_head_activation_is_the_configured_one() -> None:
    torch.manual_seed(0)
    relu, elu = RewardHead(11, activation="relu"), RewardHead(11, activation="elu")
    elu.load_state_dict(relu.state_dict())
    features = torch.randn(8, 11)

    x = features
    for dense in elu.dense:
        x = dense(x)
        x = torch.where(x > 0, x, x.exp() - 1)
    torch.testing.assert_close(elu(features), elu.output(x)[:, 0])
    assert not torch.allclose(elu(features), relu(features))


def test_encoder_and_decoder_equal_the_plain_ones() -> None:
    model = WorldModel(ModelConfig(), ObjectiveConfig(), 6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():  # biases that are not zero
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    image = torch.rand(5, 3, 64, 64) - 0.5
    features = torch.randn(5, 230)

    torch.testing.assert_close(model.encoder(image), plain.encode(model, image))
    torch.testing.assert_close(model.decoder(features), plain.decode(model, features))
    torch.testing.assert_close(model.reward(features), plain.predict_reward(model, features))


def test_gaussian_head_std_is_softplus_plus_minimum() -> None:
    head = GaussianHead(3, 4, 2, min_std=0.1, activation="relu")
    with torch.no_grad():
        head.output.weight.zero_()
        head.output.bias.copy_(torch.tensor([5.0, -5.0, 0.0, -100.0]))  # two means, two raw deviations

    mean, std = head(torch.randn(6, 3))
    assert mean[0].tolist() == [5.0, -5.0]
    torch.testing.assert_close(std[0], torch.tensor([math.log(2) + 0.1, 0.1]))


def test_kernels_start_glorot_uniform_and_biases_zero() -> None:
    model = WorldModel(ModelConfig(), ObjectiveConfig(), 6, torch.Generator().manual_seed(0))
    rssm: Any = model.transition
    first, last = model.encoder.convolutions[0], model.decoder.convolutions[2]

    # name -> kernel, fan in + fan out of the matrix TensorFlow 1 would hold
    kernels: dict[str, tuple[Any, int]] = {
        "first convolution": (first.weight, 3 * 16 + 32 * 16),
        "first deconvolution": (model.decoder.first.weight, 1024 * 25 + 128 * 25),
        "last deconvolution": (last.weight, 32 * 36 + 3 * 36),
        "decoder's dense": (model.decoder.dense.weight, 230 + 1024),
        "reward output": (model.reward.output.weight, 200 + 1),
        "transition input": (rssm.input.weight, 36 + 200),
        "posterior dense": (rssm.posterior_head.dense.weight, 1224 + 200),
        "prior mean and std": (rssm.prior_head.output.weight, 200 + 30),
        "GRU gates, input": (rssm.cell.weight_ih[:400], 400 + 400),
        "GRU gates, state": (rssm.cell.weight_hh[:400], 400 + 400),
        "GRU candidate, input": (rssm.cell.weight_ih[400:], 400 + 200),
        "GRU candidate, state": (rssm.cell.weight_hh[400:], 400 + 200),
    }
    for name, (kernel, fans) in kernels.items():
        limit = math.sqrt(6 / fans)
        assert kernel.abs().max() <= limit, name
        assert kernel.abs().max() > 0.98 * limit, name
        assert abs(kernel.std() / (limit / math.sqrt(3)) - 1) < 0.1, name
    for name, parameter in model.named_parameters():
        if "bias" in name and "cell" not in name:
            assert parameter.abs().max() == 0, name


@pytest.mark.parametrize("transition", ["rssm", "drnn"])
def test_gru_reset_and_update_gates_start_with_bias_one(transition: str) -> None:
    model = WorldModel(ModelConfig(transition=transition), ObjectiveConfig(), 6)  # pyright: ignore[reportArgumentType]

    cells = [m for m in model.modules() if isinstance(m, nn.GRUCell)]
    assert len(cells) == {"rssm": 1, "drnn": 2}[transition]
    for cell in cells:
        total = cell.bias_ih + cell.bias_hh
        assert total.tolist() == [1.0] * 400 + [0.0] * 200  # reset, update, candidate
        assert cell.bias_hh.abs().max() == 0


def test_initial_values_are_a_function_of_the_generator() -> None:
    def model(seed: int) -> WorldModel:
        return WorldModel(ModelConfig(conv_depth=4), ObjectiveConfig(), 2, torch.Generator().manual_seed(seed))

    first, again, other = model(0), model(0), model(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    kernels = [name for name, p in first.named_parameters() if p.ndim > 1]
    others = dict(other.named_parameters())
    assert not any(torch.equal(dict(first.named_parameters())[name], others[name]) for name in kernels)


def test_initialise_reaches_every_layer() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Conv2d(3, 4, 2), nn.ConvTranspose2d(4, 3, 2)))

    initialise(module)
    assert all(p.abs().max() == 0 for name, p in module.named_parameters() if "bias" in name)
