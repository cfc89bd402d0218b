"""What runs as a CUDA graph can be recorded (checked without a GPU) and gives the numbers it would give unrecorded."""

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from planet import agent as agent_module
from planet import world_model as world_model_module
from planet.agent import Agent
from planet.config import ModelConfig, ObjectiveConfig, OptimizerConfig, PlannerConfig
from planet.cuda_graph import WARM_UP, CudaGraph, pack, unpack
from planet.device_replay import DeviceBatch
from planet.learner import Learner
from planet.replay import Batch
from planet.rssm_rollout import RSSMRollout
from planet.transition import State
from planet.world_model import Noise, WorldModel

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"conv_depth": 4, "stoch": 5, "deter": 12, "hidden": 10, "reward_units": 9}
PLANNER = PlannerConfig(horizon=4, candidates=20, elites=4, iterations=3, samples=2)
TRANSITIONS = ["rssm", "ssm", "drnn"]


def world_model(transition: Any = "rssm") -> WorldModel:
    objective = ObjectiveConfig(overshooting_scale=1.0, overshooting_distance=3)
    return WorldModel(ModelConfig(**SMALL, transition=transition), objective, 2, torch.Generator().manual_seed(0))


def batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        rng.integers(0, 256, (3, 4, 3, 64, 64), dtype=np.uint8),
        rng.uniform(-1, 1, (3, 4, 2)).astype(np.float32),
        rng.normal(size=(3, 4)).astype(np.float32),
    )


def agent_of(model: WorldModel, precision: str = "float32") -> Agent:
    return Agent(model, PLANNER, action_size=2, precision=precision)


def plan_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan in the layout and with all environments together, as a GPU does."""
    init = RSSMRollout.__init__

    def with_few_kernels(self: RSSMRollout, *args: Any, **sizes: Any) -> None:
        init(self, *args, few_kernels=True, **sizes)

    monkeypatch.setattr(RSSMRollout, "__init__", with_few_kernels)
    monkeypatch.setattr(world_model_module, "envs_together", lambda envs, *_: envs)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_as_on_a_gpu(monkeypatch)


def frames(envs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(envs, 3, 64, 64), dtype=np.uint8)


# Tensors without values: whoever looks at one raises. (A torch without CUDA has them for the CPU alone.)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_an_update_never_looks_at_a_number(transition: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorldModel, "to", lambda self, device: self)  # cannot move such tensors, need not
    with FakeTensorMode():
        learner = Learner(world_model(transition), OptimizerConfig(), CPU, precision)
        action, reward = torch.zeros(3, 4, 2), torch.zeros(3, 4)
        pictures = torch.zeros(3, 4, 3, 64, 64, dtype=torch.uint8)

        terms = learner.step(pictures, action, reward, pictures, torch.zeros(3, 4, 5), torch.zeros(3, 9, 5))

        with pytest.raises(DataDependentOutputException):  # else this test could not fail
            terms["loss"].item()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_decision_never_looks_at_a_number(transition: str, precision: str) -> None:
    agent = agent_of(world_model(transition), precision)
    state = agent.start([torch.Generator().manual_seed(n) for n in range(2)])
    inputs = agent.decision_inputs(state, torch.from_numpy(frames(2)))
    with FakeTensorMode():
        agent.world_model = world_model(transition)

        found = agent.decide(*(torch.empty(x.shape, dtype=x.dtype) for x in inputs))

        assert found["plan"].shape == (2, 4, 2) and found["undefined"].shape == (3, 2)


class HostTensors(TorchDispatchMode):
    """Notes every operation that takes or makes a tensor in the host's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.found = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if any(isinstance(x, Tensor) and x.device == CPU for x in tree_flatten((args, kwargs, result))[0]):
            self.found.append(str(func))
        return result


# `meta`, a device without values, stands for a GPU. It knows no autocast.
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_nothing_comes_from_the_host_meanwhile(transition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph would repeat the copy of a number from there, or refuse it."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    off = torch.autocast("cpu", enabled=False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: off)
    agent = agent_of(world_model(transition))
    inputs = agent.decision_inputs(agent.start([torch.Generator().manual_seed(0)]), torch.from_numpy(frames(1)))
    there, model = [x.to("meta") for x in inputs], agent.world_model.to("meta")
    pictures = torch.zeros(3, 4, 3, 64, 64, dtype=torch.uint8, device="meta")
    action, reward, noise = (torch.zeros(3, *shape, device="meta") for shape in [(4, 2), (4,), (4, 5)])
    overshooting = torch.zeros(3, 9, 5, device="meta")

    with HostTensors() as host:
        agent.decide(*there)
        loss, _ = model.loss_given_noise(pictures, action, reward, Noise(pictures, noise, overshooting))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert host.operations > 1000 and not host.found

        torch.tensor(1.0)
        assert host.found  # else this test could not fail


def decision_inputs(agent: Agent, seed: int) -> tuple[Tensor, ...]:
    state = agent.start([torch.Generator().manual_seed(seed + n) for n in range(2)])
    return agent.decision_inputs(state, torch.from_numpy(frames(2, seed)))


def record(function: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
    """Return all operations of one call as a straight list with no Python between them, which is what a CUDA graph is:
    it computes the same from other inputs only if nothing else of the first call went into the later operations."""
    return torch.no_grad()(make_fx(lambda *given: function(*given))(*inputs))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_decision_as_a_list_of_operations_decides_alike_on_other_inputs(precision: str) -> None:
    agent = agent_of(world_model(), precision)

    recorded = record(agent.decide, *decision_inputs(agent, 0))

    for seed in (7, 0):
        found, expected = (decide(*decision_inputs(agent, seed)) for decide in (recorded, agent.decide))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_update_as_a_list_of_operations_learns_alike_from_other_batches(precision: str) -> None:
    ours, theirs = (Learner(world_model(), OptimizerConfig(), CPU, precision) for _ in range(2))

    def inputs(seed: int) -> tuple[Tensor, ...]:
        given = batch(seed)
        noise = ours.world_model.draw_noise(3, 4, torch.Generator().manual_seed(seed))
        arrays = (torch.from_numpy(x) for x in (given.obs, given.action, given.reward))
        return *arrays, noise.image, noise.state, noise.overshooting

    ours.step(*inputs(0))  # makes Adam's moments
    recorded = record(ours.step, *inputs(1))  # and takes a step
    for seed in (0, 1):
        theirs.step(*inputs(seed))

    for seed in (2, 3):
        found, expected = recorded(*inputs(seed)), theirs.step(*inputs(seed))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


# In a process of its own: Dynamo cannot trace the shape checks that tests put around every function.
COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
import pytest
import torch
import test_cuda_graph as this

this.plan_as_on_a_gpu(pytest.MonkeyPatch())
agent = this.agent_of(this.world_model())
# Not one graph: Dynamo stops at each product that writes into a slice and goes on after it.
compiled = torch.compile(agent.decide, backend="aot_eager")
for seed in (0, 7):
    inputs = this.decision_inputs(agent, seed)
    torch.testing.assert_close(compiled(*inputs), agent.decide(*inputs))
"""


@pytest.mark.slow
def test_a_compiled_decision_decides_alike() -> None:
    subprocess.run([sys.executable, "-c", COMPILE, str(Path(__file__).parent)], check=True)


@pytest.mark.parametrize("changes", [{}, {"warm_start": True}, {"refit_clipped": False}])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_numbers_drawn_beforehand_decide_alike(
    transition: str, changes: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "CudaGraph", lambda function: function)
    agent = agent_of(world_model(transition))
    agent.planner = dataclasses.replace(PLANNER, **changes)
    ours, theirs = (agent.start([torch.Generator().manual_seed(n) for n in (3, 4)]) for _ in range(2))
    for step in range(2):  # the second starts from a belief and a plan
        pictures = torch.from_numpy(frames(2, step))

        belief, plan, undefined, _ = agent._decide_recorded(ours, pictures)
        if changes == {"refit_clipped": False}:
            assert plan.abs().max() > 1
        expected_belief, expected_plan, *_ = agent._decide(theirs, pictures)

        assert not undefined.any()
        torch.testing.assert_close(plan, expected_plan, rtol=0, atol=0)
        for name in ("deter", "stoch", "mean", "std"):
            torch.testing.assert_close(getattr(belief, name), getattr(expected_belief, name), rtol=0, atol=0)
        ours = dataclasses.replace(ours, belief=belief, plan=plan, action=plan[:, 0])
        theirs = dataclasses.replace(theirs, belief=belief, plan=plan, action=plan[:, 0])


def test_predictions_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "CudaGraph", lambda function: function)
    monkeypatch.setattr(Agent, "_decide", Agent._decide_recorded)
    agent = agent_of(world_model())
    torch.nn.init.constant_(agent.world_model.reward.output.bias, float("nan"))

    with pytest.raises(ValueError, match="NaN for 20 of 20 candidates"):
        agent.act(agent.start([torch.Generator()]), frames(1), action_noise=0.3)


def test_results_packed_by_type_come_back_as_they_were() -> None:
    given = {
        "loss": torch.tensor(3.0), "plan": torch.arange(12.0).view(2, 3, 2).transpose(1, 2),
        "undefined": torch.arange(4).view(2, 2), "norm": torch.tensor(-1.5),
    }  # fmt: skip

    packed = pack(given)
    found = unpack({dtype: numbers.clone() for dtype, numbers in packed.items()}, given)

    assert {dtype: len(numbers) for dtype, numbers in packed.items()} == {torch.float32: 14, torch.int64: 4}
    assert list(found) == list(given)
    for name, value in given.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_a_state_from_another_device_keeps_this_one_s_optimiser() -> None:
    learner = Learner(world_model(), OptimizerConfig(), CPU)
    learner.update(batch(), torch.Generator())
    state = copy.deepcopy(learner.state_dict())
    state["optimizer"]["param_groups"][0]["capturable"] = True  # as on a GPU

    learner.load_state_dict(state)

    assert learner.optimizer.param_groups[0]["capturable"] is False
    assert state["optimizer"]["param_groups"][0]["capturable"] is True  # the caller's own is left alone


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_updates_are_those_run_one_by_one(precision: str) -> None:
    device = torch.device("cuda")
    recorded = Learner(world_model(), OptimizerConfig(), device, precision)
    eager = Learner(copy.deepcopy(world_model()), OptimizerConfig(), device, precision)
    eager._run = eager.step

    for number in range(WARM_UP + 4):
        ours, theirs = (
            learner.update(batch(number), torch.Generator(device).manual_seed(number)) for learner in (recorded, eager)
        )
        assert isinstance(recorded._run, CudaGraph)
        assert (recorded._run._graph is not None) == (number >= WARM_UP)
        torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-3, atol=0)

    for mine, other in zip(recorded.world_model.parameters(), eager.world_model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-4)


@pytest.mark.gpu
def test_a_batch_may_be_overwritten_when_its_update_returns() -> None:
    device = torch.device("cuda")
    ours, theirs = (Learner(world_model(), OptimizerConfig(), device) for _ in range(2))
    memory = batch()
    found, expected = {}, {}
    for number in range(20):
        given = batch(number)
        for name in ("obs", "action", "reward"):
            getattr(memory, name)[:] = getattr(given, name)
        there = DeviceBatch(*(torch.from_numpy(x).to(device) for x in (given.obs, given.action, given.reward)))

        found = ours.update(memory, torch.Generator(device).manual_seed(number))  # and not waited for
        expected = theirs.update(there, torch.Generator(device).manual_seed(number))

    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-2, atol=0)


@pytest.mark.gpu
def test_recorded_updates_go_on_after_a_state_is_loaded() -> None:
    device = torch.device("cuda")
    learner = Learner(world_model(), OptimizerConfig(), device)
    for number in range(WARM_UP + 1):
        learner.update(batch(number), torch.Generator(device).manual_seed(number))
    saved = copy.deepcopy(learner.state_dict())
    after = [learner.update(batch(9), torch.Generator(device).manual_seed(n))["loss"].item() for n in range(6)]

    learner.load_state_dict(saved)
    again = [learner.update(batch(9), torch.Generator(device).manual_seed(n))["loss"].item() for n in range(6)]

    np.testing.assert_allclose(again, after, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("envs", [1, 3])
def test_recorded_decisions_are_those_run_one_by_one(envs: int) -> None:
    device = torch.device("cuda")
    agent = agent_of(world_model().to(device))
    ours, theirs = (agent.start([torch.Generator(device).manual_seed(n) for n in range(envs)]) for _ in range(2))
    for step in range(WARM_UP + 3):
        pictures = torch.from_numpy(frames(envs, step)).to(device)

        belief, plan, *_ = agent._decide_recorded(ours, pictures)
        expected_plan = agent.decide(*agent.decision_inputs(theirs, pictures))["plan"]

        torch.testing.assert_close(plan, expected_plan, rtol=1e-3, atol=1e-4)
        ours = dataclasses.replace(ours, belief=belief, plan=plan, action=plan[:, 0])
        theirs = dataclasses.replace(theirs, belief=belief, plan=plan, action=plan[:, 0])


@pytest.mark.gpu
def test_another_shape_is_refused() -> None:
    double = CudaGraph(lambda x: {"y": 2 * x})
    double(torch.ones(3, device="cuda"))

    with pytest.raises(ValueError, match="each time"):
        double(torch.ones(4, device="cuda"))


@pytest.mark.gpu
def test_on_a_gpu_an_environment_draws_alike_whoever_is_beside_it() -> None:
    device = torch.device("cuda")
    agent = agent_of(world_model().to(device))

    def drawn(*seeds: int) -> list[Tensor]:
        return [x.clone() for x in agent._draw([torch.Generator(device).manual_seed(seed) for seed in seeds])]

    together, alone = drawn(1, 2, 3), drawn(2)

    for both, single in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:2], single, rtol=0, atol=0)
        assert not torch.equal(both[0], both[1])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_actions_explore_and_follow_from_the_generator_alone(precision: str) -> None:
    device = torch.device("cuda")
    agent = agent_of(world_model().to(device), precision)
    # Pictures of either order in memory, and the first calls as well as recorded ones.
    found = []
    for number in range(WARM_UP + 3):
        given = frames(2)
        if number % 2:
            given = np.ascontiguousarray(given.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        state = agent.start([torch.Generator(device).manual_seed(n) for n in (3, 4)])
        noise = 0.3 if number else 0.0
        action, _ = agent.act(state, given, action_noise=noise)
        found.append(action)

    for action in found[2:]:
        np.testing.assert_allclose(action, found[1], rtol=1e-3, atol=1e-4)
    assert np.abs(found[1] - found[0]).max() > 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"warm_start": True}, {"refit_clipped": False}])
@pytest.mark.parametrize("envs", [1, 3])
def test_on_a_gpu_a_chain_of_actions_is_that_of_decisions_waited_for(envs: int, changes: dict[str, bool]) -> None:
    """Numbers are drawn ahead and memory is used again while the device still works; here it is waited for each time
    and nothing is recorded, drawn ahead or used again."""
    device = torch.device("cuda")
    agent = agent_of(world_model().to(device))
    agent.planner = dataclasses.replace(PLANNER, **changes)
    ours, theirs = (agent.start([torch.Generator(device).manual_seed(n) for n in range(envs)]) for _ in range(2))
    for step in range(WARM_UP + 4):
        action, ours = agent.act(ours, frames(envs, step), action_noise=0.3)

        inputs = agent.decision_inputs(theirs, torch.from_numpy(frames(envs, step)).to(device))
        found = agent.decide(*inputs)
        expected = (found["plan"][:, 0].float() + 0.3 * found["exploration"]).clamp(-1, 1)
        belief = State(found["deter"], found["stoch"], found["mean"], found["std"])
        theirs = dataclasses.replace(theirs, belief=belief, plan=found["plan"], action=expected)
        torch.cuda.synchronize()

        np.testing.assert_allclose(action, expected.cpu().numpy(), rtol=1e-3, atol=1e-4)
        assert ours.drawn is not None and theirs.drawn is None
