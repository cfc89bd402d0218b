"""One gradient step does what it says, learns, and can be saved between any two."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from planet.config import ModelConfig, ObjectiveConfig, OptimizerConfig
from planet.learner import Learner, Staging
from planet.world_model import WorldModel

CPU = torch.device("cpu")


@dataclass
class Chunks:
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(optimizer: OptimizerConfig | None = None, precision: Any = "float32") -> Learner:
    model = ModelConfig(conv_depth=4, stoch=5, deter=12, hidden=10, reward_units=9)
    return Learner(WorldModel(model, ObjectiveConfig(), 2, seeded(0)), optimizer or OptimizerConfig(), CPU, precision)


def chunks(size: int = 3, time: int = 4) -> Chunks:
    rng = np.random.default_rng(0)
    return Chunks(
        rng.integers(0, 256, (size, time, 3, 64, 64), dtype=np.uint8),
        rng.uniform(-1, 1, (size, time, 2)).astype(np.float32),
        rng.normal(size=(size, time)).astype(np.float32),
    )


def parameters(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.world_model.parameters()])


def test_first_update_is_adam_written_out() -> None:
    learner, batch = build(OptimizerConfig(learning_rate=0.01, eps=1e-4)), chunks()
    before = copy.deepcopy(learner.world_model)
    loss, _ = before.loss(*(torch.from_numpy(x) for x in (batch.obs, batch.action, batch.reward)), generator=seeded(7))
    loss.backward()

    terms = learner.update(batch, seeded(7))

    # After one step Adam's bias-corrected moments are g and g^2: the step is lr * g / (|g| + eps).
    for old, new in zip(before.parameters(), learner.world_model.parameters(), strict=True):
        grad = torch.zeros_like(old) if old.grad is None else old.grad
        torch.testing.assert_close(new.detach(), old.detach() - 0.01 * grad / (grad.abs() + 1e-4), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(terms["loss"], loss.detach())
    norm = torch.cat([p.grad.flatten() for p in before.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(terms["grad_norm"], norm)


def test_grad_norm_is_reported_before_clipping_and_clipping_shrinks_the_gradient() -> None:
    free, clipped = build(), build(OptimizerConfig(clip_norm=0.5))

    norm, same_norm = (learner.update(chunks(), seeded(0))["grad_norm"] for learner in (free, clipped))

    assert norm == same_norm and norm > 0.5
    grads = [p.grad for p in clipped.world_model.parameters() if p.grad is not None]
    torch.testing.assert_close(torch.cat([g.flatten() for g in grads]).norm(), torch.tensor(0.5), rtol=1e-4, atol=0)


def test_terms_are_detached_scalars_with_the_promised_names() -> None:
    terms = build().update(chunks(), seeded(0))

    assert {"image", "reward", "kl", "kl_raw", "loss", "grad_norm"} <= set(terms)
    assert all(value.ndim == 0 and not value.requires_grad for value in terms.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_updates_lower_the_loss_on_one_batch(precision: str) -> None:
    learner, batch = build(precision=precision), chunks()
    batch.obs[:] = np.arange(0, 256, 64, dtype=np.uint8)[None, :, None, None, None]  # noise cannot be learned, this can

    losses = [learner.update(batch, seeded(i))["image"].item() for i in range(30)]

    assert losses[-1] < 0.75 * losses[0]
    assert all(p.dtype == torch.float32 for p in learner.world_model.parameters())
    moments = [v for s in learner.optimizer.state.values() for v in s.values()]
    assert moments and all(v.dtype == torch.float32 for v in moments)


def test_resuming_from_a_saved_state_continues_bit_for_bit(tmp_path: Any) -> None:
    unbroken = build()
    for i in range(2):
        unbroken.update(chunks(), seeded(i))
    torch.save(unbroken.state_dict(), tmp_path / "state.pt")
    for i in range(2, 4):
        unbroken.update(chunks(), seeded(i))

    resumed = build()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for i in range(2, 4):
        resumed.update(chunks(), seeded(i))

    assert torch.equal(parameters(resumed), parameters(unbroken))


def test_staged_memory_is_written_again_only_when_it_has_been_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Event:
        def __init__(self) -> None:
            self.name = "AB"[len(made)]
            made.append(self)

        def synchronize(self) -> None:
            told.append(f"wait for {self.name}")

        def record(self, stream: object) -> None:
            told.append(f"copied {self.name}")

    made: list[Event] = []
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, pin_memory: empty_like(x))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    staging = Staging(CPU)  # whose copies are the page-locked memory itself
    pictures = torch.arange(24).view(1, 2, 3, 4).movedim(-1, 1)

    first, second, third = ([x.data_ptr() for x in staging(-pictures, torch.zeros(1))] for _ in range(3))

    assert told == ["wait for A", "copied A", "wait for B", "copied B", "wait for A", "copied A"]
    assert first == third and not set(first) & set(second)
    found, _ = staging(pictures, torch.ones(1))
    assert found.stride() == pictures.stride() and torch.equal(found, pictures)


def test_bfloat16_changes_the_numbers_a_little() -> None:
    exact = build().update(chunks(), seeded(0))
    short = build(precision="bfloat16").update(chunks(), seeded(0))

    assert exact["loss"] != short["loss"]
    torch.testing.assert_close(exact["loss"], short["loss"], rtol=0.01, atol=0)


def test_the_step_is_taken_with_the_clipped_gradient() -> None:
    settings = OptimizerConfig(learning_rate=0.01, eps=1e-4, clip_norm=1e-3)  # small beside eps, else Adam hides it
    learner, batch = build(settings), chunks()
    before = copy.deepcopy(learner.world_model)
    loss, _ = before.loss(*(torch.from_numpy(x) for x in (batch.obs, batch.action, batch.reward)), generator=seeded(7))
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in before.parameters() if p.grad is not None]).norm()

    learner.update(batch, seeded(7))

    assert norm > 1
    for old, new in zip(before.parameters(), learner.world_model.parameters(), strict=True):
        grad = torch.zeros_like(old) if old.grad is None else old.grad * 1e-3 / norm
        torch.testing.assert_close(new.detach(), old.detach() - 0.01 * grad / (grad.abs() + 1e-4), atol=2e-6, rtol=1e-4)


def test_nothing_but_the_gradient_moves_parameters() -> None:
    learner = build(OptimizerConfig(learning_rate=1.0, eps=1e8))  # an eps beside which every gradient is nothing
    before = parameters(learner)

    learner.update(chunks(), seeded(0))

    assert before.abs().max() > 0.1  # weight decay would show
    torch.testing.assert_close(parameters(learner), before, rtol=0, atol=1e-4)
