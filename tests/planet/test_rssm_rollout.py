"""The planner's inner loop equals the plain one: returns, elites, plans."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed import plain
from planet import cem, rssm_rollout
from planet.config import ModelConfig, ObjectiveConfig
from planet.networks import compute_dtype
from planet.presets import resolve
from planet.rssm import RSSM
from planet.rssm_rollout import ALIGNED, BLOCK, RSSMRollout
from planet.transition import State
from planet.world_model import WorldModel

SMALL: dict[str, Any] = {"conv_depth": 4, "stoch": 5, "deter": 12, "hidden": 10, "reward_units": 9}
PAPER: dict[str, Any] = {"conv_depth": 4}
ENVS, ROWS, HORIZON, ACTIONS = 3, 40, 6, 2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(**changes: Any) -> WorldModel:
    model = WorldModel(ModelConfig(**SMALL | changes), ObjectiveConfig(), ACTIONS, seeded(0))
    with torch.no_grad():  # biases that are not zero
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return model


def state_of(model: WorldModel, envs: int = ENVS) -> tuple[State, plain.Latent]:
    g, transition = seeded(1), model.transition
    h = torch.rand(envs, transition.deter_size, generator=g) * 2 - 1
    s, mean, std = torch.rand(3, envs, transition.stoch_size, generator=g)
    return State(h, s, mean, std), plain.Latent(h, s, mean, std)


def inputs(model: WorldModel, envs: int = ENVS, rows: int = ROWS, horizon: int = HORIZON) -> tuple[Tensor, Tensor]:
    """Actions [N, R, H, A] and noise [N, H, R, S]."""
    g = seeded(2)
    actions = torch.rand(envs, rows, horizon, ACTIONS, generator=g) * 2 - 1
    return actions, torch.randn(envs, horizon, rows, model.transition.stoch_size, generator=g)


def rollout_of(model: WorldModel, dtype: torch.dtype = torch.float32, *, envs: int = ENVS, rows: int = ROWS,
               horizon: int = HORIZON, few_kernels: bool | None = None) -> RSSMRollout:  # fmt: skip
    assert isinstance(model.transition, RSSM)
    return RSSMRollout(
        model.transition, model.reward, envs=envs, rows=rows, horizon=horizon, dtype=dtype, few_kernels=few_kernels
    )


@torch.no_grad()
def roll(rollout: RSSMRollout, state: State, actions: Tensor, noise: Tensor) -> Tensor:
    return rollout(state, actions, noise)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        PAPER,
        {"activation": "elu"},
        {"mean_only": True},
        {"fixed_std": 0.7},
        {"reward_layers": 1},
        {"reward_layers": 3},
    ],
    ids=str,
)
def test_returns_equal_the_plain_loop(changes: dict[str, Any]) -> None:
    model = build(**changes)
    state, latent = state_of(model)
    actions, noise = inputs(model)

    returns = roll(rollout_of(model), state, actions, noise)

    expected = plain.returns(model, latent, actions, noise.transpose(0, 1).flatten(1, 2))
    torch.testing.assert_close(returns, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [{}, PAPER, {"activation": "elu"}, {"mean_only": True}, {"fixed_std": 0.7}, {"reward_layers": 3}],
    ids=str,
)
def test_the_way_of_a_gpu_gives_the_same_whatever_the_precision(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = build(**changes)
    state, latent = state_of(model)
    actions, noise = inputs(model)
    rollout = rollout_of(model, dtype, few_kernels=True)

    first, second = roll(rollout, state, actions, noise), roll(rollout, state, actions, noise)

    expected = plain.returns(model, latent, actions, noise.transpose(0, 1).flatten(1, 2))
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(first, second)


class CountKernels(TorchDispatchMode):
    """Counts operations that compute or copy something, each of which is a kernel on a GPU; views are none."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = [result.alias_info for result in func._schema.returns]
        self.count += any(alias is None or alias.is_write for alias in results)
        return func(*args, **kwargs or {})


def kernels(model: WorldModel, horizon: int) -> int:
    rollout, actions_and_noise = rollout_of(model, horizon=horizon, few_kernels=True), inputs(model, horizon=horizon)
    with CountKernels() as counter:
        roll(rollout, state_of(model)[0], *actions_and_noise)
    return counter.count


def test_a_step_on_a_gpu_is_thirteen_kernels() -> None:
    model = build()

    assert kernels(model, HORIZON) - kernels(model, HORIZON - 1) == 13


def test_every_operand_of_a_product_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout, seen, mm = rollout_of(build(reward_layers=3), few_kernels=True), [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **out: seen.extend([a, b, *out.values()]) or mm(a, b, **out))

    roll(rollout, state_of(build())[0], *inputs(build()))

    assert len(seen) > 3 * HORIZON
    for operand in seen:
        assert operand.stride(1) == 1 and operand.shape[1] % ALIGNED == 0
        assert operand.stride(0) % ALIGNED == 0 and operand.storage_offset() % ALIGNED == 0


def test_what_a_short_product_multiplies_is_whole_lines_of_the_cache(
    short_model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout, seen, mm = rollout_of(short_model, torch.bfloat16), [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **out: seen.append(a) or mm(a, b, **out))

    roll(rollout, state_of(short_model)[0], *inputs(short_model))

    assert len(seen) > 4 * HORIZON
    for operand in seen:
        assert operand.stride(1) == 1 and operand.shape[1] % BLOCK == 0 and operand.data_ptr() % 64 == 0
        assert operand.stride(0) % BLOCK == 0 and operand.storage_offset() % BLOCK == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_taken_a_few_at_a_time_give_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rssm_rollout, "SHORT_FROM", 1)
    model = build(reward_layers=3)
    state, _ = state_of(model)
    actions, noise = inputs(model)
    at_once = rollout_of(model, dtype)
    monkeypatch.setattr(rssm_rollout, "rows_in_cache", lambda deter: 7)
    monkeypatch.setattr(rssm_rollout, "REWARD_AT_ONCE", 110 * model.reward.output.in_features)

    few = rollout_of(model, dtype)

    # neither 120 rows nor 720 rewards are a multiple
    assert [len(at_once.blocks), at_once.reward_rows] == [1, 720]
    assert [len(few.blocks), few.reward_rows] == [18, 103]
    torch.testing.assert_close(roll(few, state, actions, noise), roll(at_once, state, actions, noise))


def test_a_second_call_remembers_nothing_of_the_first() -> None:
    model = build()
    state, _ = state_of(model)
    actions, noise = inputs(model)
    rollout = rollout_of(model)

    first = roll(rollout, state, actions, noise)
    roll(rollout, state.map(lambda x: x + 1), -actions, noise + 1)

    assert torch.equal(roll(rollout, state, actions, noise), first)


def test_elites_are_those_of_the_plain_loop_at_paper_size() -> None:
    model = WorldModel(ModelConfig(), ObjectiveConfig(), 6, seeded(0))
    state, latent = state_of(model, 1)
    g = seeded(3)
    actions, noise = torch.rand(1, 1000, 12, 6, generator=g) * 2 - 1, torch.randn(1, 12, 1000, 30, generator=g)

    scores = roll(rollout_of(model, envs=1, rows=1000, horizon=12), state, actions, noise)

    expected = plain.returns(model, latent, actions, noise.flatten(0, 1))
    assert set(scores[0].topk(100).indices.tolist()) == set(expected[0].topk(100).indices.tolist())


@pytest.mark.parametrize(("preset", "few_kernels"), [("quick", False), ("quick", True), ("paper", False)])
def test_a_whole_plan_is_the_plain_one(preset: str, few_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten iterations on the same random numbers: the elites of each, and the mean after the last."""
    config = resolve("cheetah_run", preset=preset, changes={"model.conv_depth": 4})
    planner, generators = config.planner, [seeded(3)]
    monkeypatch.setattr(RSSMRollout, "__init__", functools.partialmethod(RSSMRollout.__init__, few_kernels=few_kernels))
    model = WorldModel(config.model, ObjectiveConfig(), 6, seeded(0))
    state, latent = state_of(model, 1)
    actions = cem.draw_noise((10, planner.candidates, planner.horizon, 6), generators, torch.device("cpu"))
    sizes: dict[str, int] = {"horizon": planner.horizon, "candidates": planner.candidates}
    noise = model.draw_return_noise(10, generators=generators, **sizes)
    score, plain_returns = model.return_predictor_given_noise(state, noise), plain.returns
    ours: list[Tensor] = []
    theirs: list[Tensor] = []

    def noted(scores: Tensor, where: list[Tensor]) -> Tensor:
        where.append(scores.topk(planner.num_elites).indices.sort().values)
        return scores

    found, _ = cem.search(lambda proposals: noted(score(proposals), ours), actions, elites=planner.num_elites)
    monkeypatch.setattr(plain, "returns", lambda *given: noted(plain_returns(*given), theirs))
    noises = zip(actions, noise.transpose(1, 2).flatten(2, 3), strict=True)
    mean = plain.plan(model, latent, elites=planner.num_elites, noises=noises, **sizes)

    assert len(ours) == len(theirs) == 10
    assert torch.equal(torch.stack(ours), torch.stack(theirs))
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-4)
    assert mean.abs().max() > 0.1


def test_bfloat16_ranks_candidates_almost_as_float32_does() -> None:
    model = WorldModel(ModelConfig(), ObjectiveConfig(), 6, seeded(0))
    state, latent = state_of(model, 1)
    g = seeded(3)
    actions, noise = torch.rand(1, 1000, 12, 6, generator=g) * 2 - 1, torch.randn(1, 12, 1000, 30, generator=g)

    scores = roll(rollout_of(model, torch.bfloat16, envs=1, rows=1000, horizon=12), state, actions, noise)

    expected = plain.returns(model, latent, actions, noise.flatten(0, 1))
    assert scores.dtype == torch.float32
    assert torch.corrcoef(torch.cat([scores, expected]))[0, 1] > 0.999
    common = set(scores[0].topk(100).indices.tolist()) & set(expected[0].topk(100).indices.tolist())
    assert len(common) >= 90


def test_small_plans_of_several_environments_are_made_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    assert rssm_rollout.envs_together(10, 100, 100, cpu) == 10  # the quick preset's: 1,000 rows of 100 numbers
    assert rssm_rollout.envs_together(10, 300, 100, cpu) == 5  # 6 would do, but do not divide 10
    assert rssm_rollout.envs_together(7, 300, 100, cpu) == 1
    assert rssm_rollout.envs_together(10, 1000, 200, cpu) == 1  # the paper's
    assert rssm_rollout.envs_together(10, 1000, 200, cuda) == 10


def test_threads_that_must_meet_take_more_rows_at_a_time_each(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        rows.append(rssm_rollout.rows_in_cache(200))

    assert rows == [250, 1000, 2000]


def test_neighbours_do_not_decide_whether_products_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rssm_rollout, "SHORT_FROM", ROWS * 12 + 1)  # more than one environment has
    model = build()

    assert not rollout_of(model, torch.bfloat16).short


def test_all_environments_at_once_equal_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    state, _ = state_of(model)
    generators = [seeded(n) for n in range(ENVS)]
    actions, _ = inputs(model)

    monkeypatch.setattr(rssm_rollout, "rows_in_cache", lambda deter: ROWS)  # of one environment
    predictor = model.return_predictor(state, candidates=ROWS, horizon=HORIZON, generators=generators)
    assert predictor.together == 1
    one_by_one = predictor(actions)
    at_once = roll(rollout_of(model), state, actions, predictor.noise)

    torch.testing.assert_close(one_by_one, at_once)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_predictor_draws_fresh_noise_at_each_call_and_its_first_call_is_predict_returns(samples: int) -> None:
    model = build()
    state, _ = state_of(model)
    actions, _ = inputs(model)
    settings: dict[str, Any] = {"candidates": ROWS, "horizon": HORIZON, "samples": samples}

    predictor = model.return_predictor(state, generators=[seeded(n) for n in range(ENVS)], **settings)
    first, second = predictor(actions), predictor(actions)

    same = model.predict_returns(state, actions, generators=[seeded(n) for n in range(ENVS)], samples=samples)
    assert torch.equal(first, same)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("short_from", "short"), [(1, True), (10_000, False)])
def test_a_predictor_made_under_autocast_is_short_where_it_is_large_and_its_scores_are_not(
    short_from: int, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rssm_rollout, "SHORT_FROM", short_from)
    model = build()
    state, _ = state_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(torch.device("cpu")) is torch.bfloat16
        predictor = model.return_predictor(
            state, candidates=ROWS, horizon=HORIZON, generators=[seeded(n) for n in range(ENVS)]
        )

    assert predictor.rollout is not None and predictor.rollout.short == short
    assert predictor(inputs(model)[0]).dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("deter", [16, 100, 200])
def test_returns_do_not_depend_on_what_the_memory_held_before(
    dtype: torch.dtype, deter: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMX kernels read past the end of a row (100 is no multiple of their tiles): what lies there must be finite."""
    monkeypatch.setattr(rssm_rollout, "SHORT_FROM", 1)
    model = build(deter=deter, stoch=30, hidden=deter)
    state, _ = state_of(model)
    actions, noise = inputs(model)
    expected = roll(rollout_of(model, dtype), state, actions, noise)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(float("nan")))

    returns = roll(rollout_of(model, dtype), state, actions, noise)

    assert torch.equal(returns, expected)


@pytest.fixture
def short_model(monkeypatch: pytest.MonkeyPatch) -> WorldModel:
    monkeypatch.setattr(rssm_rollout, "SHORT_FROM", 1)
    return build()


def test_relu_as_integers_gives_the_same_to_the_bit(short_model: WorldModel) -> None:
    rollout = rollout_of(short_model, torch.bfloat16)
    given = (state_of(short_model)[0], *inputs(short_model))

    assert rollout.bits
    as_integers = roll(rollout, *given)
    rollout.bits = False

    assert torch.equal(as_integers, roll(rollout, *given))
    numbers = torch.tensor([-torch.inf, -1.5, -1e-40, -0.0, 0.0, 1e-40, 2.5, torch.inf]).bfloat16()
    assert torch.equal(rssm_rollout._relu_of_bits(numbers.clone()), numbers.relu())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("where", ["deter", "stoch", "action", "input", "cell", "prior", "gaussian", "reward"])
def test_one_nan_anywhere_is_a_nan_in_the_end(short_model: WorldModel, where: str, sign: float) -> None:
    state = state_of(short_model)[0]
    actions, noise = inputs(short_model)
    rssm, reward = short_model.transition, short_model.reward
    assert isinstance(rssm, RSSM)
    first = next(layer for layer in reward.dense if isinstance(layer, torch.nn.Linear))
    place = {
        "deter": state.deter, "stoch": state.stoch, "action": actions, "input": rssm.input.weight,
        "cell": rssm.cell.weight_ih, "prior": rssm.prior_head.dense.weight, "gaussian": rssm.prior_head.output.weight,
        "reward": first.weight,
    }[where]  # fmt: skip
    with torch.no_grad():
        place.flatten()[0] = torch.copysign(torch.tensor(torch.nan), torch.tensor(sign))

    returns = roll(rollout_of(short_model, torch.bfloat16), state, actions, noise)

    assert returns.isnan().any()


@pytest.mark.parametrize("where", ["input", "cell", "prior_head", "reward"])
def test_weights_that_are_not_finite_are_never_taken_as_integers(short_model: WorldModel, where: str) -> None:
    """What sign a product gives a NaN depends on the processor; of integers a negative one would become 0."""
    assert rollout_of(short_model, torch.bfloat16).bits
    transition: Any = short_model.transition
    weights = {
        "input": transition.input.weight, "cell": transition.cell.weight_hh,
        "prior_head": transition.prior_head.output.weight, "reward": short_model.reward.output.weight,
    }  # fmt: skip
    with torch.no_grad():
        weights[where].flatten()[-1] = torch.nan

    # Nothing is rectified after the reward's last layer: it may be as it is.
    assert rollout_of(short_model, torch.bfloat16).bits == (where == "reward")
