"""What `auto` means where there is no GPU, where there is one, and where one was promised."""

from contextlib import nullcontext

import pytest
import torch

from planet import doctor, hardware, processor


@pytest.mark.parametrize("visible", [None, "", "-1", "NoDevFiles", "-1,0"])
def test_auto_is_the_cpu_where_no_gpu_was_promised(visible: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert hardware.resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("visible", ["0", "2,3", "GPU-1a2b"])
def test_auto_is_refused_where_a_promised_gpu_cannot_be_seen(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    with pytest.raises(
        ValueError, match=rf"CUDA_VISIBLE_DEVICES is '{visible}', but torch .* sees no GPU; .*device=cpu"
    ):
        hardware.resolve_device("auto")
    assert hardware.resolve_device("cpu") == torch.device("cpu")  # who asks for it gets it
    assert {"gpu": "problem"}.items() <= {check.name: check.state for check in doctor.torch()}.items()


@pytest.mark.parametrize("device", ["foo", "cuda:abc", "mps"])
def test_what_is_no_device_is_refused_under_the_name_it_was_given_by(device: str) -> None:
    with pytest.raises(ValueError, match=f"^--device must be auto, cpu, cuda or cuda:N .*, got '{device}'"):
        hardware.resolve_device(device, "--device")


def test_a_gpu_that_is_not_there_is_refused_and_one_that_is_there_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert hardware.resolve_device("cuda") == torch.device("cuda:0")
    assert hardware.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="runtime.device is 'cuda:2', but torch .* sees 2 GPUs"):
        hardware.resolve_device("cuda:2")


def test_auto_is_the_first_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert hardware.resolve_device("auto") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("flags", "precision", "hours"),
    [
        ("avx2 avx512f avx512_bf16", "bfloat16", "two"),
        ("avx512f amx_bf16", "bfloat16", "two"),
        ("avx2", "float32", "four"),
    ],
)
def test_auto_is_bfloat16_only_where_the_processor_multiplies_it(
    flags: str, precision: str, hours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(doctor, "has_nvidia_device", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert hardware.resolve_precision("auto", torch.device("cpu")) == precision
    assert hardware.resolve_precision("bfloat16", torch.device("cpu")) == "bfloat16"  # who asks for it gets it
    assert any(check.text.endswith(f"--preset quick about {hours} hours") for check in doctor.torch())


def test_bfloat16_that_a_gpu_only_emulates_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)

    assert hardware.resolve_precision("auto", torch.device("cuda:1")) == "float32"
    assert asked == [torch.device("cuda:1")]


def test_a_gpu_in_use_is_the_current_one_and_repeats_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    precision, deterministic = torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)  # restored afterwards

    hardware.use(torch.device("cpu"))
    assert not current and torch.get_float32_matmul_precision() == precision

    try:
        hardware.use(torch.device("cuda:1"))
        assert current == [torch.device("cuda:1")]
        assert torch.backends.cudnn.deterministic and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)
