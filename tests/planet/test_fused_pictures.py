"""The GPU's passes over pictures give torch's numbers (Triton's interpreter runs them here) and compile for one.

In processes of their own: Triton decides when it is imported whether it interprets.
"""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from planet import fused_pictures

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(code: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


INTERPRETED = """
import functools, sys
sys.path.insert(0, sys.argv[1])
import pytest, torch
import torch.nn.functional as F
from jaxtyping import install_import_hook
with install_import_hook("planet", "beartype.beartype"):  # as in every test run
    from planet import fused_pictures, images, objective, networks
    from planet.convolutions import convolve, transposed
    import test_convolutions as shapes, test_cuda_graph as graph_tests

# The interpreter multiplies the bits of bfloat16 as integers.
fused_pictures._try(torch.device("cpu"), types=[torch.float32])
right = fused_pictures.relu_of_convolution
fused_pictures.relu_of_convolution = lambda x, w, b: right(x, w, b) * 1.1
with pytest.raises(ValueError, match="is off by 0.1 in torch.float32"):
    fused_pictures._try(torch.device("cpu"), types=[torch.float32])
fused_pictures.relu_of_convolution = right
calls = []
def count(name):
    function = getattr(fused_pictures, name)
    def counted(*arguments, **keywords):
        calls.append(name)
        return function(*arguments, **keywords)
    setattr(fused_pictures, name, counted)
for name in ("dequantise", "half_squared_distance", "scaled", "relu_of_first_convolution", "relu_of_convolution",
             "transposed", "biased_relu"):
    count(name)

def use(yes):
    fused_pictures.usable = lambda device: yes

g = torch.Generator().manual_seed(0)
def given(*sizes):
    return [torch.randn(size, generator=g) for size in sizes]
def check(fast, slow, x, weight, bias):
    use(True)
    found = shapes.values(fast, x, weight, bias)
    for actual, expected in zip(found, shapes.values(slow, x, weight, bias), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)

for inputs, outputs, kernel, size in [*shapes.CONVOLUTIONS, (4, 40, 4, 31), (4, 6, 4, 7)]:
    check(convolve, lambda x, w, b: F.relu(F.conv2d(x, w, b, stride=2)),
          *given((2, inputs, size, size), (outputs, inputs, kernel, kernel), (outputs,)))
for inputs, outputs, kernel, size in [*shapes.TRANSPOSED, (3, 20, 6, 4), (3, 33, 4, 4)]:
    for relu in (False, True):
        check(functools.partial(transposed, relu=relu),
              lambda x, w, b: (F.relu if relu else torch.clone)(F.conv_transpose2d(x, w, b, stride=2)),
              *given((2, inputs, size, size), (inputs, outputs, kernel, kernel), (outputs,)))
assert set(calls) == {"relu_of_convolution", "transposed"}, set(calls)  # pictures here want gradients

# More rows than programs take at once, the last of them with few or none, and odd numbers of everything.
fused_pictures.PROGRAMS = 3
for n, outputs, size in ((2, 16, 64), (1, 32, 10), (3, 64, 9)):
    image, weight, bias = given((n, 3, size, size), (outputs, 3, 4, 4), (outputs,))
    memory = torch.full((n + 1, size, size, 3), float("nan"))  # behind the last picture nothing is to be read
    memory[:n] = image.movedim(1, -1)
    image = memory[:n].movedim(-1, 1)
    leaves = [weight.requires_grad_(), bias.requires_grad_()]
    calls.clear()
    y = convolve(image, *leaves)
    assert calls == ["relu_of_first_convolution"], calls
    expected = F.relu(F.conv2d(image, *leaves, stride=2))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    up = torch.randn(y.shape, generator=g)
    for a, b in zip(torch.autograd.grad(y, leaves, up), torch.autograd.grad(expected, leaves, up)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
for shape, kernel in (((5, 7, 13, 13), 6), ((5, 7, 13, 13), 5)):
    check(functools.partial(transposed, relu=True),
          lambda x, w, b: F.relu(F.conv_transpose2d(x, w, b, stride=2)),
          *given(shape, (7, 24, kernel, kernel), (24,)))

# Bytes to numbers: the same bits at every depth.
obs, noise = (torch.randint(256, (2, 3, 64, 64, 3), generator=g, dtype=torch.uint8).movedim(-1, 2) for _ in range(2))
for depth in range(1, 9):
    found = []
    for yes in (True, False):
        use(yes)
        calls.clear()
        found.append(images.preprocess(obs, noise, bit_depth=depth))
        assert calls == (["dequantise"] if yes else [])
    assert torch.equal(*found) and found[0].shape == obs.shape
use(True)
calls.clear()
assert torch.equal(images.preprocess(obs.contiguous(), noise, bit_depth=5), images.preprocess(obs, noise, bit_depth=5))
assert calls == ["dequantise"]  # the other is not in the noise's order

# The loss of a picture and its gradient.
def distance():
    x = torch.randn(2, 3, 64, 64, 3, generator=torch.Generator().manual_seed(1)).movedim(-1, 2).requires_grad_()
    loss = objective.image_loss(x, found[0][:, :3])
    return loss.detach(), *torch.autograd.grad((loss * torch.arange(6.0).view(2, 3)).sum(), x)
calls.clear()
ours = distance()
assert calls == ["half_squared_distance", "scaled"], calls
use(False)
torch.testing.assert_close(ours, distance(), rtol=1e-5, atol=1e-5)

# A NaN stays one, and ReLU's own zero passes no gradient.
use(True)
x = torch.tensor([[float("nan"), -1.0, 1.0, 2.0]])
y = fused_pictures.biased_relu(x.clone().requires_grad_() * 1, torch.tensor([0.0, 0.0, -1.0, 0.0]))
assert y[0, 0].isnan() and y[0, 1:].tolist() == [0, 0, 2]

# A whole update, with and without.
def learn():
    model, batch = graph_tests.world_model(), graph_tests.batch()
    noise = model.draw_noise(3, 4, torch.Generator().manual_seed(0))
    obs, action, reward = map(torch.from_numpy, (batch.obs, batch.action, batch.reward))
    obs = obs.movedim(2, -1).contiguous().movedim(-1, 2)  # as a replay has them
    loss, _ = model.loss_given_noise(obs, action, reward, noise)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}
calls.clear()
found = learn()
assert set(calls) == {
    "dequantise", "relu_of_convolution", "transposed", "biased_relu", "half_squared_distance", "scaled"
}, set(calls)
use(False)
torch.testing.assert_close(found, learn(), rtol=1e-3, atol=1e-4)
"""


@pytest.mark.slow
def test_interpreted_they_give_the_numbers_of_torch() -> None:
    run(INTERPRETED, TRITON_INTERPRET="1")


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from jaxtyping import install_import_hook
with install_import_hook("planet", "beartype.beartype"):  # as in every test run
    from planet import fused_pictures, triton_pictures as kernels

INTEGERS, FLOATS, BYTES = {"count", "rows", "each"}, {"scale", "offset", "noise_scale"}, {"obs", "noise"}
ALWAYS_LONG = {"image", "target", "distance", "sums", "scales", "g_weight", "g_bias"}

def compiled(kernel, of, **constants):
    def kind(name):
        if name in constants:
            return "constexpr"
        if name in INTEGERS:
            return "i32"
        if name in FLOATS:
            return "fp32"
        return "*u8" if name in BYTES else "*fp32" if name in ALWAYS_LONG else f"*{of}"
    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 2})

def sizes(channels):
    rows, whole = fused_pictures._rows_at_a_time(channels)
    return {"ROWS": rows, "WHOLE": whole}

blocks = {"CHANNELS": 3, "BLOCK_ROWS": 32, "BLOCK_COLUMNS": 32, "BLOCK_CHANNELS": 16}
pixels = blocks | {"HEIGHT": 64, "WIDTH": 64}
first = {"SIZE": 64, "CHANNELS": 3, "OUT": 31, "OUTPUTS": 32, "PRECISION": "tf32"}
FORWARD, BACK = fused_pictures._FirstConvolution.ROWS, fused_pictures._FirstConvolution.ROWS_BACK
assert compiled(kernels.dequantise, "fp32", SHIFT=3, BLOCK=4096).asm["cubin"]
for of, short in (("bf16", True), ("fp32", False)):
    for kernel, constants in (
        (kernels.half_squared_distance, {"PIXELS": 12288, "BLOCK": 4096}),
        (kernels.scaled, {"PIXELS": 12288, "BLOCK": 4096}),
        (kernels.add_bias, {"CHANNELS": 32, "RELU": True, "BLOCK": 1024}),
        (kernels.gradient_to_bias, {"CHANNELS": 64, "RELU": True} | sizes(64)),
        (kernels.blocks_to_pixels, pixels | {"BIAS": True, "RELU": True, "BLOCK": 1024}),
        (kernels.gradient_to_blocks, blocks | {"RELU": True} | sizes(16)),
        (kernels.first_convolution, first | {"SHORT": short, "ROWS": FORWARD}),
        (kernels.gradient_of_first_convolution, first | {"SHORT": short, "ROWS": BACK}),
    ):
        found = compiled(kernel, of, **constants)
        assert found.asm["cubin"]
        assert found.metadata.shared <= 163 * 1024, (kernel, found.metadata.shared)  # of an A100
"""


@pytest.mark.slow
def test_they_compile_for_a_gpu_without_one(tmp_path: Path) -> None:
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


def test_without_working_kernels_torch_s_operations_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused_pictures, "_try", broken)
    fused_pictures._works.cache_clear()
    with pytest.warns(UserWarning, match="no fused kernels for pictures on cpu, .*: no C compiler"):
        assert not fused_pictures._works(torch.device("cpu"), "tf32")
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        assert not fused_pictures._works(torch.device("cpu"), "tf32")
    fused_pictures._works.cache_clear()
    assert not fused_pictures.usable(torch.device("cpu")) and not fused_pictures.usable(torch.device("meta"))


@pytest.mark.gpu
def test_they_are_used_on_a_gpu() -> None:
    assert fused_pictures.usable(torch.device("cuda:0"))


@pytest.mark.gpu
def test_a_nan_stays_one_on_a_gpu() -> None:
    """The interpreter's minimum and maximum keep one, a GPU's do not."""
    undefined, none = torch.full((1, 32, 3, 3), float("nan"), device="cuda:0"), torch.zeros(32, device="cuda:0")
    undefined = undefined.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(32, 32, 2, 2, device="cuda:0").contiguous(memory_format=torch.channels_last)

    assert fused_pictures.biased_relu(undefined.flatten(1)[:, :32].clone(), none).isnan().all()
    assert fused_pictures.relu_of_convolution(undefined, weight, none).isnan().all()
    assert fused_pictures.transposed(undefined, weight, none, relu=True).isnan().all()
    image = torch.full((1, 64, 64, 3), float("nan"), device="cuda:0").movedim(-1, 1)
    assert fused_pictures.relu_of_first_convolution(image, torch.ones(32, 3, 4, 4, device="cuda:0"), none).isnan().all()
