"""README's results say what the run directories in results/ say; the report of results/ can be made."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import make_run

from analysis import readme_results
from analysis.readme_results import BEGIN, DETAILS, END, FIGURES, RANDOM, ROOT, csv, read, with_block
from analysis.report import make_report
from benchmarks import variants
from planet.config import identity_hash, parse_changes
from planet.presets import resolve
from planet.run_dir import RunDir

STALE = "results/ and README.md disagree: run make results (python analysis/readme_results.py) and commit what changes"


def returns(episode: int, seed: int) -> list[float]:
    return [100.0 * seed + episode + k for k in range(10)]


def env_seeds(run: Path, episode: int) -> list[int]:
    rows = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    return [row["env_seed"] for row in rows if row["kind"] == "eval" and row["episode"] == episode]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository's README and results: three seeds on cartpole, a stopped cheetah run, an ablation, the simulator."""
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    runs = tmp_path / "results"
    common = {"preset": "quick", "returns": returns, "metrics_every": 10}
    for seed in range(3):
        make_run(runs, task="cartpole_swingup", seed=seed, **common)  # type: ignore[arg-type]
    make_run(runs, task="cheetah_run", until=80, state="stopped", **common)  # type: ignore[arg-type]
    make_run(runs, task="cartpole_swingup", variant="stochastic", seed=1, **common)  # type: ignore[arg-type]
    rows = [f"cheetah_run,{seed},{k}" for k, seed in enumerate(env_seeds(runs / "quick/base/cheetah_run/seed_0", 65))]
    (runs / "random_policy.csv").write_text("\n".join(["task,env_seed,return", *rows]) + "\n")
    make_run(runs, variant="true_simulator", task="walker_walk", returns=lambda episode, seed: [990.0])
    return tmp_path


def test_the_readme_says_what_results_say() -> None:
    block = read(ROOT)
    readme = (ROOT / "README.md").read_text()

    assert readme == with_block(readme, block.text), STALE
    assert (ROOT / DETAILS).read_text() == block.details, STALE
    there = {path.name for path in (ROOT / FIGURES).iterdir()}
    assert there == {f"{figure.name}{suffix}" for figure in block.figures for suffix in (".csv", ".png")}, STALE
    for figure in block.figures:
        assert (ROOT / FIGURES / f"{figure.name}.csv").read_text() == csv(figure), STALE
        assert 3_000 < (ROOT / FIGURES / f"{figure.name}.png").stat().st_size < 250_000
    assert block.figures, "no run in results/ has learned a model"


def test_committed_runs_have_the_configuration_they_are_named_by() -> None:
    """A preset or an ablation that changes leaves its evidence behind: run it again, or file it under the changed keys'
    name. But for the length, which changes nothing of what a run has done until then."""
    paths = sorted((ROOT / "results").glob("*/*/*/seed_*"))
    assert paths
    for path in paths:
        preset, variant, task, name = path.parts[-4:]
        ablation, *changes = variant.split("+")
        schedule = RunDir(path).config().schedule
        length = {"schedule.train_episodes": schedule.train_episodes, "schedule.eval_points": schedule.eval_points}
        expected = resolve(
            task, preset=preset, ablation=variants.load(ablation).overrides, seed=int(name.removeprefix("seed_")),
            changes=length | parse_changes(changes),
        )  # fmt: skip
        assert identity_hash(RunDir(path).config()) == identity_hash(expected), path
        record, status = RunDir(path).record(), RunDir(path).status()
        assert record is not None and record["config_hash"] == identity_hash(expected), path
        simulated = expected.planner.dynamics == "simulator"
        total = schedule.eval_episodes if simulated else schedule.seed_episodes + schedule.train_episodes
        assert status is not None and status["episodes_total"] == total, path


def test_random_returns_are_those_of_the_script() -> None:
    script = runpy.run_path(str(ROOT / "results/random_policy.py"))
    table = pd.read_csv(ROOT / RANDOM)
    row = table[table["task"] == "cartpole_swingup"].iloc[0]

    assert script["random_return"](row["task"], int(row["env_seed"])) == pytest.approx(row["return"], rel=1e-3)


def test_a_row_equals_a_direct_computation(root: Path) -> None:
    block = read(root)

    last = np.array([returns(325, seed) for seed in range(3)])
    first, row = (
        next(line for line in text.splitlines() if line.startswith("| Cartpole swingup | PlaNet | 325 |"))
        for text in (block.text, block.details)
    )
    low, middle, high = np.percentile(last, [5, 50, 95])
    band = f"| 3 | **{middle:.0f}** [{low:.0f}, {high:.0f}] |"
    assert first == f"| Cartpole swingup | PlaNet | 325 {band}  | 779 [667, 848] (321–373) |" and band in row
    assert ", ".join(f"{mean:.0f}" for mean in last.mean(axis=1)) in row
    assert (
        "| 779 [667, 848] (321–373) |" in row
    )  # the paper's bin from 320.8 episodes: analysis/reference/fig4_model_designs.csv
    wall = np.mean([36.0 * 325 + seed for seed in range(3)]) / 3600
    # metrics stand at every tenth episode
    cpu = ", ".join(f"{(36.0 * 320 + seed) * 1.9 / 3600:.2f}" for seed in range(3))
    assert f"| {wall:.1f} | {cpu} | Test processor, 1 of " in row and row.endswith(", float32 |")
    assert "| Walker walk | **990** | 1 | 994 |" in block.text


def test_the_planner_that_refits_unclipped_stands_beside_the_other(root: Path) -> None:
    for seed, earned in enumerate((991.0, 993.0)):
        make_run(root / "results", variant="true_simulator+planner.refit_clipped=false", task="walker_walk", seed=seed,
                 changes={"planner.refit_clipped": False}, returns=lambda episode, seed, r=earned: [r])  # fmt: skip
    text = read(root).text

    assert "| task | return | episodes | paper | refitted unclipped |" in text
    assert "| Walker walk | **990** | 1 | 994 | **992** (991–993) |" in text


def test_an_ablation_stands_beside_the_unchanged_agent_of_its_age(root: Path) -> None:
    runs = root / "results"
    make_run(runs, preset="quick", task="cartpole_swingup", variant="random_shooting", until=110, state="stopped",
             returns=lambda episode, seed: [7.0] * 10)  # fmt: skip

    rows = {line.split("|")[2].strip(): line for line in read(root).text.splitlines() if "| Cartpole swingup |" in line}

    low, middle, high = np.percentile([returns(105, seed) for seed in range(3)], [5, 50, 95])
    assert f"| 105 | 1 | **7** [7, 7] | {middle:.0f} [{low:.0f}, {high:.0f}], 3 seeds |" in rows["Random shooting"]
    assert "|  | 779 [667, 848] (321–373) |" in rows["PlaNet"]
    shutil.rmtree(runs / "quick/base")
    assert "| **7** [7, 7] | – |" in read(root).text and "| 7 | – |" in read(root).details


def test_what_is_missing_is_said(root: Path) -> None:
    block = read(root)
    text = block.text

    assert "the end of 1 of 5 runs, which were stopped before." in text
    assert "PlaNet on reacher easy, finger spin, cup catch or walker walk" in text
    assert "here 1 on cheetah run, 3 on cartpole swingup" in text
    assert "ablations of Figures 4 and 5 `deterministic`, `deterministic_official`, `random_collection`" in text
    assert "`quick/base/cheetah_run/seed_0` ended at 80 of 325 episodes (evaluation after 65: mean 70)" in block.details
    assert "PlaNet itself at the paper's sizes, on any task" in text
    status = root / "results/quick/stochastic/cartpole_swingup/seed_1/status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "failed", "episode": 30}))
    assert "`quick/stochastic/cartpole_swingup/seed_1` failed at 30 of 325 episodes" in read(root).details


def test_seeds_that_did_not_get_as_far_are_counted(root: Path) -> None:
    make_run(root / "results", preset="quick", task="cartpole_swingup", seed=3, until=120, state="stopped",
             returns=returns)  # fmt: skip

    block = read(root)

    assert "| Cartpole swingup | PlaNet | 325 | 3 of 4 | " in block.text
    note = "`quick/base/cartpole_swingup/seed_3` ended at 120 of 325 episodes (evaluation after 105: mean 410)"
    assert note in block.details


def test_a_run_is_held_against_random_actions_from_its_own_start_states(root: Path) -> None:
    block = read(root)
    text = block.details

    assert "1 of 1 runs ended above random actions from the same start states" in block.text
    # 65..74 against 0..9: Mann and Whitney's exact p is 1 of the 184,756 ways to divide twenty
    assert "| Cheetah run | PlaNet, seed 0 | 65 | 70 [65, 74] | 4 [0, 9] | 5e-06 | yes |" in text
    assert "| Cartpole swingup | PlaNet, seed 0 |" not in text  # no random episodes from its start states


def test_a_run_that_goes_or_comes_changes_block_and_data(root: Path) -> None:
    before = read(root)
    shutil.rmtree(root / "results/quick/base/cartpole_swingup/seed_2")

    after = read(root)

    assert after.text != before.text
    assert csv(after.figures[0]) != csv(before.figures[0])


@pytest.mark.slow
def test_writing_twice_changes_nothing_and_keeps_the_rest_of_the_readme(root: Path) -> None:
    readme_results.write(root, read(root))
    written = [root / "README.md", root / DETAILS]
    first = {path: path.read_bytes() for path in [*written, *(root / FIGURES).iterdir()]}
    (root / FIGURES / "gone.png").write_bytes(b"")

    readme_results.write(root, read(root))

    assert {path: path.read_bytes() for path in [*written, *(root / FIGURES).iterdir()]} == first
    assert first[root / DETAILS].decode() == read(root).details
    readme = first[root / "README.md"].decode()
    assert readme.startswith(f"before\n{BEGIN}\n![PlaNet, quick preset, and the paper.")
    assert readme.endswith(f"\n{END}\nafter\n")
    assert {path.name for path in first} == {
        "README.md", "quick-planet.csv", "quick-planet.png", "quick-ablations.csv", "quick-ablations.png"
    }  # fmt: skip


@pytest.mark.slow
def test_the_report_of_results_is_made(tmp_path: Path) -> None:
    index, unusable = make_report([ROOT / "results"], tmp_path)

    assert unusable == []
    text = index.read_text().replace("<wbr>", "")
    for run in (ROOT / "results").rglob("run.json"):
        record = json.loads(run.read_text())
        assert f"{record['variant']}/{record['task']}/seed_{record['seed']}" in text


def test_fewer_random_episodes_than_a_run_was_evaluated_on_are_not_held_against_it(root: Path) -> None:
    table = root / RANDOM
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))

    assert "| Cheetah run | PlaNet, seed 0 | 65 | 70 [65, 74] |" not in read(root).details


def test_the_papers_numbers_do_not_stand_beside_shorter_episodes(root: Path) -> None:
    make_run(root / "results", preset="quick", task="walker_walk", returns=returns, metrics_every=10,
             changes={"env.episode_env_steps": 500})  # fmt: skip

    (row,) = [line for line in read(root).text.splitlines() if line.startswith("| Walker walk | PlaNet")]
    assert row.endswith(" | – |") and "(321–373)" not in row


def test_seeds_are_missing_while_any_task_lacks_some(root: Path) -> None:
    for seed in (3, 4):
        make_run(root / "results", preset="quick", task="cartpole_swingup", seed=seed, returns=returns,
                 metrics_every=10)  # fmt: skip

    assert "seeds (the paper has 5; here 1 on cheetah run, 5 on cartpole swingup)" in read(root).text
