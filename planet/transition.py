"""What every latent dynamics model is: a state, a prior step, a posterior step, and sequences of them.

Time convention, everywhere: `action[:, t]` led to `obs[:, t]` and `reward[:, t]` was earned on the way, so one step
takes the state at t - 1 with the action and embedding at t:

    state[t-1] --- action[t] ---> prior[t]        p(s_t | s_<t, a_<=t)
        |                                         KL(posterior || prior)
        +----- action[t], embed[t] -> posterior[t]   q(s_t | s_<t, a_<=t, o_t)

The posterior is carried on to t + 1. The state before the first step is all zeros. Noise is an argument: standard
normal numbers, one per stochastic unit; where the model uses the mean in place of a sample they are ignored.

Shapes: B batch, T time, A action, E embedding, D deterministic, S stochastic. Everything here is float32, whatever
autocast says: a recurrence gains little from short numbers and loses accuracy. On a GPU that means sums, states and
nonlinear functions; the factors of matrix products are rounded to TF32 (`planet.hardware.use`), here as everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class State:
    """The latent state: what the model carries from one step to the next, with any leading batch axes."""

    deter: Float[Tensor, "*batch deter"]
    """h_t, the recurrent network's state; of width 0 in a model that has none."""
    stoch: Float[Tensor, "*batch stoch"]
    """s_t, a sample (the mean where nothing is sampled)."""
    mean: Float[Tensor, "*batch stoch"]
    std: Float[Tensor, "*batch stoch"]

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """Return the state with `function` applied to each of its tensors."""
        return State(function(self.deter), function(self.stoch), function(self.mean), function(self.std))

    @staticmethod
    def stack(states: Sequence[State], dim: int) -> State:
        """Return equal-shaped states stacked along a new axis."""
        return State(
            torch.stack([s.deter for s in states], dim),
            torch.stack([s.stoch for s in states], dim),
            torch.stack([s.mean for s in states], dim),
            torch.stack([s.std for s in states], dim),
        )

    @staticmethod
    def cat(states: Sequence[State], dim: int) -> State:
        """Return states joined along an axis they have."""
        return State(
            torch.cat([s.deter for s in states], dim),
            torch.cat([s.stoch for s in states], dim),
            torch.cat([s.mean for s in states], dim),
            torch.cat([s.std for s in states], dim),
        )


class Transition(nn.Module, ABC):
    """A latent dynamics model. Final classes: `RSSM`, `SSM`, `DRNN`."""

    def __init__(self, *, deter_size: int, stoch_size: int, feature_size: int, mean_only: bool) -> None:
        """deter_size: width of `State.deter`; feature_size: width of `features`."""
        super().__init__()
        self.deter_size = deter_size
        self.stoch_size = stoch_size
        self.feature_size = feature_size
        self.mean_only = mean_only

    @abstractmethod
    def prior(
        self, state: State, action: Float[Tensor, "*batch action"], noise: Float[Tensor, "*batch stoch"]
    ) -> State:
        """Return the next state as the model expects it, without an observation: one sample."""

    @abstractmethod
    def posterior(
        self,
        state: State,
        action: Float[Tensor, "*batch action"],
        embed: Float[Tensor, "*batch embed"],
        noise: Float[Tensor, "*batch stoch"],
    ) -> State:
        """Return the next state given the observation's embedding: one sample."""

    @abstractmethod
    def observe(
        self,
        embed: Float[Tensor, "batch time embed"],
        action: Float[Tensor, "batch time action"],
        start: State,
        noise: Float[Tensor, "batch time stoch"],
    ) -> tuple[State, State]:
        """Filter sequences from `start` [B]: return (posteriors, priors), both [B, T].

        The prior at t starts from the posterior at t - 1. Nothing samples it: its `stoch` is its mean.
        """

    @abstractmethod
    def features(self, state: State) -> Float[Tensor, "*batch feature"]:
        """Return what decoder and reward head see."""

    def initial(self, batch: int) -> State:
        """Return the state before the first step, [batch]: zeros."""
        parameter = next(self.parameters())
        deter = parameter.new_zeros(batch, self.deter_size)
        stoch = parameter.new_zeros(batch, self.stoch_size)
        return State(deter, stoch, stoch, stoch)

    def imagine(
        self, state: State, action: Float[Tensor, "batch time action"], noise: Float[Tensor, "batch time stoch"]
    ) -> State:
        """Roll the prior open loop from `state` [B]: return the states [B, T] that the actions lead to."""
        states = []
        for t in range(action.shape[1]):
            state = self.prior(state, action[:, t], noise[:, t])
            states.append(state)
        return State.stack(states, dim=1)

    def sample(
        self,
        mean: Float[Tensor, "*batch stoch"],
        std: Float[Tensor, "*batch stoch"],
        noise: Float[Tensor, "*batch stoch"],
    ) -> Float[Tensor, "*batch stoch"]:
        """Return mean + std * noise, or the mean in a deterministic model."""
        return mean if self.mean_only else torch.addcmul(mean, std, noise)


def float32(device: torch.device) -> torch.autocast:
    """Return a context in which autocast does not shorten numbers.

    It does not keep TF32 out: that setting is one for all threads, and the backward pass, which is half of the
    products, runs after the context has ended.
    """
    return torch.autocast(device.type, enabled=False)
