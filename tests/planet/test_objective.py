"""Terms of the objective against hand-computed numbers, torch.distributions and loops."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from planet import objective
from planet.rssm import RSSM
from planet.ssm import SSM
from planet.transition import State, Transition


def test_kl_by_hand_and_its_direction() -> None:
    # KL(N(1, 1) || N(0, 2)) = log 2 + (1 + 1) / 8 - 1/2 ; the reverse is -log 2 + (4 + 1) / 2 - 1/2.
    one, two, zero = torch.ones(1), torch.full((1,), 2.0), torch.zeros(1)

    assert objective.kl(one, one, zero, two).item() == pytest.approx(math.log(2) + 0.25 - 0.5)
    assert objective.kl(zero, two, one, one).item() == pytest.approx(-math.log(2) + 2.5 - 0.5)


def test_kl_sums_the_last_axis_and_equals_torch_distributions() -> None:
    g = torch.Generator().manual_seed(0)
    mean, other_mean = torch.randn(2, 4, 5, 30, generator=g)
    std, other_std = torch.rand(2, 4, 5, 30, generator=g) + 0.1

    expected = kl_divergence(Independent(Normal(mean, std), 1), Independent(Normal(other_mean, other_std), 1))
    torch.testing.assert_close(objective.kl(mean, std, other_mean, other_std), expected)


def test_kl_of_equal_gaussians_is_zero() -> None:
    mean, std = torch.randn(3, 30), torch.rand(3, 30) + 0.1

    assert torch.equal(objective.kl(mean, std, mean, std), torch.zeros(3))


def test_free_nats_count_per_element_before_the_mean() -> None:
    divergence = torch.tensor([[1.0, 5.0], [3.5, 2.0]], requires_grad=True)

    term = objective.with_free_nats(divergence, 3.0).mean()
    term.backward()

    # (3 + 5 + 3.5 + 3) / 4; the mean before the maximum would give max(2.875, 3) = 3.
    assert term.item() == pytest.approx(3.625)
    assert divergence.grad is not None
    assert divergence.grad.tolist() == [[0.0, 0.25], [0.25, 0.0]]


def test_image_loss_is_half_the_squared_error_summed_over_pixels() -> None:
    target = torch.zeros(2, 3, 64, 64)
    prediction = torch.stack([torch.full((3, 64, 64), 0.5), torch.full((3, 64, 64), -1.0)])

    assert objective.image_loss(prediction, target).tolist() == [0.5 * 0.25 * 12288, 0.5 * 12288]


def test_losses_are_negative_log_likelihoods_less_the_constant() -> None:
    g = torch.Generator().manual_seed(0)
    image, other = torch.rand(2, 4, 3, 64, 64, generator=g)
    reward, predicted = torch.randn(2, 7, generator=g)

    pixels = -Normal(other, 1.0).log_prob(image).sum((1, 2, 3))
    torch.testing.assert_close(objective.image_loss(other, image) + objective.IMAGE_CONSTANT, pixels)
    rewards = -Normal(predicted, 1.0).log_prob(reward)
    torch.testing.assert_close(objective.reward_loss(predicted, reward) + objective.REWARD_CONSTANT, rewards)


def test_entropy_equals_torch_distributions() -> None:
    std = torch.rand(5, 30) + 0.1

    torch.testing.assert_close(objective.entropy(std), Independent(Normal(torch.zeros(5, 30), std), 1).entropy())


class Drift(Transition):
    """A toy cell whose rollouts have a closed form: each prior step adds the action to the mean; no samples."""

    def __init__(self) -> None:
        super().__init__(deter_size=0, stoch_size=1, feature_size=1, mean_only=True)

    def prior(self, state: State, action: torch.Tensor, noise: torch.Tensor) -> State:
        mean = state.stoch + action
        return State(state.deter, mean, mean, torch.ones_like(mean))

    def posterior(self, state: State, action: torch.Tensor, embed: torch.Tensor, noise: torch.Tensor) -> State:
        return State(state.deter, embed, embed, torch.ones_like(embed))

    def observe(
        self, embed: torch.Tensor, action: torch.Tensor, start: State, noise: torch.Tensor
    ) -> tuple[State, State]:
        raise NotImplementedError

    def features(self, state: State) -> torch.Tensor:
        return state.stoch


def toy_posterior(mean: torch.Tensor) -> State:
    mean = mean[..., None]
    return State(mean[..., :0], mean, mean, torch.ones_like(mean))


def test_overshooting_closed_form() -> None:
    # Posterior means m_t, unit deviations, actions a_t: the prior of t from t - d has mean m_{t-d} + a_{t-d+1..t}.
    m, a = [1.0, 3.0, 0.0, 4.0], [0.0, 1.0, -2.0, 0.5]
    posterior = toy_posterior(torch.tensor([m]))
    start = toy_posterior(torch.zeros(1))

    # d = 2, targets 1, 2, 3 from -1 (zero), 0, 1:
    #   t=1: 0 + (0 + 1) = 1 against 3; t=2: 1 + (1 - 2) = 0 against 0; t=3: 3 + (-2 + 0.5) = 1.5 against 4
    d2 = (0.5 * 2**2 + 0 + 0.5 * 2.5**2) / 3
    # d = 3, targets 2, 3 from -1, 0: t=2: 0 + (0 + 1 - 2) = -1 against 0; t=3: 1 + (1 - 2 + 0.5) = 0.5 against 4
    d3 = (0.5 * 1**2 + 0.5 * 3.5**2) / 2
    # d = 4, target 3 from -1: 0 + (0 + 1 - 2 + 0.5) = -0.5 against 4
    d4 = 0.5 * 4.5**2
    action = torch.tensor([a])[..., None]
    pairs = objective.overshooting_pairs(4, 4)
    assert pairs == 4 + 3 + 2 + 1

    def value(distance: int, free_nats: float = 0.0) -> float:
        noise = torch.zeros(1, pairs, 1)
        return objective.overshooting(
            Drift(), posterior, action, start, noise, distance=distance, free_nats=free_nats
        ).item()

    assert value(2) == pytest.approx(d2)
    assert value(3) == pytest.approx((d2 + d3) / 2)
    assert value(4) == pytest.approx((d2 + d3 + d4) / 3)  # each distance weighs the same, however few its targets
    # Free nats 3 per element: d = 2 (3 + 3 + 3.125) / 3, d = 3 (3 + 6.125) / 2.
    assert value(3, free_nats=3.0) == pytest.approx(((3 + 3 + 3.125) / 3 + (3 + 6.125) / 2) / 2)


def test_overshooting_targets_give_no_gradient_and_starts_do() -> None:
    m = torch.tensor([[1.0, 3.0, 0.0, 4.0]], requires_grad=True)
    action = torch.zeros(1, 4, 1)

    objective.overshooting(
        Drift(),
        toy_posterior(m),
        action,
        toy_posterior(torch.zeros(1)),
        torch.zeros(1, 7, 1),
        distance=2,
        free_nats=0.0,
    ).backward()

    # Targets 1, 2, 3 from -1, 0, 1. Only the starts 0 and 1 get gradient: (m_0 - m_2) / 3 and (m_1 - m_3) / 3.
    assert m.grad is not None
    torch.testing.assert_close(m.grad, torch.tensor([[1 / 3, -1 / 3, 0.0, 0.0]]))


@pytest.mark.parametrize("kind", [RSSM, SSM])
@pytest.mark.parametrize("distance", [2, 4, 6])
def test_overshooting_equals_a_loop_over_every_pair(kind: type[RSSM] | type[SSM], distance: int) -> None:
    torch.manual_seed(0)
    batch, time, stoch = 2, 6, 3
    sizes = {"action_size": 2, "embed_size": 5, "stoch": stoch, "hidden": 8}
    cell = kind(**sizes)  # pyright: ignore[reportArgumentType]
    embed, action = torch.randn(batch, time, 5), torch.randn(batch, time, 2)
    start = cell.initial(batch)
    posterior, _ = cell.observe(embed, action, start, torch.randn(batch, time, stoch))
    pairs = objective.overshooting_pairs(time, distance)
    noise = torch.randn(batch, pairs, stoch)

    term = objective.overshooting(cell, posterior, action, start, noise, distance=distance, free_nats=0.5)

    # One sequence, one start, one step at a time. Noise is ordered by distance, then by start.
    row = {(d, s): i for i, (d, s) in enumerate((d, s) for d in range(1, distance + 1) for s in range(-1, time - d))}
    values: dict[int, list[torch.Tensor]] = {d: [] for d in range(2, distance + 1)}
    for b in range(batch):
        for s in range(-1, time - 1):
            state = start.map(lambda x, b=b: x[b]) if s < 0 else posterior.map(lambda x, b=b, s=s: x[b, s])
            for d in range(1, distance + 1):
                t = s + d
                if t > time - 1:
                    break
                state = cell.prior(state, action[b, t], noise[b, row[d, s]])
                if d >= 2:
                    target = Independent(Normal(posterior.mean[b, t], posterior.std[b, t]), 1)
                    prior = Independent(Normal(state.mean, state.std), 1)
                    values[d].append(kl_divergence(target, prior).clamp(min=0.5))
    expected = torch.stack([torch.stack(v).mean() for v in values.values()]).mean()
    assert [len(v) for v in values.values()] == [batch * (time - d + 1) for d in values]
    torch.testing.assert_close(term, expected)


def test_overshooting_targets_give_no_gradient_by_their_spread() -> None:
    std = torch.full((1, 4, 1), 0.5, requires_grad=True)
    posterior = State(torch.zeros(1, 4, 0), torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), std)
    start = toy_posterior(torch.zeros(1))

    term = objective.overshooting(
        Drift(), posterior, torch.zeros(1, 4, 1), start, torch.zeros(1, 7, 1), distance=2, free_nats=0.0
    )

    # Every KL is that of N(0, 1/2) from N(0, 1), the spread of this cell's priors; the targets' spread is only read.
    assert term.item() == pytest.approx(math.log(2) + 1 / 8 - 1 / 2)
    assert not term.requires_grad
