"""A whole run with plain code in place of every fast path is the run with the fast paths."""

from pathlib import Path

import pytest

from benchmarks.speed.learning import IN_PLACE
from planet import presets
from planet.run_dir import RunDir, read_jsonl
from planet.train import train

CHANGES = {
    "schedule.train_episodes": 4, "schedule.updates": 5, "schedule.eval_points": 1, "schedule.open_loop_episodes": 0,
    "runtime.device": "cpu", "runtime.precision": "float32",
}  # fmt: skip


def rows(path: Path) -> tuple[list[dict], list[dict]]:
    config = presets.resolve("cartpole_swingup", preset="smoke", changes=CHANGES, seed=1)
    run = RunDir.create(path, config, preset="smoke", variant="base")
    assert train(path) == 0
    return read_jsonl(run.metrics_jsonl)[0], read_jsonl(run.episodes_jsonl)[0]


@pytest.mark.slow
def test_the_fast_run_is_the_plain_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Seed episodes, 20 updates, four planned episodes and two evaluations, each built on what came before.
    fast_metrics, fast_episodes = rows(tmp_path / "fast")
    used = []
    for owner, name, function in IN_PLACE:

        def counted(*args, function=function):
            used.append(function)
            return function(*args)

        monkeypatch.setattr(owner, name, counted)

    metrics, episodes = rows(tmp_path / "plain")

    assert set(used) == {function for _, _, function in IN_PLACE}
    assert len(metrics) == len(fast_metrics) == 4 and metrics[-1]["updates"] == 20
    for plain, fast in zip(metrics, fast_metrics, strict=True):
        for term in ("loss", "image", "reward", "kl_raw", "grad_norm"):
            assert fast[term] == pytest.approx(plain[term], rel=1e-4), (term, plain["episode"])
    assert len(episodes) == len(fast_episodes)
    for plain, fast in zip(episodes, fast_episodes, strict=True):
        assert (fast["kind"], fast["length"]) == (plain["kind"], plain["length"])
        assert fast["return"] == pytest.approx(plain["return"], rel=1e-4, abs=1e-4)
