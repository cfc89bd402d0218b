"""What is missing or wrong is said by name; what cannot be pooled is not; bad input ends in a sentence."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from synthetic_runs import make_run, write_plan

from analysis.gaps import gaps_section
from analysis.report import main, make_report
from analysis.runs import EXECUTION, LATER, BadInput, Problem, Results, load, read_jsonl, variant_of, walk
from planet import config

NOW = 2_000_000_000.0
DIRTY = {"commit": "c0ffee0123456789", "dirty": True}


def problems(results: Results, kind: str) -> list[Problem]:
    return [problem for problem in results.problems if problem.kind == kind]


def short_run(runs: Path, **arguments: object) -> Path:
    options = {"preset": "smoke", "heartbeat": NOW, "returns": lambda episode, seed: [1.0, 3.0]} | arguments
    return make_run(runs, **options).path  # type: ignore[arg-type]


def test_every_state_is_told_from_the_others(tmp_path: Path) -> None:
    short_run(tmp_path, seed=0)
    short_run(tmp_path, seed=1, until=2, state="failed", error="NonFiniteLoss: image became nan at update 41")
    short_run(tmp_path, seed=2, until=3, state="running", heartbeat=NOW - 30)
    short_run(tmp_path, seed=3, until=3, state="running", heartbeat=NOW - 3600)
    short_run(tmp_path, seed=4, until=3, state="stopped")
    short_run(tmp_path, seed=5, until=3, state="done")
    write_plan(tmp_path, "smoke", "dmc6", [("base", "cheetah_run", seed) for seed in range(7)])

    results = load([tmp_path], now=NOW)

    said = {problem.kind: (problem.where, problem.text) for problem in results.problems}
    assert said["failed"] == (
        "base/cheetah_run/seed_1", "after 2 of 4 episodes: NonFiniteLoss: image became nan at update 41"
    )  # fmt: skip
    assert said["running"] == ("base/cheetah_run/seed_2", "at 3 of 4 episodes")
    assert said["stale"][0] == "base/cheetah_run/seed_3" and "silent for 1.0 hours" in said["stale"][1]
    assert said["stopped"][0] == "base/cheetah_run/seed_4"
    assert said["short"] == ("base/cheetah_run/seed_5", "0 of 1 evaluations are complete (2 episodes each)")
    assert said["missing"][0] == "base/cheetah_run/seed_6"
    assert len(results.problems) == 6
    section = gaps_section(results)
    assert section.lead.startswith("<strong>1 of 7</strong>")


def test_without_a_plan_every_seen_task_is_expected_with_every_seen_seed(tmp_path: Path) -> None:
    short_run(tmp_path, task="cheetah_run", seed=0)
    short_run(tmp_path, task="walker_walk", seed=3)

    results = load([tmp_path], now=NOW)

    missing = {problem.where for problem in problems(results, "missing")}
    assert missing == {"base/cheetah_run/seed_3", "base/walker_walk/seed_0"}
    assert "no plan file is there" in gaps_section(results).lead


@pytest.mark.parametrize("lost", [["run.json"], ["run.json", "config.toml"], ["run.json", "episodes.jsonl"]])
def test_a_run_that_has_lost_its_record_is_named(tmp_path: Path, lost: list[str]) -> None:
    short_run(tmp_path, seed=0)
    path = short_run(tmp_path, seed=1)
    for name in lost:
        (path / name).unlink()

    results = load([tmp_path], now=NOW)

    (problem,) = problems(results, "unusable")
    assert problem.where == "base/cheetah_run/seed_1" and f"{path} holds a run without run.json" in problem.text
    assert results.unusable == [("smoke", "base", "cheetah_run", 1)] and not problems(results, "missing")


def test_files_that_only_share_a_name_with_a_runs_are_no_run(tmp_path: Path) -> None:
    path = short_run(tmp_path / "runs")
    for name in ("config.toml", "episodes.jsonl"):
        copy = tmp_path / f"copy of {name}" / name
        copy.parent.mkdir()
        copy.write_bytes((path / name).read_bytes())

    assert [found for _, found in walk(tmp_path)] == [path]


def test_a_torn_last_line_is_skipped_and_counted(tmp_path: Path) -> None:
    path = short_run(tmp_path)
    with (path / "episodes.jsonl").open("a") as file:
        file.write('{"task": "cheetah_run", "kind": "ev')

    results = load([tmp_path], now=NOW)

    assert len(results.frame("eval")) == 2
    (torn,) = problems(results, "torn")
    assert torn.text == "1 line cannot be read as JSON"


def test_lines_that_are_json_but_no_objects_count_as_torn(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n[1, 2]\n{"a": 2}\n')

    assert read_jsonl(tmp_path / "rows.jsonl") == ([{"a": 1}, {"a": 2}], 1)


def test_a_run_in_two_folders_is_used_once_and_said(tmp_path: Path) -> None:
    short_run(tmp_path / "first")
    short_run(tmp_path / "second", returns=lambda episode, seed: [70.0, 70.0])

    results = load([tmp_path / "first", tmp_path / "second"], now=NOW)

    assert sorted(results.frame("eval")["return"]) == [1.0, 3.0]
    (duplicate,) = problems(results, "duplicate")
    assert str(tmp_path / "second") in duplicate.text and str(tmp_path / "first") in duplicate.text


def test_rows_written_twice_are_used_once_and_said(tmp_path: Path) -> None:
    path = short_run(tmp_path)
    rows = (path / "episodes.jsonl").read_text().splitlines()
    (path / "episodes.jsonl").write_text("\n".join([*rows, rows[-1]]) + "\n")

    results = load([tmp_path], now=NOW)

    assert len(results.frame("eval")) == 2
    assert "1 episode rows are there twice" in problems(results, "duplicate")[0].text


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({"resolved": {"precision": "float32"}}, {"resolved": {"precision": "bfloat16"}}, ("float32", "bfloat16")),
        ({"resolved": {"picture": "exact"}}, {"resolved": {"picture": "fast"}}, ("exact pictures", "fast pictures")),
        ({}, {"git": DIRTY}, ("clean commits", "uncommitted changes on c0ffee0")),
        ({}, {"changes": {"planner.candidates": 30}}, ("planner.candidates=20", "planner.candidates=30")),
    ],
)
def test_runs_made_otherwise_are_not_pooled_and_that_is_said(
    tmp_path: Path, first: dict[str, object], second: dict[str, object], named: tuple[str, str]
) -> None:
    short_run(tmp_path, seed=0, **first)
    short_run(tmp_path, seed=1, **second)

    results = load([tmp_path], now=NOW)

    names = [run.series for run in results.runs]
    assert len(set(names)) == 2
    assert all(part in name for part, name in zip(named, names, strict=True))
    (split,) = problems(results, "split")
    assert all(part in split.text for part in named)


def test_settings_are_compared_over_tasks_too_but_for_each_tasks_own_action_repeat(tmp_path: Path) -> None:
    short_run(tmp_path, task="cartpole_swingup")
    short_run(tmp_path, task="cheetah_run")
    assert {run.series for run in load([tmp_path], now=NOW).runs} == {"base"}

    short_run(tmp_path, task="walker_walk", changes={"planner.candidates": 30})

    assert {run.series for run in load([tmp_path], now=NOW).runs} == {
        "base · planner.candidates=20", "base · planner.candidates=30"
    }  # fmt: skip


def test_another_precision_on_another_task_divides_no_curve_but_is_said(tmp_path: Path) -> None:
    short_run(tmp_path, task="cartpole_swingup", resolved={"precision": "bfloat16"})
    short_run(tmp_path, task="cheetah_run", resolved={"precision": "float32"})

    results = load([tmp_path], now=NOW)

    assert {run.series for run in results.runs} == {"base"} and not problems(results, "split")
    (mixed,) = problems(results, "mixed")
    assert "bfloat16: cartpole_swingup; float32: cheetah_run" in mixed.text

    short_run(tmp_path, task="cheetah_run", seed=1, resolved={"precision": "bfloat16"})

    results = load([tmp_path], now=NOW)

    assert {run.series for run in results.runs} == {"base · bfloat16", "base · float32"}
    assert problems(results, "split") and not problems(results, "mixed")


def test_another_length_on_another_task_divides_no_curve_but_is_said(tmp_path: Path) -> None:
    short_run(tmp_path, task="cartpole_swingup")
    short_run(tmp_path, task="cheetah_run", changes={"schedule.train_episodes": 3, "schedule.eval_points": 1})

    results = load([tmp_path], now=NOW)

    assert {run.series for run in results.runs} == {"base"} and not problems(results, "split")
    (mixed,) = problems(results, "mixed")
    assert "planned with one length on some tasks and with another on others: 2 episodes: cart" in mixed.text

    short_run(tmp_path, task="cheetah_run", seed=1)

    results = load([tmp_path], now=NOW)

    assert len({run.series for run in results.runs}) == 2
    assert problems(results, "split") and not problems(results, "mixed")


SHORT = "base+runtime.precision=bfloat16"


def computed_short(runs: Path, seed: int, **arguments: object) -> Path:
    own = {"changes": {"runtime.precision": "bfloat16"}, "resolved": {"precision": "bfloat16"}, "variant": SHORT}
    return short_run(runs, seed=seed, **(own | arguments))


def test_how_numbers_are_computed_makes_no_other_variant(tmp_path: Path) -> None:
    computed_short(tmp_path, 0)
    computed_short(tmp_path, 1)
    write_plan(tmp_path, "smoke", "custom", [(SHORT, "cheetah_run", seed) for seed in range(3)])

    results = load([tmp_path], now=NOW)

    assert {(run.variant, run.series) for run in results.runs} == {("base", "base")}
    assert [run.name for run in results.runs] == [f"{SHORT}/cheetah_run/seed_{seed}" for seed in range(2)]
    assert set(results.frame("eval")["variant"]) == {"base"}
    assert results.seeds_expected("base", "cheetah_run") == 3
    assert [problem.where for problem in problems(results, "missing")] == [f"{SHORT}/cheetah_run/seed_2"]

    short_run(tmp_path, seed=2)

    assert {run.series for run in load([tmp_path], now=NOW).runs} == {"base · bfloat16", "base · float32"}


def test_a_seed_computed_in_two_ways_is_there_twice_and_its_series_are_named_by_them(tmp_path: Path) -> None:
    computed_short(tmp_path, 0)
    short_run(tmp_path, seed=0)
    computed_short(tmp_path, 1)

    results = load([tmp_path], now=NOW)

    assert [(run.series, run.seed) for run in results.runs] == [("base", 0), (SHORT, 0), (SHORT, 1)]
    assert {run.variant for run in results.runs} == {"base"}
    assert not problems(results, "duplicate") and not problems(results, "split")


def test_the_keys_that_make_no_other_variant_are_keys() -> None:
    runtime = {key for key in config.flatten(config.Config()) if key.startswith("runtime.")}
    assert set(EXECUTION) == runtime - set(config.NOT_IDENTITY)
    assert variant_of(f"{SHORT}+planner.candidates=500+runtime.threads=2") == "base+planner.candidates=500"
    assert variant_of("stochastic") == "stochastic"


def test_a_variant_that_is_asked_for_is_there_however_it_was_computed(tmp_path: Path) -> None:
    computed_short(tmp_path / "runs", 0)
    (tmp_path / "runs/smoke" / SHORT / "walker_walk/seed_0").mkdir(parents=True)
    (tmp_path / "runs/smoke" / SHORT / "walker_walk/seed_0/run.json").write_text("{")

    for n, name in enumerate(("base", SHORT)):
        index, unusable = make_report([tmp_path / "runs"], tmp_path / str(n), variants=[name])

        page = index.read_text().replace("<wbr>", "")
        assert f"{SHORT}/cheetah_run/seed_0" in page and len(unusable) == 1


def test_what_cannot_change_a_return_does_not_divide_a_curve(tmp_path: Path) -> None:
    short_run(tmp_path, seed=0)
    short_run(tmp_path, seed=1, changes={"schedule.open_loop_episodes": 1})

    assert {run.series for run in load([tmp_path], now=NOW).runs} == {"base"}


def test_dirty_runs_of_other_code_are_kept_apart_and_of_the_same_code_together(tmp_path: Path) -> None:
    for seed, code in enumerate(("aaa", "aaa", "bbb")):
        path = short_run(tmp_path, seed=seed, git=DIRTY)
        record = json.loads((path / "run.json").read_text())
        record["starts"][-1]["code_hash"] = code
        (path / "run.json").write_text(json.dumps(record))

    series = [run.series for run in load([tmp_path], now=NOW).runs]

    assert series[0] == series[1] != series[2]


# ---------------------------------------------------------------------------------------------------- bad input


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist; name a folder of runs" in fails([str(tmp_path / "nothing")], capsys)


def test_a_foreign_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("not runs")

    assert "holds no run directory" in fails([str(tmp_path)], capsys)


def test_an_unknown_suite_and_an_unknown_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short_run(tmp_path)
    out = ["--out", str(tmp_path / "report")]

    assert "no suite 'fig88'" in (error := fails([str(tmp_path), "--suite", "fig88", *out], capsys))
    assert "perhaps fig8" in error
    assert "variant 'bass' here: there are base; perhaps base" in fails(
        [str(tmp_path), "--variants", "bass", *out], capsys
    )
    assert not (tmp_path / "report").exists()


def test_a_report_has_nowhere_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short_run(tmp_path / "runs")
    (file := tmp_path / "report").write_text("mine")

    for out in (file, file / "inside"):
        assert f"{file} is a file" in (error := fails([str(tmp_path / "runs"), "--out", str(out)], capsys))
        assert f"cannot go to {out}; name a folder with --out" in error
    assert file.read_text() == "mine"


def with_return(path: Path, value: str) -> None:
    text = (path / "episodes.jsonl").read_text()
    (path / "episodes.jsonl").write_text(text.replace('"return": 3.0', f'"return": {value}'))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", '"high"', "true"])
def test_a_return_that_is_no_number_leaves_the_run_out_by_name(tmp_path: Path, value: str) -> None:
    short_run(tmp_path, seed=0)
    bad = short_run(tmp_path, seed=1)
    with_return(bad, value)

    results = load([tmp_path], now=NOW)

    assert [run.seed for run in results.runs] == [0]
    (problem,) = problems(results, "unusable")
    assert f"{bad / 'episodes.jsonl'} row 6 has return" in problem.text and "is not a finite number" in problem.text
    assert results.seeds_expected("base", "cheetah_run") == 2


@dataclass
class Damaged:
    runs: Path
    out: Path
    code: int
    error: str
    page: str


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    """The report of four smoke runs: one good, one with a NaN return, one of another format, one with a binary file."""
    runs, out, error = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report"), io.StringIO()
    short_run(runs, seed=0)
    with_return(short_run(runs, seed=1), "NaN")
    other = short_run(runs, seed=2)
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**record, "format": 2}))
    (short_run(runs, seed=3) / "config.toml").write_bytes(b"\xff")
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(runs / "smoke"), "--out", str(out)])
    return Damaged(runs, out, code, error.getvalue(), (out / "index.html").read_text())


def test_a_nan_return_is_an_error_on_the_terminal_and_a_gap_on_the_page(damaged: Damaged) -> None:
    file = str(damaged.runs / "smoke/base/cheetah_run/seed_1/episodes.jsonl")

    assert damaged.code == 2 and "Traceback" not in damaged.error
    assert f"{file} row 6" in damaged.error and file in damaged.page
    assert "<strong>1 of 4</strong> runs are done" in damaged.page


def test_mixed_formats_are_an_error_that_names_the_run(damaged: Damaged) -> None:
    sentence = "has format 2; this report reads format 1"

    assert sentence in damaged.error and sentence in damaged.page
    assert str(damaged.runs / "smoke/base/cheetah_run/seed_2/run.json") in damaged.error


def test_a_file_that_is_no_text_is_named_and_the_rest_is_drawn(damaged: Damaged) -> None:
    file = str(damaged.runs / "smoke/base/cheetah_run/seed_3/config.toml")

    assert f"{file} cannot be read: 'utf-8' codec can't decode byte 0xff" in damaged.error and file in damaged.page
    assert (damaged.out / "figures" / "fig4.svg").exists()


def test_smoke_figures_say_that_the_preset_cannot_learn_and_get_no_verdict(damaged: Damaged) -> None:
    assert "cannot learn" in (damaged.out / "figures" / "fig4.svg").read_text()
    assert not (damaged.out / "tables" / "fig4-verdict.csv").exists()
    assert "another scale" in damaged.page


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run_json, config = short_run(tmp_path, seed=0), short_run(tmp_path, seed=1)
    (run_json / "run.json").write_text('{"format": 1, ')
    (config / "config.toml").write_text("seed = = 1")
    plan = write_plan(tmp_path, "smoke", "fig4", [])
    plan.write_text("[]")

    results = load([tmp_path], now=NOW)

    texts = " ".join(problem.text for problem in problems(results, "unusable"))
    assert all(str(path) in texts for path in (run_json / "run.json", config / "config.toml", plan))
    with pytest.raises(BadInput, match="no run can be used"):
        make_report([tmp_path], tmp_path / "report", now=NOW)


def test_a_row_without_a_column_is_named(tmp_path: Path) -> None:
    path = short_run(tmp_path)
    rows = [json.loads(line) for line in (path / "episodes.jsonl").read_text().splitlines()]
    del rows[2]["updates"]
    (path / "episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))

    (problem,) = problems(load([tmp_path], now=NOW), "unusable")

    assert "row 3 lacks updates" in problem.text


@pytest.mark.slow
def test_a_figure_that_was_asked_for_and_has_no_runs_says_so(tmp_path: Path) -> None:
    short_run(tmp_path, preset="quick", until=30)

    index, _ = make_report([tmp_path], tmp_path / "report", suite="fig8")

    text = index.read_text()
    assert "No run of <code>drnn</code>, <code>drnn_overshooting</code>, <code>overshooting</code> is here" in text
    assert "launch.py --suite fig8" in text


def test_a_json_file_of_another_project_is_not_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"hello": 1}')

    with pytest.raises(BadInput, match="it is not a run directory of this suite"):
        make_report([tmp_path], tmp_path / "report")


def test_runs_from_before_a_setting_existed_are_drawn_with_those_that_have_it(tmp_path: Path) -> None:
    assert LATER == config.LATER
    old, new = short_run(tmp_path, seed=0), short_run(tmp_path, seed=1)
    for key in LATER:
        name = key.split(".")[1]
        text = "".join(line for line in (old / "config.toml").read_text().splitlines(True) if not line.startswith(name))
        (old / "config.toml").write_text(text)
        assert name in (new / "config.toml").read_text()

    results = load([tmp_path], now=NOW)

    assert len({run.series for run in results.runs}) == 1 and not problems(results, "split")
