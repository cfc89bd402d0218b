"""The three transitions: sequences equal single steps, and each sees exactly what its equations say."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planet.config import ModelConfig
from planet.drnn import DRNN
from planet.rssm import RSSM
from planet.ssm import SSM
from planet.transition import State, Transition
from planet.world_model import make_transition

KINDS = ["rssm", "ssm", "drnn"]
BATCH, TIME, ACTION, EMBED, STOCH, DETER, HIDDEN = 3, 5, 2, 7, 4, 6, 8


def build(kind: str, **changes: Any) -> Transition:
    torch.manual_seed(0)
    config = ModelConfig(transition=kind, stoch=STOCH, deter=DETER, hidden=HIDDEN, **changes)  # pyright: ignore
    return make_transition(config, ACTION, EMBED)


def sequence() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return tuple(torch.randn(BATCH, TIME, size, generator=g) for size in (EMBED, ACTION, STOCH))  # pyright: ignore


def assert_states_equal(actual: State, expected: State) -> None:
    for name in ("deter", "stoch", "mean", "std"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", KINDS)
def test_observe_equals_a_loop_of_single_steps(kind: str) -> None:
    cell, (embed, action, noise) = build(kind), sequence()

    posterior, prior = cell.observe(embed, action, cell.initial(BATCH), noise)

    state = cell.initial(BATCH)
    for t in range(TIME):
        expected = cell.prior(state, action[:, t], torch.zeros(BATCH, STOCH))
        torch.testing.assert_close(prior.mean[:, t], expected.mean)
        torch.testing.assert_close(prior.std[:, t], expected.std)
        torch.testing.assert_close(prior.stoch[:, t], expected.mean)
        state = cell.posterior(state, action[:, t], embed[:, t], noise[:, t])
        assert_states_equal(posterior.map(lambda x, t=t: x[:, t]), state)


@pytest.mark.parametrize("kind", KINDS)
def test_imagine_equals_a_loop_of_single_steps_and_steps_take_any_batch_axes(kind: str) -> None:
    cell, (embed, action, noise) = build(kind), sequence()
    start = cell.posterior(cell.initial(BATCH), action[:, 0], embed[:, 0], noise[:, 0])

    imagined = cell.imagine(start, action, noise)

    state = start
    for t in range(TIME):
        state = cell.prior(state, action[:, t], noise[:, t])
        assert_states_equal(imagined.map(lambda x, t=t: x[:, t]), state)
    wide = cell.prior(imagined, action, noise)  # [B, T]
    assert_states_equal(
        wide.map(lambda x: x[:, 1]), cell.prior(imagined.map(lambda x: x[:, 1]), action[:, 1], noise[:, 1])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_start_is_zero_and_state_sizes_are_as_said(kind: str) -> None:
    cell, (embed, action, noise) = build(kind), sequence()

    start = cell.initial(BATCH)
    posterior, _ = cell.observe(embed, action, start, noise)

    assert all(x.abs().sum() == 0 for x in (start.deter, start.stoch, start.mean, start.std))
    assert posterior.deter.shape == (BATCH, TIME, cell.deter_size)
    assert posterior.stoch.shape == (BATCH, TIME, cell.stoch_size)
    assert cell.features(posterior).shape == (BATCH, TIME, cell.feature_size)
    widths = {"rssm": (DETER, STOCH + DETER), "ssm": (0, STOCH), "drnn": (2 * DETER, DETER)}
    assert (cell.deter_size, cell.feature_size) == widths[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_std_is_above_the_minimum_and_noise_scales_it(kind: str) -> None:
    cell, (embed, action, noise) = build(kind, min_std=0.7), sequence()

    posterior, prior = cell.observe(embed, action, cell.initial(BATCH), noise)

    assert posterior.std.min() > 0.7 and prior.std.min() > 0.7
    torch.testing.assert_close(posterior.stoch, posterior.mean + posterior.std * noise)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_only_ignores_the_noise(kind: str) -> None:
    cell, (embed, action, noise) = build(kind, mean_only=True), sequence()

    posterior, _ = cell.observe(embed, action, cell.initial(BATCH), noise)
    again, _ = cell.observe(embed, action, cell.initial(BATCH), noise + 1)
    imagined = cell.imagine(cell.initial(BATCH), action, noise)

    assert torch.equal(posterior.stoch, posterior.mean)
    assert_states_equal(posterior, again)
    assert torch.equal(imagined.stoch, imagined.mean)


@pytest.mark.parametrize("kind", KINDS)
def test_a_posterior_sees_the_present_and_past_only(kind: str) -> None:
    cell, (embed, action, noise) = build(kind), sequence()
    embed, action = embed.requires_grad_(), action.requires_grad_()

    posterior, prior = cell.observe(embed, action, cell.initial(BATCH), noise)
    at = 2
    from_posterior = torch.autograd.grad(posterior.mean[:, at].sum(), (embed, action), retain_graph=True)
    from_prior = torch.autograd.grad(prior.mean[:, at].sum(), (embed, action))

    # Rows: which time steps of the input have any influence on step 2.
    touched = [g.abs().sum(dim=(0, 2)) > 0 for g in (*from_posterior, *from_prior)]
    assert touched[0].tolist() == [True, True, True, False, False]  # o_0..o_2 in the posterior
    assert touched[1].tolist() == [True, True, True, False, False]  # the actions that led there
    assert touched[2].tolist() == [True, True, False, False, False]  # the prior has not seen o_2
    assert touched[3].tolist() == [True, True, True, False, False]  # but the action that leads to it


def gru(cell: nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    """torch's GRU from its definition."""
    xr, xz, xn = F.linear(x, cell.weight_ih, cell.bias_ih).chunk(3, -1)
    hr, hz, hn = F.linear(h, cell.weight_hh, cell.bias_hh).chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    return z * h + (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn)


def test_rssm_step_by_its_equations() -> None:
    cell, (embed, action, noise) = build("rssm"), sequence()
    assert isinstance(cell, RSSM)
    state = cell.posterior(cell.initial(BATCH), action[:, 0], embed[:, 0], noise[:, 0])

    prior = cell.prior(state, action[:, 1], noise[:, 1])
    posterior = cell.posterior(state, action[:, 1], embed[:, 1], noise[:, 1])

    h = gru(cell.cell, cell.input(torch.cat([state.stoch, action[:, 1]], -1)).relu(), state.deter)
    torch.testing.assert_close(prior.deter, h)
    torch.testing.assert_close(posterior.deter, h)
    for actual, head, inputs in (
        (prior, cell.prior_head, h),
        (posterior, cell.posterior_head, torch.cat([h, embed[:, 1]], -1)),
    ):
        output = head.output(head.dense(inputs).relu())
        torch.testing.assert_close(actual.mean, output[:, :STOCH])
        torch.testing.assert_close(actual.std, F.softplus(output[:, STOCH:]) + 0.1)
    torch.testing.assert_close(cell.features(prior), torch.cat([prior.stoch, prior.deter], -1))


def test_ssm_step_by_its_equations_and_has_no_recurrent_parameters() -> None:
    cell, (embed, action, noise) = build("ssm"), sequence()
    assert isinstance(cell, SSM)
    state = cell.posterior(cell.initial(BATCH), action[:, 0], embed[:, 0], noise[:, 0])

    posterior = cell.posterior(state, action[:, 1], embed[:, 1], noise[:, 1])

    prior = cell.prior(state, action[:, 1], noise[:, 1])
    output = cell.prior_head.output(cell.prior_head.dense(torch.cat([state.stoch, action[:, 1]], -1)).relu())
    torch.testing.assert_close(prior.mean, output[:, :STOCH])
    expected = cell.posterior_head(torch.cat([prior.mean, prior.std, embed[:, 1]], -1))
    torch.testing.assert_close(posterior.mean, expected[0])
    torch.testing.assert_close(posterior.std, expected[1])
    assert not [m for m in cell.modules() if isinstance(m, nn.GRUCell | nn.GRU)]
    assert {name.split(".")[0] for name, _ in cell.named_parameters()} == {"prior_head", "posterior_head"}
    torch.testing.assert_close(cell.features(prior), prior.stoch)


def test_drnn_step_by_its_equations() -> None:
    cell, (embed, action, noise) = build("drnn"), sequence()
    assert isinstance(cell, DRNN)
    state = cell.posterior(cell.initial(BATCH), action[:, 0], embed[:, 0], noise[:, 0])
    e, d = state.deter.chunk(2, -1)

    for seen, actual in (
        (embed[:, 1], cell.posterior(state, action[:, 1], embed[:, 1], noise[:, 1])),
        (torch.zeros(BATCH, EMBED), cell.prior(state, action[:, 1], noise[:, 1])),
    ):
        encoder = gru(cell.encoder_cell, torch.cat([seen, action[:, 1], state.stoch], -1), e)
        mean, std = cell.head(torch.cat([encoder, state.stoch, d], -1))
        sample = mean + std * noise[:, 1]
        decoder = gru(cell.decoder_cell, sample, d)
        torch.testing.assert_close(actual.stoch, sample)
        torch.testing.assert_close(actual.deter, torch.cat([encoder, decoder], -1))
        torch.testing.assert_close(cell.features(actual), decoder)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_the_transition_in_float32(kind: str) -> None:
    cell, (embed, action, noise) = build(kind), sequence()

    expected, _ = cell.observe(embed, action, cell.initial(BATCH), noise)
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = cell.observe(embed, action, cell.initial(BATCH), noise)

    assert_states_equal(actual, expected)


@pytest.mark.parametrize("kind", ["rssm", "ssm"])
def test_elu_is_used_inside_when_asked_for(kind: str) -> None:
    relu, elu, (embed, action, noise) = build(kind), build(kind, activation="elu"), sequence()

    first, _ = relu.observe(embed, action, relu.initial(BATCH), noise)
    second, _ = elu.observe(embed, action, elu.initial(BATCH), noise)

    assert not torch.allclose(first.mean, second.mean)


def test_state_joins_and_indexes_all_its_tensors() -> None:
    states = [State(*(torch.full((2, n), float(i)) for n in (3, 1, 1, 1))) for i in range(4)]

    assert State.stack(states, dim=1).deter.shape == (2, 4, 3)
    assert State.cat(states, dim=0).map(lambda x: x[::2]).stoch[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
