"""results/collect.py copies finished runs whole and refuses what would mislead."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from synthetic_runs import make_run

from analysis.readme_results import ROOT


@pytest.fixture
def collect(tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("collect", ROOT / "results/collect.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.HERE = tmp_path / "results"  # type: ignore[attr-defined]
    return module


def make(runs: Path, **changes: object) -> None:
    arguments = {"task": "cheetah_run", "preset": "quick", "returns": lambda episode, seed: [1.0], **changes}
    make_run(runs, **arguments)  # type: ignore[arg-type]


def test_a_run_under_way_is_refused_before_anything_is_copied(collect: ModuleType, tmp_path: Path) -> None:
    make(tmp_path / "runs", seed=0)
    make(tmp_path / "runs", seed=1, until=30, state="running")

    with pytest.raises(ValueError, match="seed_1 is running"):
        collect.collect(tmp_path / "runs", "quick")

    assert not (tmp_path / "results").exists()


def test_nothing_to_copy_and_what_is_refused_are_one_sentence_each(
    collect: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "runs", until=30, state="running")

    with pytest.raises(SystemExit, match="2"):
        collect.main([])
    assert "usage: python results/collect.py [-h] RUNS [PRESET]" in capsys.readouterr().err
    for arguments, said in (
        ([str(tmp_path / "nothing")], f"{tmp_path / 'nothing'} is no folder; name a folder of runs"),
        ([str(tmp_path / "runs"), "paper"], "holds no run of paper (paper/VARIANT/TASK/seed_K)"),
        ([str(tmp_path / "runs")], "seed_0 is running; stop it first"),
    ):
        assert collect.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("collect: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_two_runs_of_one_configuration_are_refused(collect: ModuleType, tmp_path: Path) -> None:
    make(tmp_path / "runs")
    make(tmp_path / "runs", variant="base+batch.size=8")  # what the preset has by itself

    with pytest.raises(ValueError, match="have one configuration"):
        collect.collect(tmp_path / "runs", "quick")


def test_nothing_of_an_earlier_state_stays_but_an_agent_of_as_many_updates(collect: ModuleType, tmp_path: Path) -> None:
    make(tmp_path / "runs")
    source = tmp_path / "runs/quick/base/cheetah_run/seed_0"
    target = tmp_path / "results/quick/base/cheetah_run/seed_0"
    collect.collect(tmp_path / "runs", "quick")
    (target / "strips").mkdir(exist_ok=True)
    (target / "strips/reconstruction_00001.png").write_bytes(b"old")
    (target / "weights.pt").write_bytes(b"agent")

    collect.collect(tmp_path / "runs", "quick")

    assert not (target / "strips/reconstruction_00001.png").exists()
    assert (target / "weights.pt").read_bytes() == b"agent"
    status = json.loads((source / "status.json").read_text())
    (source / "status.json").write_text(json.dumps({**status, "updates": 10**6}))
    collect.collect(tmp_path / "runs", "quick")
    assert not (target / "weights.pt").exists()
    assert (target / "episodes.jsonl").read_bytes() == (source / "episodes.jsonl").read_bytes()


def test_one_video_of_the_first_seed_is_kept(collect: ModuleType, tmp_path: Path) -> None:
    for seed in range(2):
        make(tmp_path / "runs", seed=seed)
        folder = tmp_path / f"runs/quick/base/cheetah_run/seed_{seed}/predictions"
        folder.mkdir(exist_ok=True)
        for episode in (0, 3):
            (folder / f"open_loop_cheetah_run_{episode}.gif").write_bytes(b"video")

    collect.collect(tmp_path / "runs", "quick")

    kept = sorted(path.relative_to(tmp_path / "results") for path in (tmp_path / "results").rglob("*.gif"))
    assert kept == [Path("quick/base/cheetah_run/seed_0/predictions/open_loop_cheetah_run_0.gif")]
