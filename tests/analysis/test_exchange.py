"""Other people's files in and ours out: a round trip keeps every number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import make_run, returns_of

from analysis.exchange import EXPORTS, across_seeds, overlay_section, read_overlay, task_name
from analysis.figures import Figure
from analysis.report import main
from analysis.runs import BadInput, Results, load


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    runs = tmp_path_factory.mktemp("runs")
    for task in ("cup_catch", "walker_walk"):
        for seed in range(2):
            make_run(runs, task=task, seed=seed, until=100, state="stopped", train_rows=False, metrics_every=500)
    make_run(runs, variant="true_simulator", task="cup_catch")
    return load([runs])


def expected(task: str, episode: int, seed: int) -> float:
    return float(np.mean(returns_of("base", task)(episode, seed)))


@pytest.mark.parametrize(
    "theirs",
    ["dmc_ball_in_cup_catch", "cup-catch", "cup_catch", "ball_in_cup_catch", "dmc_cup_catch", "cup-catch_vision"],
)
def test_names_of_one_task(theirs: str) -> None:
    assert task_name(theirs) == "cup_catch"


def test_dreamer_round_trip(results: Results, tmp_path: Path) -> None:
    (path,) = EXPORTS["dreamer"](results, tmp_path)

    entries = json.loads(gzip.decompress(path.read_bytes()))
    assert {(e["task"], e["method"], e["seed"]) for e in entries} == {
        (task, "planet", seed) for task in ("dmc_ball_in_cup_catch", "dmc_walker_walk") for seed in ("0", "1")
    }
    frame = read_overlay(str(path))
    assert len(frame) == 2 * 2 * 2
    for row in frame.to_dict("records"):
        np.testing.assert_allclose(
            row["return"], expected(row["task"], int(row["env_steps"] // 1000), int(row["seed"]))
        )


def test_the_same_runs_give_the_same_bytes(results: Results, tmp_path: Path) -> None:
    first = EXPORTS["dreamer"](results, tmp_path)[0].read_bytes()

    assert EXPORTS["dreamer"](results, tmp_path)[0].read_bytes() == first


def test_tdmpc2_round_trip(results: Results, tmp_path: Path) -> None:
    paths = EXPORTS["tdmpc2"](results, tmp_path)

    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "planet/ball-in-cup-catch.csv", "planet/walker-walk.csv"
    ]  # fmt: skip
    frame = read_overlay(f"ours again:{tmp_path / 'planet'}")
    assert set(frame["method"]) == {"ours again"}
    for row in frame.to_dict("records"):
        np.testing.assert_allclose(
            row["return"], expected(row["task"], int(row["env_steps"] // 1000), int(row["seed"]))
        )


def test_the_csv_export_has_every_evaluation_episode(results: Results, tmp_path: Path) -> None:
    (path,) = EXPORTS["csv"](results, tmp_path)

    table = pd.read_csv(path)
    assert len(table) == 2 * 2 * 2 * 10 + 10  # tasks x seeds x evaluations x episodes, and the simulator's ten
    one = table[(table["task"] == "walker_walk") & (table["seed"] == 1) & (table["episode"] == 84)]
    np.testing.assert_allclose(one["return"], returns_of("base", "walker_walk")(84, 1), rtol=1e-9)


def test_overlays_are_drawn_with_their_numbers_in_the_data(results: Results, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text(
        json.dumps([{"task": "dmc_walker_walk", "method": "dreamerv3", "seed": 0, "xs": [5e4, 2e6], "ys": [300, 950]}])
    )

    section = overlay_section(results, [read_overlay(str(file))])

    assert section is not None
    (figure,) = section.blocks
    assert isinstance(figure, Figure)
    others = figure.data.loc[figure.data["source"] == "overlay", ["series", "env_steps", "mean"]]
    assert others.values.tolist() == [["dreamerv3", 5e4, 300]]  # 2e6 is beyond us


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("scores.json", "{", "not a Dreamer score file"),
        ("scores.json", '[{"task": "dmc_walker_walk", "seed": 0, "xs": [], "ys": []}]', "lacks 'method'"),
        ("scores.json", "[]", "holds no run"),
        (
            "scores.json",
            '[{"task": "atari_pong", "method": "a", "seed": 0, "xs": [1], "ys": [1]}]',
            "none of the tasks",
        ),
        ("scores.json", '[{"task": "dmc_walker_walk", "method": "a", "seed": 0, "xs": [1], "ys": [NaN]}]', "no finite"),
        ("walker-walk.csv", "step,return\n1,2\n", "lacks the columns reward, seed"),
    ],
)
def test_files_of_neither_format_are_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(BadInput, match=said):
        read_overlay(str(tmp_path / name))


def test_seeds_that_report_at_steps_of_their_own_are_averaged_between_them() -> None:
    one = pd.DataFrame({"seed": "0", "env_steps": [0.0, 1000.0, 2000.0], "return": [0.0, 100.0, 300.0]})
    other = pd.DataFrame({"seed": "1", "env_steps": [500.0, 1500.0, 2500.0], "return": [10.0, 20.0, 30.0]})

    steps, returns = across_seeds(pd.concat([other, one]))

    np.testing.assert_array_equal(steps, [500, 1000, 1500, 2000])
    np.testing.assert_allclose(returns, [[10, 15, 20, 25], [50, 100, 200, 300]])


def test_a_missing_overlay_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--overlay", str(tmp_path / "none.json")]) == 2
    assert "does not exist; --overlay takes" in capsys.readouterr().err
