"""The recurrence with its gradient written out: finite differences, and autograd through single steps."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planet.config import ModelConfig
from planet.rssm import RSSM
from planet.rssm_observe import Options, observe
from planet.transition import State
from planet.world_model import make_transition

TIME, BATCH, HIDDEN, DETER, STOCH = 3, 2, 5, 4, 3
OPTIONS = [
    Options(F.relu, 0.1, 0.0, False),
    Options(F.elu, 0.1, 0.0, False),
    Options(F.relu, 0.1, 1.0, False),
    Options(F.relu, 0.1, 0.0, True),
    Options(F.elu, 0.1, 1.0, True),
]
SETTINGS = [
    {},
    {"activation": "elu"},
    {"fixed_std": 0.7},
    {"mean_only": True},
    {"mean_only": True, "fixed_std": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.activation.__name__}-{o.fixed_std}-{o.mean_only}")
@pytest.mark.parametrize("time", [1, TIME])
def test_gradient_equals_finite_differences(options: Options, time: int) -> None:
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    noise = random(time, BATCH, STOCH)
    inputs = [
        random(time, BATCH, HIDDEN), random(time, BATCH, HIDDEN), random(BATCH, DETER), random(BATCH, STOCH),
        random(HIDDEN, STOCH), random(3 * DETER, HIDDEN), random(3 * DETER), random(3 * DETER, DETER),
        random(3 * DETER), random(HIDDEN, DETER), random(2 * STOCH, HIDDEN), random(2 * STOCH),
    ]  # fmt: skip

    def function(from_action: Tensor, from_embed: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        return observe(from_action, from_embed, noise, *others, options=options)

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs])


def weighted_sum(states: tuple[State, State]) -> Tensor:
    """A number that depends on all that `observe` returns, each time step and element with another weight."""
    g = torch.Generator().manual_seed(2)
    parts = [getattr(state, name) for state in states for name in ("deter", "stoch", "mean", "std")]
    return torch.stack([(x * torch.randn(x.shape, generator=g)).sum() for x in parts]).sum()


def single_steps(rssm: RSSM, embed: Tensor, action: Tensor, start: State, noise: Tensor) -> tuple[State, State]:
    state, states = start, []
    for t in range(action.shape[1]):
        state = rssm.posterior(state, action[:, t], embed[:, t], noise[:, t])
        states.append(state)
    posterior = State.stack(states, dim=1)
    mean, std = rssm.prior_head(posterior.deter)
    return posterior, State(posterior.deter, mean, mean, std)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_gradient_equals_that_of_single_steps(settings: dict[str, Any], deter: int = 9, hidden: int = 7) -> None:
    torch.manual_seed(0)
    config = ModelConfig(stoch=4, deter=deter, hidden=hidden, **settings)  # pyright: ignore
    rssm = make_transition(config, 2, 6)
    assert isinstance(rssm, RSSM)
    g = torch.Generator().manual_seed(1)
    embed, action, noise = (torch.randn(3, 11, size, generator=g).requires_grad_() for size in (6, 2, 4))
    start = State(*(torch.randn(3, size, generator=g).requires_grad_() for size in (deter, 4, 4, 4)))
    inputs = dict(rssm.named_parameters()) | {
        "embed": embed, "action": action, "deter": start.deter, "stoch": start.stoch,
    }  # fmt: skip

    found = weighted_sum(rssm.observe(embed, action, start, noise.detach()))
    expected = weighted_sum(single_steps(rssm, embed, action, start, noise.detach()))

    torch.testing.assert_close(found, expected)
    actual = torch.autograd.grad(found, list(inputs.values()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(inputs.values()), allow_unused=True)
    for name, a, b in zip(inputs, actual, wanted, strict=True):
        assert a is not None and b is not None, name
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
        if not settings.get("fixed_std"):  # then half of the output layer counts for nothing
            assert a.abs().sum() > 0, name


def test_going_back_under_autocast_gives_the_same_gradient() -> None:
    torch.manual_seed(0)
    rssm = make_transition(ModelConfig(stoch=4, deter=9, hidden=7), 2, 6)
    g = torch.Generator().manual_seed(1)
    embed, action, noise = (torch.randn(3, 5, size, generator=g) for size in (6, 2, 4))

    def gradient(autocast: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            posterior, _ = rssm.observe(embed, action, rssm.initial(3), noise)
            return torch.autograd.grad(posterior.stoch.sum(), rssm.cell.weight_hh)[0]  # pyright: ignore

    assert torch.equal(gradient(True), gradient(False))


def test_no_gradient_is_kept_where_none_is_asked_for() -> None:
    rssm = make_transition(ModelConfig(stoch=4, deter=9, hidden=7), 2, 6)

    with torch.no_grad():
        posterior, _ = rssm.observe(torch.zeros(3, 5, 6), torch.zeros(3, 5, 2), rssm.initial(3), torch.zeros(3, 5, 4))

    assert not posterior.deter.requires_grad and posterior.deter.grad_fn is None
