"""The fused kernels give torch's numbers (Triton's interpreter runs them without a GPU) and compile for one.

Each in a process of its own: Triton decides when it is imported whether it interprets.
"""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from planet import fused

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
import test_rssm_observe as observe_tests, test_rssm_rollout as rollout_tests
from planet import fused, triton_kernels

fused._try(torch.device("cpu"))

calls = []
def counted(name, function):
    def wrapper(*arguments, **keywords):
        calls.append(name)
        return function(*arguments, **keywords)
    return wrapper

fused.usable = lambda device: True
fused.cell, fused.sample = counted("cell", fused.cell), counted("sample", fused.sample)

for settings in observe_tests.SETTINGS:
    calls.clear()
    observe_tests.test_every_gradient_equals_that_of_single_steps(settings)
    samples = not any(settings.get(name) for name in ("fixed_std", "mean_only"))
    assert calls.count("cell") == 11 and calls.count("sample") == 11 * samples, (settings, calls)

for changes in ({}, {"activation": "elu"}, {"mean_only": True}, {"fixed_std": 0.7}):
    calls.clear()
    model = rollout_tests.build(**changes)
    state, _ = rollout_tests.state_of(model)
    actions, noise = rollout_tests.inputs(model)
    found = rollout_tests.roll(rollout_tests.rollout_of(model, few_kernels=True), state, actions, noise)
    assert calls.count("cell") == rollout_tests.HORIZON, calls
    assert calls.count("sample") == rollout_tests.HORIZON * (not changes or "activation" in changes), calls
    calls.clear()
    expected = rollout_tests.roll(rollout_tests.rollout_of(model, few_kernels=False), state, actions, noise)
    assert not calls
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

# Large numbers: gates saturate, and softplus is the number itself.
x = torch.tensor([[-200.0, -30.0, 0.0, 19.9, 20.1, 200.0]])
out, std = torch.empty(2, 1, 6)
fused.sample(x, x, torch.ones(1, 6), out=out, min_std=0.1, std=std)
torch.testing.assert_close(std, torch.nn.functional.softplus(x) + 0.1)
gates = torch.cat([x, x], dim=1)
expected = torch.lerp((x + x.sigmoid() * x).tanh(), torch.full_like(x, 0.5), x.sigmoid())
fused.cell(*gates.split(6, dim=1), x.clone(), x, torch.full_like(x, 0.5), out=out, save=False)
torch.testing.assert_close(out, expected)

with pytest.raises(ValueError, match="float32 rows without gaps"):
    fused.sample(x.T, x.T, x.T, out=torch.empty(6, 1).double(), min_std=0.1)
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

sizes = {"columns": 200, "BLOCK": fused.BLOCK}
for kernel in (triton_kernels.cell, triton_kernels.sample):
    for save in (True, False):
        pointers = {"reset", "update", "new", "new_h", "h", "out", "mean", "raw", "noise", "std"}
        constants = sizes | {"SAVE": save}
        signature = {
            name: "constexpr" if name in constants else "*fp32" if name in pointers else
            "fp32" if name == "min_std" else "i32"
            for name in kernel.arg_names
        }
        for capability in (80, 90):  # A100, H100
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
"""


def test_they_compile_for_a_gpu_without_one(tmp_path: Path) -> None:
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


def test_without_working_kernels_torch_s_operations_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused, "_try", broken)
    fused.usable.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no fused kernels on cuda:5, .*: no C compiler"):
            assert not fused.usable(torch.device("cuda:5"))
        with warnings.catch_warnings():  # once is enough
            warnings.simplefilter("error")
            assert not fused.usable(torch.device("cuda:5"))
        assert not fused.usable(torch.device("cpu"))
    finally:
        fused.usable.cache_clear()


@pytest.mark.gpu
def test_they_are_used_on_a_gpu() -> None:
    assert fused.usable(torch.device("cuda:0"))
