"""The recurrent state-space model of PlaNet (paper, section 3): a deterministic and a stochastic path.

    h_t = GRU(h_{t-1}, relu(dense([s_{t-1}, a_t])))
    prior      p(s_t | h_t)       = N(mean, std) of relu(dense(h_t))
    posterior  q(s_t | h_t, o_t)  = N(mean, std) of relu(dense([h_t, embed_t]))

Here a_t is the action that led to o_t, which the paper calls a_{t-1}. Features are [s_t, h_t].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planet import rssm_observe
from planet.fused import Options
from planet.networks import ACTIVATIONS, Activation, GaussianHead
from planet.transition import State, Transition, float32


class RSSM(Transition):
    """Deterministic path h_t (GRU) and stochastic path s_t (diagonal Gaussian); prior and posterior share h_t."""

    def __init__(
        self,
        *,
        action_size: int,
        embed_size: int,
        stoch: int = 30,
        deter: int = 200,
        hidden: int = 200,
        min_std: float = 0.1,
        fixed_std: float = 0.0,
        mean_only: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(deter_size=deter, stoch_size=stoch, feature_size=stoch + deter, mean_only=mean_only)
        self.input = nn.Linear(stoch + action_size, hidden)
        self.cell = nn.GRUCell(hidden, deter)
        self.prior_head = GaussianHead(
            deter, hidden, stoch, min_std=min_std, fixed_std=fixed_std, activation=activation
        )
        self.posterior_head = GaussianHead(
            deter + embed_size, hidden, stoch, min_std=min_std, fixed_std=fixed_std, activation=activation
        )
        self.activation = ACTIVATIONS[activation]
        self.sizes = hidden, deter, stoch

    def prior(
        self, state: State, action: Float[Tensor, "*batch action"], noise: Float[Tensor, "*batch stoch"]
    ) -> State:
        with float32(action.device):
            deter = self._deter(state, action)
            mean, std = self.prior_head(deter)
            return State(deter, self.sample(mean, std, noise), mean, std)

    def posterior(
        self,
        state: State,
        action: Float[Tensor, "*batch action"],
        embed: Float[Tensor, "*batch embed"],
        noise: Float[Tensor, "*batch stoch"],
    ) -> State:
        with float32(action.device):
            deter = self._deter(state, action)
            mean, std = self.posterior_head(torch.cat([deter, embed.float()], dim=-1))
            return State(deter, self.sample(mean, std, noise), mean, std)

    def observe(
        self,
        embed: Float[Tensor, "batch time embed"],
        action: Float[Tensor, "batch time action"],
        start: State,
        noise: Float[Tensor, "batch time stoch"],
    ) -> tuple[State, State]:
        with float32(action.device):
            # What does not depend on the state is computed for all steps at once, time first: [T, B, hidden].
            w_stoch, w_action = self.input.weight.split([self.stoch_size, action.shape[-1]], dim=1)
            head, cell = self.posterior_head, self.cell
            w_deter, w_embed = head.dense.weight.split([self.deter_size, embed.shape[-1]], dim=1)
            results = rssm_observe.observe(
                F.linear(action.transpose(0, 1), w_action, self.input.bias),
                F.linear(embed.float().transpose(0, 1), w_embed, head.dense.bias),
                noise.transpose(0, 1), start.deter, start.stoch,
                w_stoch, cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh,
                w_deter, head.output.weight, head.output.bias,
                Options(self.activation, head.min_std, head.fixed_std, self.mean_only),
            )  # fmt: skip
            posterior = State(*(x.transpose(0, 1) for x in results))
            # The recurrence needs no prior, so all of them follow in one go.
            mean, std = self.prior_head(posterior.deter)
            return posterior, State(posterior.deter, mean, mean, std)

    def features(self, state: State) -> Float[Tensor, "*batch feature"]:
        return torch.cat([state.stoch, state.deter], dim=-1)

    def _deter(self, state: State, action: Tensor) -> Tensor:
        x = self.activation(self.input(torch.cat([state.stoch, action], dim=-1)))
        flat = self.cell(x.reshape(-1, x.shape[-1]), state.deter.reshape(-1, self.deter_size))  # a cell takes one axis
        return flat.reshape(state.deter.shape)
