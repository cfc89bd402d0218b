"""The world model: what a batch of sequences costs, what a history implies, what actions would bring.

Knows pictures, actions and rewards as tensors in the time convention of `planet.transition`; knows nothing of replay,
optimisers, environments or planning. State is passed in and returned, never kept. Numbers are drawn from the given
generators alone, which must live on the model's device; autocast around a call shortens the convolutions and the dense
networks of that call, while parameters, the recurrence and every loss stay float32 (TF32 products on a GPU).

Shapes: B batch, T time, A action, S stochastic, N environments, J candidates, H horizon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from planet import fused
from planet import objective as terms
from planet.config import ModelConfig, ObjectiveConfig
from planet.drnn import DRNN
from planet.fused_rollout import FusedRollout
from planet.images import image_noise, preprocess
from planet.networks import Decoder, Encoder, RewardHead, compute_dtype, initialise
from planet.rssm import RSSM
from planet.rssm_rollout import RSSMRollout, envs_together
from planet.ssm import SSM
from planet.transition import State, Transition, float32


@dataclass(frozen=True, slots=True)
class Noise:
    """All the random numbers of one evaluation of the loss."""

    image: UInt8[Tensor, "batch time 3 64 64"]
    """Dequantisation (`planet.images.preprocess`)."""
    state: Float[Tensor, "batch time stoch"]
    """Samples of the posteriors."""
    overshooting: Float[Tensor, "batch pairs stoch"]
    """Samples of the priors of latent overshooting; no pairs where it is off."""


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Sequences whose first steps were filtered and whose others were imagined from the actions alone."""

    state: State
    """[B, T]: posteriors, then open-loop priors."""
    image: Float[Tensor, "batch time 3 64 64"]
    """Mean pictures, about [-0.5, 0.5]."""
    reward: Float[Tensor, "batch time"]


class WorldModel(nn.Module):
    """Encoder, transition, decoder and reward head with PlaNet's objective.

    With the default configurations and 6 actions it has 5,130,220 parameters.
    """

    def __init__(
        self,
        model: ModelConfig,
        objective: ObjectiveConfig,
        action_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """generator: of the initial parameters (on the CPU); without one torch's global generator is used."""
        super().__init__()
        self.encoder = Encoder(model.conv_depth)
        self.transition = make_transition(model, action_size, self.encoder.embed_size)
        self.decoder = Decoder(self.transition.feature_size, model.conv_depth)
        self.reward = RewardHead(
            self.transition.feature_size,
            layers=model.reward_layers,
            units=model.reward_units,
            activation=model.activation,
        )
        self.objective = objective
        self.action_size = action_size
        self.bit_depth = model.bit_depth
        initialise(self, generator)

    def loss(
        self,
        obs: UInt8[Tensor, "batch time 3 64 64"],
        action: Float[Tensor, "batch time action"],
        reward: Float[Tensor, "batch time"],
        *,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of a batch of chunks and its terms by name (`loss_given_noise`)."""
        return self.loss_given_noise(obs, action, reward, self.draw_noise(obs.shape[0], obs.shape[1], generator))

    def loss_given_noise(
        self,
        obs: UInt8[Tensor, "batch time 3 64 64"],
        action: Float[Tensor, "batch time action"],
        reward: Float[Tensor, "batch time"],
        noise: Noise,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the negative of the paper's variational bound (equation 3), averaged over batch and time:

            image_scale * image + reward_scale * reward + kl_scale * kl
                + global_kl_scale * global_kl + overshooting_scale * overshooting

        All T steps count; chunks start from the zero state. Terms are 0-dim, detached and unscaled: `image` and
        `reward` 0.5 * squared error (pixels summed; `planet.objective` has the constants), `kl` with free nats,
        `kl_raw` without, `below_free_nats` the share of elements where free nats decide, `global_kl` and `overshooting`
        where they are on, `prior_entropy` and `posterior_entropy` in nats per step.
        """
        config = self.objective
        batch = obs.shape[0]
        image = preprocess(obs, noise.image, bit_depth=self.bit_depth)
        start = self.initial(batch)
        posterior, prior = self.transition.observe(self.encoder(image), action, start, noise.state)
        features = self.transition.features(posterior)
        divergence = terms.kl(posterior.mean, posterior.std, prior.mean, prior.std)  # [B, T]

        losses = {
            "image": terms.image_loss(self.decoder(features), image).mean(),
            "reward": terms.reward_loss(self.reward(features), reward).mean(),
            "kl": terms.with_free_nats(divergence, config.free_nats).mean(),
        }
        scales = {"image": config.image_scale, "reward": config.reward_scale, "kl": config.kl_scale}
        if config.global_kl_scale:
            zero, one = torch.zeros_like(posterior.mean), torch.ones_like(posterior.std)
            losses["global_kl"] = terms.kl(posterior.mean, posterior.std, zero, one).mean()
            scales["global_kl"] = config.global_kl_scale
        if config.overshooting_scale:
            losses["overshooting"] = terms.overshooting(
                self.transition, posterior, action, start, noise.overshooting,
                distance=config.overshooting_distance, free_nats=config.overshooting_free_nats,
            )  # fmt: skip
            scales["overshooting"] = config.overshooting_scale
        # A term of scale 0 is measured but gives no gradient at all, not even zeros.
        loss = torch.stack([scales[name] * value for name, value in losses.items() if scales[name]]).sum()

        with torch.no_grad():
            metrics = {name: value.detach() for name, value in losses.items()} | {
                "kl_raw": divergence.mean(),
                "below_free_nats": (divergence < config.free_nats).float().mean(),
                "prior_entropy": terms.entropy(prior.std).mean(),
                "posterior_entropy": terms.entropy(posterior.std).mean(),
                "loss": loss.detach(),
            }
        return loss, metrics

    def draw_noise(self, batch: int, time: int, generator: torch.Generator) -> Noise:
        """Return the random numbers of one loss of [batch, time]."""
        size = self.transition.stoch_size
        pairs = (
            terms.overshooting_pairs(time, self.objective.overshooting_distance)
            if self.objective.overshooting_scale
            else 0
        )
        device = generator.device
        return Noise(
            image=image_noise((batch, time), generator),
            state=torch.randn(batch, time, size, generator=generator, device=device),
            overshooting=torch.randn(batch, pairs, size, generator=generator, device=device),
        )

    def initial(self, batch: int) -> State:
        """Return the state before the first observation, [batch]."""
        return self.transition.initial(batch)

    @torch.no_grad()
    def filter(
        self,
        state: State,
        action: Float[Tensor, "env action"],
        obs: UInt8[Tensor, "env 3 64 64"],
        *,
        generators: Sequence[torch.Generator],
    ) -> State:
        """Return the posterior [N] after executing `action` in `state` and seeing `obs`: one sample per environment.

        Each environment draws from its own generator, so that its result does not depend on its neighbours.
        """
        if len(generators) != obs.shape[0]:
            raise ValueError(f"filter needs one generator for each of the {obs.shape[0]} environments, "
                             f"got {len(generators)}")  # fmt: skip
        return self.filter_given_noise(state, action, obs, *self.draw_filter_noise(generators))

    @torch.no_grad()
    def filter_given_noise(
        self,
        state: State,
        action: Float[Tensor, "env action"],
        obs: UInt8[Tensor, "env 3 64 64"],
        frame_noise: UInt8[Tensor, "env 3 64 64"],
        noise: Float[Tensor, "env stoch"],
    ) -> State:
        """Return `filter` with its random numbers given."""
        embed = self.encoder(preprocess(obs, frame_noise, bit_depth=self.bit_depth))
        return self.transition.posterior(state, action, embed, noise)

    def draw_filter_noise(
        self, generators: Sequence[torch.Generator]
    ) -> tuple[UInt8[Tensor, "env 3 64 64"], Float[Tensor, "env stoch"]]:
        """Return the random numbers of one filter step: dequantisation bytes and the posterior's normal numbers."""
        bytes_ = torch.stack([image_noise((), g) for g in generators])
        size = self.transition.stoch_size
        return bytes_, torch.stack([torch.randn(size, generator=g, device=g.device) for g in generators])

    @torch.no_grad()
    def predict_returns(
        self,
        state: State,
        actions: Float[Tensor, "env candidate horizon action"],
        *,
        generators: Sequence[torch.Generator],
        samples: int = 1,
    ) -> Float[Tensor, "env candidate"]:
        """Return the sum of mean rewards along sampled open-loop trajectories from `state` [N].

        Every candidate starts from the state's one sample; its `samples` trajectories are averaged.
        """
        predictor = self.return_predictor(
            state, candidates=actions.shape[1], horizon=actions.shape[2], generators=generators, samples=samples
        )
        return predictor(actions)

    def return_predictor(
        self,
        state: State,
        *,
        candidates: int,
        horizon: int,
        generators: Sequence[torch.Generator],
        samples: int = 1,
    ) -> ReturnPredictor:
        """Return `predict_returns` from `state` for repeated use: a score for `planet.cem.plan`."""
        envs = state.stoch.shape[0]
        if len(generators) != envs:
            raise ValueError(f"planning needs one generator for each of the {envs} environments, got {len(generators)}")
        shape = (envs, horizon, candidates * samples, self.transition.stoch_size)
        noise = _fresh_noise(shape, generators, state.stoch.device)
        return ReturnPredictor(self, state, noise, rows=candidates * samples, horizon=horizon, samples=samples)

    def return_predictor_given_noise(
        self, state: State, noise: Float[Tensor, "call env horizon row stoch"], *, samples: int = 1
    ) -> ReturnPredictor:
        """Return `return_predictor` with the noise of each of its calls given (row: candidate, then sample)."""
        horizon, rows = noise.shape[2:4]
        return ReturnPredictor(self, state, iter(noise), rows=rows, horizon=horizon, samples=samples)

    def draw_return_noise(
        self, calls: int, *, candidates: int, horizon: int, generators: Sequence[torch.Generator], samples: int = 1
    ) -> Float[Tensor, "call env horizon row stoch"]:
        """Return the noise that a `return_predictor` draws in its first `calls` calls."""
        shape = (horizon, candidates * samples, self.transition.stoch_size)
        noise = torch.empty(calls, len(generators), *shape, device=generators[0].device)
        for of_call in noise:
            for of_env, generator in zip(of_call, generators, strict=True):
                of_env.normal_(generator=generator)
        return noise

    @torch.no_grad()
    def open_loop(
        self,
        obs: UInt8[Tensor, "batch observed 3 64 64"],
        action: Float[Tensor, "batch time action"],
        context: int,
        generator: torch.Generator,
    ) -> OpenLoop:
        """Filter the first `context` steps, imagine the rest from the actions, and decode all [B, T].

        Only `obs[:, :context]` is looked at.

        Raises:
            ValueError: `context` is not in 1..min(observed, time).
        """
        batch, time = action.shape[:2]
        if not 1 <= context <= min(obs.shape[1], time):
            raise ValueError(f"context must be in 1..{min(obs.shape[1], time)} (the steps given), got {context}")
        bytes_ = image_noise((batch, context), generator)
        noise = torch.randn(batch, time, self.transition.stoch_size, generator=generator, device=generator.device)
        embed = self.encoder(preprocess(obs[:, :context], bytes_, bit_depth=self.bit_depth))
        state, _ = self.transition.observe(embed, action[:, :context], self.initial(batch), noise[:, :context])
        if context < time:
            last = state.map(lambda x: x[:, -1])
            imagined = self.transition.imagine(last, action[:, context:], noise[:, context:])
            state = State.cat([state, imagined], dim=1)
        features = self.transition.features(state)
        return OpenLoop(state, self.decoder(features).float(), self.reward(features).float())


class ReturnPredictor:
    """Candidates [N, J, H, A] to predicted returns [N, J], with other noise at every call.

    Converts parameters and allocates memory once, so parameters must not change while it is in use. Made under autocast
    it computes in autocast's type, wherever it is called.
    """

    def __init__(
        self, model: WorldModel, state: State, noises: Iterator[Tensor], *, rows: int, horizon: int, samples: int
    ) -> None:
        """noises: [N, H, R, S] for each call; R = J * samples rows, candidate first."""
        self.model, self.state, self.samples = model, state, samples
        self._noises = noises
        envs, device, rssm = state.stoch.shape[0], state.stoch.device, model.transition
        self.fused = self.rollout = None
        if not isinstance(rssm, RSSM):
            return
        dtype = compute_dtype(device)
        if tiles := fused.tiles_for(device, rssm.sizes, envs * rows, dtype):
            with float32(device):  # converted by hand, once
                self.fused = FusedRollout(
                    rssm, model.reward, state, rows=rows, horizon=horizon, tiles=tiles, dtype=dtype
                )
            return
        self.together = envs_together(envs, rows, rssm.deter_size, device)
        self.rollout = RSSMRollout(rssm, model.reward, envs=self.together, rows=rows, horizon=horizon, dtype=dtype)

    @torch.no_grad()
    def __call__(self, actions: Float[Tensor, "env candidate horizon action"]) -> Float[Tensor, "env candidate"]:
        self.noise = next(self._noises)
        if self.samples > 1:
            actions = actions.repeat_interleave(self.samples, dim=1)
        if self.fused is not None:
            with float32(actions.device):
                returns = self.fused(actions, self.noise)
        else:
            returns = self._step_by_step(actions) if self.rollout is None else self._roll_out(self.rollout, actions)
        return returns.unflatten(1, (-1, self.samples)).mean(dim=-1) if self.samples > 1 else returns

    def _roll_out(self, rollout: RSSMRollout, actions: Tensor) -> Tensor:
        returns = []
        with float32(actions.device):  # converted by hand, once
            for first in range(0, len(actions), self.together):
                part = slice(first, first + self.together)
                returns.append(rollout(self.state.map(lambda x, p=part: x[p]), actions[part], self.noise[part]))
        return torch.cat(returns)

    def _step_by_step(self, actions: Tensor) -> Tensor:
        envs, rows, horizon, _ = actions.shape
        transition = self.model.transition
        state = self.state.map(lambda x: x.repeat_interleave(rows, dim=0))
        total = actions.new_zeros(envs * rows)
        for t in range(horizon):
            state = transition.prior(state, actions[:, :, t].flatten(0, 1), self.noise[:, t].flatten(0, 1))
            total = total + self.model.reward(transition.features(state)).float()
        return total.view(envs, rows)


def _fresh_noise(
    shape: tuple[int, int, int, int], generators: Sequence[torch.Generator], device: torch.device
) -> Iterator[Float[Tensor, "env horizon row stoch"]]:
    noise = torch.empty(shape, device=device)
    while True:
        for of_env, generator in zip(noise, generators, strict=True):
            of_env.normal_(generator=generator)  # in place: fresh pages of memory take longer than the numbers
        yield noise


def make_transition(model: ModelConfig, action_size: int, embed_size: int) -> Transition:
    """Return the latent dynamics that the configuration names, with its initialisation still torch's."""
    sizes = {
        "action_size": action_size,
        "embed_size": embed_size,
        "stoch": model.stoch,
        "hidden": model.hidden,
        "min_std": model.min_std,
        "fixed_std": model.fixed_std,
        "mean_only": model.mean_only,
        "activation": model.activation,
    }
    if model.transition == "ssm":
        return SSM(**sizes)
    return {"rssm": RSSM, "drnn": DRNN}[model.transition](deter=model.deter, **sizes)
