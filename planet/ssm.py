"""The purely stochastic state-space model (paper, Figure 4): no recurrent network, all memory is the sample.

    prior      p(s_t | s_{t-1}, a_t)       = N(mean, std) of relu(dense([s_{t-1}, a_t]))
    posterior  q(s_t | s_{t-1}, a_t, o_t)  = N(mean, std) of relu(dense([prior mean, prior std, embed_t]))

Features are s_t alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from planet.networks import Activation, GaussianHead
from planet.transition import State, Transition, float32


class SSM(Transition):
    """Stochastic path only; `State.deter` has width 0."""

    def __init__(
        self,
        *,
        action_size: int,
        embed_size: int,
        stoch: int = 30,
        hidden: int = 200,
        min_std: float = 0.1,
        fixed_std: float = 0.0,
        mean_only: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(deter_size=0, stoch_size=stoch, feature_size=stoch, mean_only=mean_only)
        self.prior_head = GaussianHead(
            stoch + action_size, hidden, stoch, min_std=min_std, fixed_std=fixed_std, activation=activation
        )
        self.posterior_head = GaussianHead(
            2 * stoch + embed_size, hidden, stoch, min_std=min_std, fixed_std=fixed_std, activation=activation
        )

    def prior(
        self, state: State, action: Float[Tensor, "*batch action"], noise: Float[Tensor, "*batch stoch"]
    ) -> State:
        with float32(action.device):
            mean, std = self.prior_head(torch.cat([state.stoch, action], dim=-1))
            return State(state.deter, self.sample(mean, std, noise), mean, std)

    def posterior(
        self,
        state: State,
        action: Float[Tensor, "*batch action"],
        embed: Float[Tensor, "*batch embed"],
        noise: Float[Tensor, "*batch stoch"],
    ) -> State:
        with float32(action.device):
            prior = self.prior_head(torch.cat([state.stoch, action], dim=-1))
            mean, std = self.posterior_head(torch.cat([*prior, embed.float()], dim=-1))
            return State(state.deter, self.sample(mean, std, noise), mean, std)

    def observe(
        self,
        embed: Float[Tensor, "batch time embed"],
        action: Float[Tensor, "batch time action"],
        start: State,
        noise: Float[Tensor, "batch time stoch"],
    ) -> tuple[State, State]:
        with float32(action.device):
            # What does not depend on the state is computed for all steps at once, time first: [T, B, hidden].
            w_stoch, w_action = self.prior_head.dense.weight.split([self.stoch_size, action.shape[-1]], dim=1)
            w_prior, w_embed = self.posterior_head.dense.weight.split([2 * self.stoch_size, embed.shape[-1]], dim=1)
            from_action = F.linear(action.transpose(0, 1), w_action, self.prior_head.dense.bias).unbind()
            from_embed = F.linear(embed.float().transpose(0, 1), w_embed, self.posterior_head.dense.bias).unbind()
            noises = noise.transpose(0, 1).contiguous().unbind()
            deter, stoch, posteriors, priors = start.deter, start.stoch, [], []
            for t in range(action.shape[1]):
                prior = self.prior_head.from_preactivation(from_action[t] + F.linear(stoch, w_stoch))
                priors.append(State(deter, prior[0], *prior))
                dense = from_embed[t] + F.linear(torch.cat(prior, dim=-1), w_prior)
                mean, std = self.posterior_head.from_preactivation(dense)
                stoch = self.sample(mean, std, noises[t])
                posteriors.append(State(deter, stoch, mean, std))
            return State.stack(posteriors, dim=1), State.stack(priors, dim=1)

    def features(self, state: State) -> Float[Tensor, "*batch feature"]:
        return state.stoch
