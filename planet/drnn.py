"""The doubly recurrent model of the paper's Figure 8: two GRUs around a sampled sequence.

    e_t = GRU(e_{t-1}, [embed_t, a_t, s_{t-1}])                        encoder
    s_t ~ N(mean, std) of relu(dense([e_t, s_{t-1}, d_{t-1}]))
    d_t = GRU(d_{t-1}, s_t)                                            decoder

Prior and posterior are one network; the prior sees an embedding of zeros. `State.deter` is [e_t, d_t]; features are
d_t alone. The wiring is that of the released code's defaults. Since e_t of the posterior has seen o_t, a rollout
starts from posterior states and then feeds zeros.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from planet.networks import Activation, GaussianHead
from planet.transition import State, Transition, float32


class DRNN(Transition):
    """Encoder GRU, Gaussian sequence, decoder GRU; each GRU has `deter` units."""

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
        super().__init__(deter_size=2 * deter, stoch_size=stoch, feature_size=deter, mean_only=mean_only)
        self.encoder_cell = nn.GRUCell(embed_size + action_size + stoch, deter)
        self.head = GaussianHead(
            deter + stoch + deter, hidden, stoch, min_std=min_std, fixed_std=fixed_std, activation=activation
        )
        self.decoder_cell = nn.GRUCell(stoch, deter)

    def prior(
        self, state: State, action: Float[Tensor, "*batch action"], noise: Float[Tensor, "*batch stoch"]
    ) -> State:
        return self._step(state, [action], noise)

    def posterior(
        self,
        state: State,
        action: Float[Tensor, "*batch action"],
        embed: Float[Tensor, "*batch embed"],
        noise: Float[Tensor, "*batch stoch"],
    ) -> State:
        return self._step(state, [embed.float(), action], noise)

    def _step(self, state: State, seen: list[Tensor], noise: Tensor) -> State:
        """Take one step given [embedding, action], or [action] for an embedding of zeros: its columns of the first
        matrix, most of what a step multiplies, are then left out."""
        with float32(noise.device):
            batch, flat = noise.shape[:-1], state.map(lambda x: x.reshape(-1, x.shape[-1]))  # a cell takes one axis
            inputs = torch.cat([*seen, state.stoch], dim=-1).reshape(flat.deter.shape[0], -1)
            encoder, decoder = flat.deter.chunk(2, dim=-1)
            cell = self.encoder_cell
            columns = cell.weight_ih[:, -inputs.shape[1] :]
            encoder = torch.gru_cell(inputs, encoder, columns, cell.weight_hh, cell.bias_ih, cell.bias_hh)
            mean, std = self.head(torch.cat([encoder, flat.stoch, decoder], dim=-1))
            stoch = self.sample(mean, std, noise.reshape(mean.shape))
            decoder = self.decoder_cell(stoch, decoder)
            next_state = State(torch.cat([encoder, decoder], dim=-1), stoch, mean, std)
            return next_state.map(lambda x: x.reshape(*batch, x.shape[-1]))

    def observe(
        self,
        embed: Float[Tensor, "batch time embed"],
        action: Float[Tensor, "batch time action"],
        start: State,
        noise: Float[Tensor, "batch time stoch"],
    ) -> tuple[State, State]:
        with float32(action.device):
            state, states = start, []
            for t in range(action.shape[1]):
                state = self.posterior(state, action[:, t], embed[:, t], noise[:, t])
                states.append(state)
            posterior = State.stack(states, dim=1)
            # The prior at t starts from the posterior at t - 1, so all of them follow in one go.
            before = State.cat([start.map(lambda x: x[:, None]), posterior.map(lambda x: x[:, :-1])], dim=1)
            prior = self.prior(before, action, torch.zeros_like(noise))
            return posterior, prior

    def features(self, state: State) -> Float[Tensor, "*batch feature"]:
        return state.deter[..., self.feature_size :]
