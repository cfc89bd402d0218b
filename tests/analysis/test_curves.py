"""Curves, verdicts and Table 1 equal a direct computation from the rows that were written."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from synthetic_runs import Returns, make_run, returns_of, write_plan

from analysis import published, style
from analysis.content import Table, Tabs
from analysis.curves import TOLD_APART, against_paper, beside_random, final_scores, learning_curves, verdict_counts
from analysis.figures import Figure, learning_curve_figure, x_limit
from analysis.report import main, make_report
from analysis.runs import Results, load
from analysis.scores import curve_section, glance, random_episodes, table1_section
from planet.config import Config
from planet.tasks import TASKS


def returns_on(task: str) -> Returns:
    """Return the usual curve; on cheetah first far below the paper's, in the end far above."""

    def returns(episode: int, seed: int) -> list[float]:
        factor = (
            0.05 if task == "cheetah_run" and episode < 300 else 1.4 if task == "cheetah_run" and episode > 800 else 1
        )
        return [factor * value for value in returns_of("base", task)(episode, seed)]

    return returns


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base on two tasks with 5 seeds, one of them missing on cheetah and one unfinished on walker."""
    runs = tmp_path_factory.mktemp("runs")
    for task in ("cheetah_run", "walker_walk"):
        for seed in range(5):
            if (task, seed) == ("cheetah_run", 4):
                continue
            until = 500 if (task, seed) == ("walker_walk", 2) else None
            make_run(
                runs, task=task, seed=seed, until=until, state="stopped" if until else "done", train_rows=False,
                returns=returns_on(task),
            )  # fmt: skip
    write_plan(runs, "paper", "dmc6", [("base", t, s) for t in ("cheetah_run", "walker_walk") for s in range(5)])
    return runs


@pytest.fixture(scope="module")
def report(two_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index, unusable = make_report([two_tasks / "paper"], tmp_path_factory.mktemp("report"))
    assert unusable == []
    return index.parent


def seeds_at(task: str, episode: int) -> list[int]:
    if task == "cheetah_run":
        return [0, 1, 2, 3]
    return [0, 1, 3, 4] if episode > 500 else [0, 1, 2, 3, 4]


def test_every_number_of_the_curve_csv_is_numpys(report: Path) -> None:
    curve = pd.read_csv(report / "figures" / "fig4.csv")

    assert len(curve) == 2 * 20
    for row in curve.to_dict("records"):
        returns = returns_on(row["task"])
        values = [v for seed in seeds_at(row["task"], row["episode"]) for v in returns(row["episode"], seed)]
        np.testing.assert_allclose(
            [row["median"], row["p5"], row["p95"], row["mean"], row["std"]],
            [*np.percentile(values, [50, 5, 95]), np.mean(values), np.std(values)],
            rtol=1e-8,
        )
        assert (row["seeds"], row["episodes"]) == (len(values) // 10, len(values))
        assert row["env_steps"] == 1000 * row["episode"]
        assert row["updates"] == max(0, row["episode"] - 5) * 100


def test_points_lie_in_the_bin_that_contains_them_and_the_verdict_follows_the_band(report: Path) -> None:
    curve = pd.read_csv(report / "figures" / "fig4.csv", keep_default_na=False)
    paper = pd.read_csv(published.REFERENCE / "fig4_model_designs.csv")
    paper = paper[paper["variant"] == "PlaNet (RSSM)"]

    for row in curve.to_dict("records"):
        started = paper[(paper["task"] == row["task"]) & (paper["episodes"] <= row["episode"] + 0.05)]  # rounded to 0.1
        mine = started.iloc[-1]
        assert row["paper_median"] == mine["median_return"]
        low, high = mine["p5"], mine["p95"]
        expected = "below" if row["median"] < low else "above" if row["median"] > high else "inside"
        assert row["verdict"] == expected
    assert set(curve["verdict"]) == {"inside", "below", "above"}


def test_the_last_point_is_held_beside_the_random_episodes_of_its_task() -> None:
    """All ten above all five: 1 of 15 over 5 = 3003 orders; a constant return beside itself: no difference."""
    counts = pd.DataFrame({"series": "base", "task": ["a", "b", "c"], "last_episode": 25})
    evals = pd.DataFrame(
        [("base", task, episode, 10.0 + k * (task == "a")) for task in "abc" for episode in (5, 25) for k in range(10)]
        + [("other", "a", 25, 0.0)],
        columns=["series", "task", "episode", "return"],
    )
    evals.loc[evals["episode"] == 5, "return"] = -1.0
    random = pd.DataFrame({"task": ["a"] * 5 + ["b"] * 5, "return": [0.0, 1.0, 2.0, 3.0, 4.0, *[10.0] * 5]})

    found = beside_random(counts, evals, random).set_index("task")

    assert found["random_median"].tolist()[:2] == [2.0, 10.0] and found["random_episodes"].tolist() == [5, 5, 0]
    np.testing.assert_allclose(found.loc["a", "random_p"], 1 / 3003)
    assert found.loc["b", "random_p"] > TOLD_APART and np.isnan(found.loc["c", "random_p"])


@pytest.mark.parametrize(("random", "number", "said"), [(0.0, "1 of 1", False), (500.0, "0 of 1", True)])
def test_inside_the_band_does_not_count_where_acting_at_random_is_there_too(
    tmp_path: Path, random: float, number: str, said: bool
) -> None:
    run = make_run(tmp_path, task="cup_catch", seed=0, until=125, state="stopped", train_rows=False,
                   returns=lambda episode, seed: [400.0 + k for k in range(10)])  # fmt: skip
    row = json.loads(run.episodes_jsonl.read_text().splitlines()[0])
    seeds = [row | {"kind": "seed", "episode": k + 1, "env_seed": k, "return": random + k} for k in range(5)]
    run.episodes_jsonl.write_text("".join(f"{json.dumps(r)}\n" for r in seeds) + run.episodes_jsonl.read_text())

    facts = {text: found for found, text in glance(load([tmp_path]))}

    (text,) = [text for text in facts if "lies inside the paper's band" in text]
    assert facts[text] == number and ("1 more inside, but not told from random" in text) is said


def test_random_episodes_that_variants_of_one_seed_share_count_once(tmp_path: Path) -> None:
    for variant, seed in (("base", 0), ("base", 1), ("stochastic", 0)):
        run = make_run(tmp_path, variant=variant, seed=seed, until=31, state="stopped", train_rows=False)
        row = json.loads(run.episodes_jsonl.read_text().splitlines()[0]) | {"kind": "seed"}
        rows = [row | {"episode": k + 1, "env_seed": 10 * seed + k, "return": 10.0 * seed + k} for k in range(5)]
        run.episodes_jsonl.write_text("".join(f"{json.dumps(r)}\n" for r in rows) + run.episodes_jsonl.read_text())

    random = random_episodes(load([tmp_path]))

    assert sorted(random["return"]) == [0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 11.0, 12.0, 13.0, 14.0]


def test_a_run_within_its_last_evaluation_has_no_final_score(tmp_path: Path) -> None:
    for seed, (state, returns) in enumerate((("running", [900.0, 904.0]), ("done", [700.0] * 10))):
        make_run(tmp_path, variant="true_simulator", seed=seed, state=state, changes={"schedule.eval_episodes": 10},
                 returns=lambda episode, seed, returns=returns: returns)  # fmt: skip
    results = load([tmp_path])

    table = table1_section(results).blocks[0]
    assert isinstance(table, Table)

    assert final_scores(results.frame("eval"))["seed"].tolist() == [1]
    assert "700 (1/2)" in table.shown["Cheetah run"].tolist()


def test_table_1_names_the_lengths_of_the_runs_that_are_in_it(tmp_path: Path) -> None:
    make_run(tmp_path, train_rows=False, changes={"schedule.train_episodes": 300, "schedule.seed_episodes": 3})
    make_run(tmp_path, task="walker_walk", until=100, state="stopped", train_rows=False,
             changes={"schedule.seed_episodes": 3})  # fmt: skip

    table = table1_section(load([tmp_path])).blocks[0]
    assert isinstance(table, Table)

    (row,) = [row for row in table.shown.to_dict("records") if row["source"] == "this suite"]
    assert row["method"] == "PlaNet" and row["episodes"] == "300"


def test_a_curves_caption_counts_its_own_seeds_and_episodes(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path, seed=seed, until=100 + 50 * seed, state="stopped", train_rows=False)

    section = curve_section(load([tmp_path]), published.FIGURES["fig4"])

    assert section is not None
    tabs = section.blocks[0]
    assert isinstance(tabs, Tabs)
    for _, figure in tabs.tabs:
        assert isinstance(figure, Figure) and "(at a point: seeds 1–2, episodes 10–20)" in figure.caption


def test_the_papers_single_agent_stands_at_the_steps_of_all_six_tasks(tmp_path: Path) -> None:
    make_run(tmp_path, variant="multitask", task="dmc6", until=100, state="stopped", train_rows=False)
    curves = learning_curves(load([tmp_path]).frame("eval"))
    edges = {}
    for x in ("episode", "env_steps", "updates"):
        figure = learning_curve_figure(
            "fig7", "", "", ours=curves, figure=published.FIGURES["fig7"], tasks=["cheetah_run"], x=x, planned=1005
        )
        _, axes = plt.subplots()
        figure.panels[0].draw(axes)
        edges[x] = next(max(np.asarray(line.get_xdata())) for line in axes.lines if line.get_color() == style.PAPER)
        assert axes.get_xlim()[1] >= edges[x] > axes.get_xlim()[1] / 2
        plt.close()

    assert edges["env_steps"] == pytest.approx(6 * 1000 * edges["episode"])
    assert edges["updates"] == pytest.approx(6 * 100 * (edges["episode"] - 5))


def test_the_figure_over_hours_has_no_key_of_what_the_paper_has_not(tmp_path: Path) -> None:
    make_run(tmp_path, until=100, state="stopped", train_rows=False)
    curves = learning_curves(load([tmp_path]).frame("eval"))

    for x, there in (("episode", True), ("hours", False)):
        figure = learning_curve_figure(
            "fig4", "", "", ours=curves, figure=published.FIGURES["fig4"], tasks=["cheetah_run"], x=x, planned=1005
        )
        assert any(key.label.startswith("paper, ") for key in figure.keys) is there


def test_table_1_says_how_many_seeds_finished_and_leaves_out_the_others(report: Path) -> None:
    table = pd.read_csv(report / "tables" / "table1.csv")
    shown = (report / "tables" / "table1.md").read_text()

    for task, seeds in (("cheetah_run", [0, 1, 2, 3]), ("walker_walk", [0, 1, 3, 4])):
        row = table[(table["series"] == "base") & (table["task"] == task)].iloc[0]
        expected = np.mean([np.mean(returns_on(task)(1005, seed)) for seed in seeds])
        np.testing.assert_allclose(row["mean"], expected, rtol=1e-8)
        assert (row["seeds"], row["seeds_expected"]) == (4, 5)
        assert f"{expected:.0f} (4/5)" in shown
    paper = table[(table["series"] == "paper") & (table["method"] == "PlaNet")].set_index("task")["mean"]
    assert paper.to_dict() == {
        "cartpole_swingup": 821, "reacher_easy": 832, "cheetah_run": 662, "finger_spin": 700, "cup_catch": 930,
        "walker_walk": 951,
    }  # fmt: skip


def test_table_1_has_other_planners_in_the_simulator_but_not_figure_12s(tmp_path: Path) -> None:
    for key, value in (("planner.refit_clipped", False), ("planner.horizon", 6)):
        said = str(value).lower()
        make_run(tmp_path, variant=f"true_simulator+{key}={said}", task="cup_catch", changes={key: value},
                 returns=lambda episode, seed: [990.0])  # fmt: skip
    table = table1_section(load([tmp_path])).blocks[0]
    assert isinstance(table, Table)

    ours = [row for row in table.data.to_dict("records") if row["series"] != "paper" and row["mean"] == row["mean"]]
    assert [(row["series"], row["task"], row["mean"]) for row in ours if row["mean"] is not None] == [
        ("true_simulator+planner.refit_clipped=false", "cup_catch", 990.0)
    ]
    assert "CEM + true simulator + refit_clipped false" in set(table.shown["method"])


def test_missing_and_stopped_runs_come_first_on_the_page(report: Path) -> None:
    page = (report / "index.html").read_text()

    sections = [part.split('"')[0] for part in page.split('<section id="')[1:]]
    assert sections[0] == "gaps"
    assert "base/cheetah_run/seed_4" in page
    assert "base/walker_walk/seed_2" in page
    assert "4/5" in page


def test_a_design_that_the_paper_has_not_run_gets_no_verdict(tmp_path: Path) -> None:
    for variant in ("deterministic", "stochastic"):
        make_run(tmp_path, variant=variant, until=100, state="running", train_rows=False)

    curves = against_paper(learning_curves(load([tmp_path]).frame("eval")), published.FIGURES["fig4"])

    verdicts = {variant: set(own["verdict"]) for variant, own in curves.groupby("variant")}
    assert verdicts["deterministic"] == {""} and verdicts["stochastic"] <= {"inside", "above", "below"}


def test_the_axis_of_updates_reaches_as_far_as_the_runs(tmp_path: Path) -> None:
    make_run(tmp_path, preset="quick", train_rows=False, metrics_every=10)
    curves = learning_curves(load([tmp_path]).frame("eval"))

    assert max(curves["updates"].tolist()) == 48_000  # 320 episodes of 150; the paper's 100 would be 32,000
    assert x_limit(curves, "updates", 325) > 48_000


def test_the_first_number_says_so_far_until_every_run_is_done(two_tasks: Path, tmp_path: Path) -> None:
    def headline(runs: Path) -> str:
        return " ".join(text for _, text in glance(load([runs])))

    assert "last median so far lies" in headline(two_tasks)  # one run is missing, one stopped
    for seed in range(2):
        make_run(tmp_path, seed=seed, train_rows=False)
    assert "last median lies" in headline(tmp_path)
    assert "over 1 task (2 runs)" in headline(tmp_path)


def test_a_task_of_ones_own_does_not_stop_the_first_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, train_rows=False)
    results = load([tmp_path])
    frame = results.frame("eval").assign(task="my_task")
    monkeypatch.setattr(Results, "frame", lambda self, kind: frame)

    assert glance(results)


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_points_are_those_of_the_schedule(task: str, tmp_path: Path) -> None:
    make_run(tmp_path, task=task, until=0, state="running")
    run = load([tmp_path]).runs[0]

    assert run.eval_at() == Config().schedule.eval_at()


@pytest.mark.slow
def test_default_output_prints_the_path_of_the_page(
    two_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main([str(two_tasks / "paper")]) == 0

    assert capsys.readouterr().out.strip() == "report/index.html"
    assert (tmp_path / "report" / "index.html").is_file()
    for suffix in ("png", "svg", "pdf", "csv"):
        assert (tmp_path / "report" / "figures" / f"fig4.{suffix}").stat().st_size > 1000


def test_a_report_of_a_plan_without_runs_lists_what_is_missing(tmp_path: Path) -> None:
    write_plan(tmp_path, "smoke", "dmc6", [("base", "cheetah_run", 0)])

    index, _ = make_report([tmp_path / "smoke"], tmp_path / "report")

    assert "<strong>0 of 1</strong> runs are done" in index.read_text()


def test_a_point_is_the_median_of_its_seeds_in_time_and_rows_go_by_series_then_task() -> None:
    points = [("ours", "walker_walk"), ("ours", "cheetah_run"), ("other", "cheetah_run")]
    evals = pd.DataFrame(
        [
            (series, "base", task, 84, seed, 100.0, 1000 * passed, 10 * passed, float(passed))
            for series, task in points for seed, passed in enumerate((1, 2, 9))
        ],
        columns=["series", "variant", "task", "episode", "seed", "return", "env_steps", "updates", "hours"],
    )  # fmt: skip

    curves = learning_curves(evals)

    assert curves[["env_steps", "updates", "hours"]].to_numpy().tolist() == [[2000, 20, 2]] * 3
    assert list(zip(curves["series"], curves["task"], strict=True)) == [points[1], points[0], points[2]]


def test_a_median_on_the_edge_of_the_band_is_inside_and_the_last_points_verdict_counts() -> None:
    paper = published.curves("fig4")
    paper = paper[(paper["label"] == "PlaNet (RSSM)") & (paper["task"] == "walker_walk")].set_index("bin")
    edges = [paper.loc[0, "p5"], paper.loc[1, "p95"], paper.loc[2, "p5"] - 0.01, paper.loc[3, "p95"] + 0.01]
    curves = pd.DataFrame(
        {
            "series": "base", "variant": "base", "task": "walker_walk", "episode": [31, 84, 137, 189],
            "median": np.array(edges, float), "seeds": 5, "episodes": 50,
        }
    )  # fmt: skip

    told = against_paper(curves, published.FIGURES["fig4"])
    [row] = verdict_counts(told).to_dict("records")

    assert told["verdict"].tolist() == ["inside", "inside", "below", "above"]
    assert (row["inside"], row["below"], row["above"]) == (2, 1, 1)
    assert (row["last_episode"], row["verdict"], row["median"]) == (189, "above", edges[-1])


def test_shorter_episodes_get_no_verdict_no_headline_and_are_no_random_episodes(tmp_path: Path) -> None:
    run = make_run(tmp_path, until=40, state="stopped", changes={"env.episode_env_steps": 500})
    assert '"seed"' in run.episodes_jsonl.read_text()
    results = load([tmp_path])

    section = curve_section(results, published.FIGURES["fig4"])

    assert section is not None
    tabs = section.blocks[0]
    assert isinstance(tabs, Tabs)
    for _, figure in tabs.tabs:
        assert isinstance(figure, Figure) and set(figure.data["verdict"]) == {""}
    assert not any("paper" in text for _, text in glance(results))
    assert random_episodes(results).empty


def test_runs_in_bfloat16_are_held_against_the_paper_as_any(tmp_path: Path) -> None:
    name = "base+runtime.precision=bfloat16"
    for seed in range(2):
        make_run(tmp_path, variant=name, seed=seed, train_rows=False, changes={"runtime.precision": "bfloat16"},
                 resolved={"precision": "bfloat16"}, returns=lambda episode, seed: [600.0] * 10)  # fmt: skip
    write_plan(
        tmp_path, "paper", "custom", [(name, task, k) for task in ("cheetah_run", "cup_catch") for k in range(2)]
    )
    results = load([tmp_path])

    section, (table, *_) = curve_section(results, published.FIGURES["fig4"]), table1_section(results).blocks

    assert section is not None
    tabs = section.blocks[0]
    assert isinstance(tabs, Tabs)
    for _, figure in tabs.tabs:
        assert isinstance(figure, Figure) and figure.title == "PlaNet and the paper"
        assert set(figure.data["verdict"]) <= {"inside", "above", "below"}
        assert len(figure.panels) == 2  # cup is planned
    assert isinstance(table, Table)
    (row,) = [row for row in table.shown.to_dict("records") if row["source"] == "this suite"]
    assert (row["Cheetah run"], row["Cup catch"]) == ("600 (2/2)", "– (0/2)")
    assert any("last median so far lies" in text for _, text in glance(results))


def test_what_is_likely_by_acting_at_random_does_not_count_as_inside(tmp_path: Path) -> None:
    """400 to 409 beside 402 to 406: p is 0.4."""
    run = make_run(tmp_path, task="cup_catch", until=125, state="stopped", train_rows=False,
                   returns=lambda episode, seed: [400.0 + k for k in range(10)])  # fmt: skip
    row = json.loads(run.episodes_jsonl.read_text().splitlines()[0])
    seeds = [row | {"kind": "seed", "episode": k + 1, "env_seed": k, "return": 402.0 + k} for k in range(5)]
    run.episodes_jsonl.write_text("".join(f"{json.dumps(r)}\n" for r in seeds) + run.episodes_jsonl.read_text())

    facts = {text: found for found, text in glance(load([tmp_path]))}

    (text,) = [text for text in facts if "lies inside the paper's band" in text]
    assert facts[text] == "0 of 1" and "1 more inside, but not told from random actions" in text


def test_table_1_marks_cells_that_lack_seeds_and_no_others(tmp_path: Path) -> None:
    for task in ("cheetah_run", "walker_walk"):
        for seed in range(2):
            lacks = (task, seed) == ("walker_walk", 1)
            make_run(tmp_path, task=task, seed=seed, until=100 if lacks else None, state="stopped" if lacks else "done",
                     train_rows=False)  # fmt: skip

    table = table1_section(load([tmp_path])).blocks[0]
    assert isinstance(table, Table)

    assert [column for (_, column), name in table.classes.items() if name == "partial"] == ["Walker walk"]
