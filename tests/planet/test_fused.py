"""The fused kernels give torch's numbers (Triton's interpreter runs them without a GPU) and compile for one.

Each in a process of its own: Triton decides when it is imported whether it interprets.
"""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from planet import fused
from planet.fused import Tiles

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(code: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


INTERPRETED = """
import sys
sys.path.insert(0, sys.argv[1])
import pytest, torch
import test_cuda_graph as graph_tests, test_rssm_observe as observe_tests, test_rssm_rollout as rollout_tests
from planet import fused, rssm_observe
from planet.fused_rollout import FusedRollout

calls = []
def count(name):
    function = getattr(fused, name)
    def counted(*arguments, **keywords):
        calls.append(name)
        return function(*arguments, **keywords)
    setattr(fused, name, counted)

# Tiles smaller than what they are laid over, in every direction.
tiles = fused.Tiles((16, 16), 4, 16)
fused._try(torch.device("cpu"), (20, 40, 5), fused.FEW)
fused._try(torch.device("cpu"), (10, 70, 17), fused.MANY)
NAMES = ["next_deter", "next_stoch", "gradient_to_deter", "gradient_of_cell"]
for name in NAMES:
    count(name)

fused.tiles_for = lambda device, sizes, rows: tiles
for settings in observe_tests.SETTINGS:
    calls.clear()
    sizes = {"deter": 9, "hidden": 7} if settings else {"deter": 20, "hidden": 35}
    observe_tests.test_every_gradient_equals_that_of_single_steps(settings, **sizes)
    assert all(calls.count(name) == 11 for name in NAMES) and len(calls) == 44, (settings, calls)

for changes in (
    {}, {"activation": "elu"}, {"mean_only": True}, {"fixed_std": 0.7}, {"reward_layers": 1},
    {"deter": 20, "hidden": 35, "reward_layers": 3},
):
    calls.clear()
    model = rollout_tests.build(**changes)
    state, _ = rollout_tests.state_of(model)
    actions, noise = rollout_tests.inputs(model, rows=7)  # 21 in all
    with torch.no_grad():
        ours = FusedRollout(
            model.transition, model.reward, state, rows=7, horizon=rollout_tests.HORIZON, tiles=tiles
        )
    for _ in range(1 if changes else 2):  # the second finds the first's numbers in its memory
        with torch.no_grad():
            found = ours(actions, noise)
    assert len(calls) == (2 if changes else 4) * rollout_tests.HORIZON, calls
    expected = rollout_tests.roll(rollout_tests.rollout_of(model, rows=7), state, actions, noise)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

# A whole decision and a whole update, under autocast as in a run, with and without.
def decide_and_learn():
    agent = graph_tests.agent_of(graph_tests.world_model(), "bfloat16")
    model, batch = agent.world_model, graph_tests.batch()
    decision = agent.decide(*graph_tests.decision_inputs(agent, 0))
    noise = model.draw_noise(3, 4, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss_given_noise(*map(torch.from_numpy, (batch.obs, batch.action, batch.reward)), noise)
    loss.backward()
    return decision, {name: parameter.grad for name, parameter in model.named_parameters()}

calls.clear()
found = decide_and_learn()
assert calls.count("next_deter") == 3 * 4 + 4 and calls.count("gradient_of_cell") == 4, calls
fused.tiles_for = lambda device, sizes, rows: None
torch.testing.assert_close(found, decide_and_learn(), rtol=1e-3, atol=1e-4)

# Large numbers: gates saturate, and softplus is the number itself. A NaN stays one.
big = torch.tensor([[-200.0, -30.0, 0.0, 19.9, 20.1, 200.0]])
eye, none = torch.eye(6), torch.zeros(6)
out, std, p, output = torch.empty(1, 6), torch.empty(1, 6), torch.empty(1, 6), torch.empty(1, 12)
head = fused.Head(eye, torch.cat([eye, eye]), torch.cat([none, big[0]]), fused.Options(torch.relu, 0.1, 0.0, False))
fused.next_stoch(none[None], none[None], head, torch.ones(1, 1, 6), out=out, tiles=tiles, save=(p, output, std))
torch.testing.assert_close(std, torch.nn.functional.softplus(big) + 0.1)
torch.testing.assert_close(out, std)
w = torch.cat([eye, eye, eye])
cell = fused.Cell(w, w, torch.zeros(18), torch.zeros(18))
fused.next_deter(big, none[None] + 0.5, cell, out=out, tiles=tiles)
torch.testing.assert_close(out, torch.gru_cell(big, none[None] + 0.5, w, w, torch.zeros(18), torch.zeros(18)))
fused.next_stoch(none[None], none[None] * float("nan"), head, torch.ones(1, 1, 6), out=out, tiles=tiles)
assert out.isnan().all()

with pytest.raises(ValueError, match="float32 rows without gaps"):
    fused.next_deter(big, big.T.contiguous().T[:, ::2], cell, out=out, tiles=tiles)
with pytest.raises(ValueError, match="contiguous float32 memory"):
    fused.next_deter(torch.zeros(1, 12)[:, ::2], big, cell, out=out, tiles=tiles)
"""


def test_interpreted_they_give_the_numbers_of_torch() -> None:
    run(INTERPRETED, TRITON_INTERPRET="1")


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from jaxtyping import install_import_hook
with install_import_hook("planet", "beartype.beartype"):  # as in every test run
    from planet import fused, triton_kernels

FLOATS = {"spread"}
INTEGERS = {"rows", "rows_of_env", "noise_env_stride"}

def compiled(kernel, capability, warps, stages, **constants):
    def kind(name):
        if name in constants:
            return "constexpr"
        return "fp32" if name in FLOATS else "i32" if name in INTEGERS else "*fp32"
    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind == "*fp32"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )

def every_kernel():
    whole = {"INPUTS": fused.INPUTS, "PRECISION": "tf32"}
    size = {"hidden": 200, "deter": 200}
    for name, tiles in (("few", fused.FEW), ("some", fused.SOME), ("many", fused.MANY)):
        rows, units = tiles.deter
        save = name == "few"  # training
        stride = 200 if save else 240
        yield name, triton_kernels.next_deter, tiles.deter_warps, 3, size | whole | {
            "h_stride": stride, "out_stride": stride, "SAVE": save, "ROWS": rows, "UNITS": units,
        }
        yield name, triton_kernels.next_stoch, 8, 2, size | whole | {
            "h_stride": stride, "known_stride": 200 if save else 0, "w_deter_stride": 1224 if save else 200,
            "s_stride": 30 if save else 240, "known_x_stride": 200 if save else 2400, "w_stoch_stride": 36,
            "stoch": 30, "ELU": False, "FIXED": False, "MEAN_ONLY": False, "SAVE": save, "NEXT": True,
            "ROWS": tiles.stoch, "WHOLE_HIDDEN": 256, "WHOLE_STOCH": 32,
        }
    yield "few", triton_kernels.gradient_to_deter, 8, 2, size | whole | {
        "w_stoch_stride": 36, "w_deter_stride": 1224, "stoch": 30, "LATER": True, "ROWS": fused.FEW.stoch,
        "WHOLE_DETER": 256, "WHOLE_STOCH": 32,
    }
    yield "few", triton_kernels.gradient_of_cell, fused.FEW.deter_warps, 3, size | whole | {
        "ROWS": fused.FEW.deter[0], "UNITS": fused.FEW.deter[1],
    }

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # what one program can have there
if __name__ == "__main__":
    for name, kernel, warps, stages, constants in every_kernel():
        for capability in (80, 90) if name == "many" else (90,):  # A100, H100
            found = compiled(kernel, capability, warps, stages, **constants)
            assert found.asm["cubin"]
            assert found.metadata.shared <= SHARED[capability], (name, kernel, capability, found.metadata.shared)
"""


def test_they_compile_for_a_gpu_without_one(tmp_path: Path) -> None:
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


DEVICE, SIZES = torch.device("cuda:5"), (200, 200, 30)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tiles]]:
    """Tiles that were tried, on a device that a test may speak of without having it."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    tried: list[Tiles] = []
    monkeypatch.setattr(fused, "_try", lambda device, sizes, tiles: tried.append(tiles))
    fused._works.cache_clear()
    yield tried
    fused._works.cache_clear()


def test_tiles_follow_the_rows_and_are_tried_once(tried: list[Tiles]) -> None:
    for _ in range(2):
        assert fused.tiles_for(DEVICE, SIZES, 50) is fused.FEW
        assert fused.tiles_for(DEVICE, SIZES, 1000) is fused.SOME
        assert fused.tiles_for(DEVICE, SIZES, 10_000) is fused.MANY
    assert tried == [fused.FEW, fused.SOME, fused.MANY]
    assert fused.tiles_for(torch.device("cpu"), SIZES, 50) is None


def test_a_gpu_without_tf32_keeps_torch_s_operations(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    assert fused.tiles_for(DEVICE, SIZES, 1000) is None and not tried


def test_where_large_tiles_do_not_fit_smaller_ones_are_taken(
    tried: list[Tiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles) -> None:
        if tiles is fused.MANY:
            raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(fused, "_try", too_large)
    with pytest.warns(UserWarning, match=r"no fused kernels of \(128, 64\) on cuda:5.*: out of resource"):
        assert fused.tiles_for(DEVICE, SIZES, 10_000) is fused.SOME


def test_they_are_compared_with_products_that_are_not_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update and the first decision, which try them, run under autocast."""
    enabled: list[bool] = []
    monkeypatch.setattr(fused, "_try", lambda *_: enabled.append(torch.is_autocast_enabled("cpu")))
    fused._works.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert fused._works(torch.device("cpu"), SIZES, fused.FEW)
    fused._works.cache_clear()

    assert enabled == [False]


def test_without_working_kernels_torch_s_operations_remain(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused, "_try", broken)
    with pytest.warns(UserWarning, match="no fused kernels .* on cuda:5, .*: no C compiler"):
        assert fused.tiles_for(DEVICE, SIZES, 1000) is None
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        assert fused.tiles_for(DEVICE, SIZES, 1000) is None


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [50, 1000, 10_000])
def test_they_are_used_on_a_gpu(rows: int) -> None:
    assert fused.tiles_for(torch.device("cuda:0"), SIZES, rows) is not None
