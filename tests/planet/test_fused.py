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

from planet import fused, fused_pictures
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
from jaxtyping import install_import_hook
install_import_hook("planet", "beartype.beartype")  # as in every test run
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
CPU = torch.device("cpu")
tiles = fused.Tiles(*[fused.Tile(16, 16, 32, 4, 2)] * 4)
early = fused.Tiles(*[fused.Tile(16, 16, 32, 4, 2, early=True)] * 4)
for dtype in (torch.float32, torch.bfloat16):
    fused._try(CPU, (20, 40, 5), tiles, dtype)
    fused._try(CPU, (40, 20, 5), early, dtype)
    fused._try(CPU, (10, 70, 17), fused.MANY, dtype)
    fused._try_rewards(CPU, 40, 20, tiles, dtype)
    fused._try_rewards(CPU, 20, 40, fused.MANY, dtype)
fused._try_gradient(CPU, (20, 40, 5), tiles)
fused._try_gradient(CPU, (40, 20, 17), fused.FEW)
NAMES = ["next_deter", "next_stoch", "gradient_to_deter", "gradient_of_cell"]
for name in NAMES:
    count(name)

count("refit")

# Elites, their mean and deviation, and the next candidates; of equal scores the first, and all equal ones at once.
for candidates in (20, 100):
    fused._try_refit(CPU, candidates)
equal = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, float("-inf")]])
given = torch.arange(6.0).view(1, 6, 1, 1)
mean, std = fused.refit(given, equal, elites=2, min_std=0.0, noise=None)
torch.testing.assert_close((mean.item(), std.item()), (1.5, (0.25 + 1e-6) ** 0.5))
assert torch.equal(given.flatten(), torch.arange(6.0))

fused.tiles_for = lambda *_, **__: tiles
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
    if not changes:  # a head too large for the kernel
        wanted, fused.tiles_for_rewards = fused.tiles_for_rewards, lambda *_: None
        with torch.no_grad():
            layers = FusedRollout(
                model.transition, model.reward, state, rows=7, horizon=rollout_tests.HORIZON, tiles=tiles
            )
            assert ours.reward is not None and layers.reward is None
            torch.testing.assert_close(layers(actions, noise), expected, rtol=1e-5, atol=1e-5)
        fused.tiles_for_rewards = wanted
    with torch.no_grad():
        short = FusedRollout(
            model.transition, model.reward, state, rows=7, horizon=rollout_tests.HORIZON, tiles=early,
            dtype=torch.bfloat16,
        )
        assert short.features.dtype is short.x.dtype is torch.bfloat16
        for _ in range(2):
            found = short(actions, noise)
            assert found.dtype is torch.float32
            assert (found - expected).abs().mean() < 0.02 * expected.std(), (found, expected)

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
assert fused.refits(CPU, 20) is False
fused.refits = lambda device, candidates: True
found = decide_and_learn()
assert calls.count("next_deter") == 3 * 4 + 4 and calls.count("gradient_of_cell") == 4, calls
assert calls.count("refit") == 3
fused.refits = lambda device, candidates: False
fused.tiles_for = lambda *_, **__: None
torch.testing.assert_close(found, decide_and_learn(), rtol=1e-3, atol=1e-4)

# Large numbers: gates saturate, and softplus is the number itself. A NaN stays one.
big = torch.tensor([[-200.0, -30.0, 0.0, 19.9, 20.1, 200.0]])
eye, none = torch.eye(6), torch.zeros(6)
out, std, p, output = torch.empty(1, 6), torch.empty(1, 6), torch.empty(1, 6), torch.empty(1, 12)
head = fused.Head(eye, torch.cat([eye, eye]), torch.cat([none, big[0]]), fused.Options(torch.relu, 0.1, 0.0, False))
fused.next_stoch(none[None], none[None], head, torch.ones(1, 1, 6), out=out, tiles=tiles, save=(p, output, std))
torch.testing.assert_close(std, torch.nn.functional.softplus(big) + 0.1)
torch.testing.assert_close(out, std)
small = torch.tensor([[-60.0, -30.0, -17.0, -16.0, -10.0, -1.0]])  # what softplus makes of it is lost beside 1
head = fused.Head(eye, torch.cat([eye, eye]), torch.cat([none, small[0]]), fused.Options(torch.relu, 0.0, 0.0, False))
fused.next_stoch(none[None], none[None], head, torch.ones(1, 1, 6), out=out, tiles=tiles, save=(p, output, std))
torch.testing.assert_close(std, torch.nn.functional.softplus(small), rtol=1e-5, atol=0)
w = torch.cat([eye, eye, eye])
cell = fused.Cell(w, w, torch.zeros(18), torch.zeros(18))
fused.next_deter(big, none[None] + 0.5, cell, out=out, tiles=tiles)
torch.testing.assert_close(out, torch.gru_cell(big, none[None] + 0.5, w, w, torch.zeros(18), torch.zeros(18)))
fused.next_stoch(none[None], none[None] * float("nan"), head, torch.ones(1, 1, 6), out=out, tiles=tiles)
assert out.isnan().all()

with pytest.raises(ValueError, match="float32 rows without gaps"):
    fused.next_deter(big, torch.zeros(1, 12)[:, ::2], cell, out=out, tiles=tiles)
with pytest.raises(ValueError, match="contiguous float32 memory"):
    fused.next_deter(torch.zeros(1, 12)[:, ::2], big, cell, out=out, tiles=tiles)
with pytest.raises(ValueError, match="not as torch.bfloat16: give `carry`"):
    fused.next_deter(big, big, fused.shortened(cell, head, torch.bfloat16)[0], out=out, tiles=tiles)
"""


@pytest.mark.slow
def test_interpreted_they_give_the_numbers_of_torch() -> None:
    run(INTERPRETED, TRITON_INTERPRET="1")


COMPILED = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from jaxtyping import install_import_hook
with install_import_hook("planet", "beartype.beartype"):  # as in every test run
    from planet import fused, triton_kernels

FLOATS = {"spread", "min_std"}
INTEGERS = {"rows", "rows_of_env", "noise_env_stride", "candidates", "elites"}
SHORT = {  # in bfloat16
    "next_deter": {"x", "h", "w_x", "w_h", "out"},
    "next_stoch": {"h", "w_deter", "w_out", "s", "w_stoch", "w_action", "x"},
    "first_input": {"w_action", "x"},
    "rewards": {"features", "w_1", "w_2", "w_3"},
}

def compiled(kernel, capability, tile, dtype, **constants):
    short = SHORT.get(kernel.__name__, set()) if dtype is torch.bfloat16 else set()
    def kind(name):
        if name in constants:
            return "constexpr"
        return "fp32" if name in FLOATS else "i32" if name in INTEGERS else "*bf16" if name in short else "*fp32"
    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": tile.warps, "num_stages": tile.stages}
    )

SIZE = {"hidden": 200, "deter": 200, "PRECISION": "tf32"}
WHOLE = {"WHOLE_HIDDEN": 256, "WHOLE_STOCH": 32}

def forward(tiles, dtype, save):  # save: in training
    short = dtype is torch.bfloat16
    stride = 200 if save else 232
    tile = tiles.deter
    yield triton_kernels.next_deter, tile, SIZE | {
        "h_stride": stride, "before_stride": 200 if short or save else stride, "out_stride": stride, "CARRY": short,
        "SAVE": save, "ROWS": tile.rows, "UNITS": tile.units, "INPUTS": tile.inputs,
    }
    tile = tiles.stoch
    yield triton_kernels.next_stoch, tile, SIZE | WHOLE | {
        "h_stride": stride, "known_stride": 200 if save else 0, "w_deter_stride": 1224 if save else 200,
        "s_stride": 30 if save else 232, "known_x_stride": 200 if save else 0, "w_stoch_stride": 30 if short else 36,
        "action_stride": 200 if save else 72, "w_action_stride": 1224 if save else 6, "stoch": 30,
        "actions": 0 if save else 6, "ELU": False, "FIXED": False, "MEAN_ONLY": False, "SAVE": save, "NEXT": True,
        "EARLY": tile.early, "ROWS": tile.rows, "INPUTS": tile.inputs, "WHOLE_ACTIONS": 16,
    }

def rewards(tiles):
    tile = tiles.rewards
    yield triton_kernels.rewards, tile, {
        "width": 232, "hidden": 200, "ELU": False, "ROWS": tile.rows, "UNITS": tile.units, "INPUTS": tile.inputs,
        "WHOLE": 256, "PRECISION": "tf32",
    }

def backward(tiles):
    tile = tiles.to_deter
    yield triton_kernels.gradient_to_deter, tile, SIZE | WHOLE | {
        "w_stoch_stride": 36, "w_deter_stride": 1224, "stoch": 30, "LATER": True, "ROWS": tile.rows,
        "UNITS": tile.units,
    }
    tile = tiles.of_cell
    yield triton_kernels.gradient_of_cell, tile, SIZE | {
        "ROWS": tile.rows, "UNITS": tile.units, "INPUTS": tile.inputs,
    }

def others():
    size = {"ROWS": 16, "hidden": 200, "actions": 6, "action_stride": 72, "w_action_stride": 6, "ELU": False}
    whole = {"WHOLE_HIDDEN": 256, "WHOLE_ACTIONS": 16, "PRECISION": "tf32"}
    yield triton_kernels.first_input, fused.Tile(16, 0, 0, 4, 1), size | whole
    for candidates, columns in ((1024, 8), (4096, 2)):
        yield triton_kernels.best, fused.Tile(32, 0, 0, 8, 1), {"ROWS": 32, "WHOLE": candidates}
        constants = {"width": 72, "NEXT": True, "COLUMNS": columns, "WHOLE": candidates}
        yield triton_kernels.refit, fused.Tile(0, columns, 0, 8, 1), constants

def every_kernel():
    for dtype, table in fused.TABLE.items():
        for most, (first, *fallback) in table:
            of_less = [tiles for tiles in fallback if most == 256 or tiles is fused.SOME]
            for capability, tiles in [(90, first), *((80, tiles) for tiles in of_less)]:  # H100, A100
                yield from ((capability, dtype, *found) for found in forward(tiles, dtype, most == 256))
                if most == 256 and dtype is torch.float32:
                    yield from ((capability, dtype, *found) for found in backward(tiles))
        for capability, tiles in [(90, fused.SOME), (80, fused.FEW_WITH_LESS), (80, fused.SMALL)]:
            yield from ((capability, dtype, *found) for found in rewards(tiles))
        yield from ((90, dtype, *found) for found in others())

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # what one program can have there
if __name__ == "__main__":
    for capability, dtype, kernel, tile, constants in every_kernel():
        found = compiled(kernel, capability, tile, dtype, **constants)
        assert found.asm["cubin"]
        assert found.metadata.shared <= SHARED[capability], (kernel, tile, dtype, capability, found.metadata.shared)
"""


@pytest.mark.slow
def test_they_compile_for_a_gpu_without_one(tmp_path: Path) -> None:
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


DEVICE, SIZES = torch.device("cuda:5"), (200, 200, 30)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tiles]]:
    """Tiles that were tried, on a device that a test may speak of without having it."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    tried: list[Tiles] = []
    monkeypatch.setattr(fused, "_try", lambda device, sizes, tiles, dtype: tried.append(tiles))
    fused._working.cache_clear()
    yield tried
    fused._working.cache_clear()


def test_tiles_follow_rows_and_type_and_are_tried_once(tried: list[Tiles]) -> None:
    for _ in range(2):
        assert fused.tiles_for(DEVICE, SIZES, 50) is fused.FEW
        assert fused.tiles_for(DEVICE, SIZES, 1000) is fused.SOME
        assert fused.tiles_for(DEVICE, SIZES, 10_000) is fused.MANY
        assert fused.tiles_for(DEVICE, SIZES, 10_000, torch.bfloat16) is fused.SHORT_MANY
    assert tried == [fused.FEW, fused.SOME, fused.MANY, fused.SHORT_MANY]
    assert fused.tiles_for(torch.device("cpu"), SIZES, 50) is None
    assert fused.tiles_for(DEVICE, SIZES, 50, torch.float16) is None


def test_the_gradient_is_tried_where_it_is_wanted(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    back: list[Tiles] = []
    monkeypatch.setattr(fused, "_try_gradient", lambda device, sizes, tiles: back.append(tiles))
    fused.tiles_for(DEVICE, SIZES, 50)
    assert not back

    assert fused.tiles_for(DEVICE, SIZES, 50, gradient=True) is fused.FEW
    assert back == [fused.FEW]


def test_a_gpu_without_tf32_keeps_torch_s_operations(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    assert fused.tiles_for(DEVICE, SIZES, 1000) is None and not tried


def test_a_switch_keeps_torch_s_operations(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANET_TRITON", "0")

    assert fused.tiles_for(DEVICE, SIZES, 1000) is None and not tried
    assert not fused.refits(DEVICE, 1000) and not fused_pictures.usable(DEVICE)


def test_the_switch_counts_after_kernels_were_found_to_work(
    tried: list[Tiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_try_refit", lambda device, candidates: None)
    monkeypatch.setattr(fused_pictures, "_try", lambda device: None)
    fused._refits.cache_clear()
    fused_pictures._works.cache_clear()
    assert fused.refits(DEVICE, 1000) and fused_pictures.usable(DEVICE)

    monkeypatch.setenv("PLANET_TRITON", "0")

    assert not fused.refits(DEVICE, 1000) and not fused_pictures.usable(DEVICE)
    fused._refits.cache_clear()
    fused_pictures._works.cache_clear()


def test_kernels_for_pictures_are_tried_in_each_precision_of_float32(
    tried: list[Tiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions: list[str] = []
    monkeypatch.setattr(fused_pictures, "_try", lambda device: precisions.append(fused._precision()))
    fused_pictures._works.cache_clear()
    for precision in ("tf32", "ieee", "tf32"):
        monkeypatch.setattr(fused, "_precision", lambda precision=precision: precision)
        assert fused_pictures.usable(DEVICE)

    assert precisions == ["tf32", "ieee"]
    fused_pictures._works.cache_clear()


def test_kernels_that_spoil_the_device_end_in_what_to_do(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access nothing runs in that process any more, so there is nothing to go on with."""

    def spoil(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nSearch for")

    monkeypatch.setattr(fused, "_try", spoil)
    monkeypatch.setattr(torch.cuda, "synchronize", spoil)
    with pytest.raises(RuntimeError, match=r"broke cuda:5 .*\(CUDA error: .* encountered\); start again with PLANET_T"):
        fused.tiles_for(DEVICE, SIZES, 1000)


def test_tiles_of_many_rows_have_no_more_warps_than_sixteens_of_rows() -> None:
    """With 64 rows and 8 warps Triton 3.6 writes beyond a program's shared memory."""
    for table in fused.TABLE.values():
        for _, choices in table:
            tiles = [tile for t in choices for tile in (t.deter, t.stoch, t.rewards) if tile.rows >= 64]
            assert all(tile.warps <= tile.rows / 16 for tile in tiles), choices


@pytest.mark.parametrize(("rows", "second"), [(50, fused.FEW_WITH_LESS), (10_000, fused.SOME)])
def test_where_large_tiles_do_not_fit_smaller_ones_are_taken_without_a_word(
    rows: int, second: Tiles, tried: list[Tiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An A100 has less shared memory than an H100, which is nothing that its user could mend."""

    def too_large(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles, dtype: torch.dtype) -> None:
        tried.append(tiles)
        if tiles in (fused.FEW, fused.MANY):
            raise RuntimeError("out of resource: shared memory, Required: 167936, Hardware limit: 166912.")

    monkeypatch.setattr(fused, "_try", too_large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused.tiles_for(DEVICE, SIZES, rows) is second and len(tried) == 2


def test_where_no_tiles_fit_it_is_said(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles, dtype: torch.dtype) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(fused, "_try", too_large)
    with pytest.warns(UserWarning, match=r"no fused kernels of Tiles\(.* on cuda:5.*: out of resource") as said:
        assert fused.tiles_for(DEVICE, SIZES, 10_000) is None
    assert len(said) == 1


def test_the_precision_of_products_is_tried_by_itself(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("tf32", "ieee", "tf32"):
        monkeypatch.setattr(fused, "_precision", lambda precision=precision: precision)
        fused.tiles_for(DEVICE, SIZES, 1000)

    assert tried == [fused.SOME] * 2


def test_a_reward_head_that_does_not_fit_is_told_and_left_to_torch(
    tried: list[Tiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its width is not the RSSM's: 300 units in float32 want more shared memory than an H100 has."""
    sizes: list[tuple[int, int]] = []

    def limited(device: torch.device, width: int, hidden: int, tiles: Tiles, dtype: torch.dtype) -> None:
        sizes.append((width, hidden))
        if hidden > 400 or (hidden > 200 and tiles is not fused.SMALL):
            raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(fused, "_try_rewards", limited)
    fused._working_rewards.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused.tiles_for_rewards(DEVICE, 232, 200, fused.MANY) is fused.MANY
        assert fused.tiles_for_rewards(DEVICE, 232, 300, fused.MANY) is fused.SMALL
    with pytest.warns(UserWarning, match=r"no fused rewards of Tiles\(.* on cuda:5.*: out of resource"):
        assert fused.tiles_for_rewards(DEVICE, 232, 500, fused.MANY) is None
    fused._working_rewards.cache_clear()

    assert sizes == [(232, 200), *[(232, 300)] * 3, *[(232, 500)] * 3]


def test_they_are_compared_with_products_that_are_not_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update and the first decision, which try them, run under autocast."""
    enabled: list[bool] = []
    monkeypatch.setattr(fused, "_try", lambda *_: enabled.append(torch.is_autocast_enabled("cpu")))
    fused._working.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert fused._working(torch.device("cpu"), SIZES, (fused.FEW,), torch.float32, False, "tf32") is fused.FEW
    fused._working.cache_clear()

    assert enabled == [False]


def test_without_working_kernels_torch_s_operations_remain(tried: list[Tiles], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device, sizes: tuple[int, int, int], tiles: Tiles, dtype: torch.dtype) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused, "_try", broken)
    with pytest.warns(UserWarning, match="no fused kernels .* on cuda:5, .*: no C compiler"):
        assert fused.tiles_for(DEVICE, SIZES, 1000) is None
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        assert fused.tiles_for(DEVICE, SIZES, 1000) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [50, 1000, 10_000])
def test_they_are_used_on_a_gpu(rows: int, dtype: torch.dtype) -> None:
    assert fused.tiles_for(torch.device("cuda:0"), SIZES, rows, dtype, gradient=rows == 50) is not None
