"""What `auto` means where there is no GPU, where there is one, and where one was promised."""

import pytest
import torch

from planet import doctor, hardware


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


def test_auto_is_the_first_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert hardware.resolve_device("auto") == torch.device("cuda:0")
