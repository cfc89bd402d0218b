"""The numbers over all tasks, of Figure 6 and of Figure 12 equal a direct computation from the rows written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from scipy import stats
from synthetic_runs import make_run, returns_of

from analysis import aggregate, overall, published, style
from analysis.content import Table
from analysis.figures import Figure
from analysis.multitask import average_over_tasks, average_panel, multitask_section
from analysis.overall import learning_speed, overall_section
from analysis.planner_sweep import sweep, sweep_section
from analysis.runs import TASKS, Results, load

SIMULATOR_KEYS = ("planner.candidates", "planner.elite_fraction", "planner.horizon", "planner.iterations")
QUALITY = (150.0, 320.0, 480.0, 700.0, 950.0)
"""Returns of five runs of one agent for all tasks, the same on each."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two variants on two tasks with 4 seeds, and a fifth that has not finished."""
    runs = tmp_path_factory.mktemp("runs")
    for variant, task, seed in itertools.product(("base", "stochastic"), ("cheetah_run", "walker_walk"), range(5)):
        until = 400 if seed == 4 else None
        state = "running" if until else "done"
        make_run(
            runs, variant=variant, task=task, seed=seed, until=until, state=state, train_rows=False, metrics_every=500
        )
    return load([runs])


def finals(variant: str, task: str) -> list[float]:
    return [float(np.mean(returns_of(variant, task)(1005, seed))) / 1000 for seed in range(4)]


def table(results: Results, name: str) -> Table:
    section = overall_section(results)
    assert section is not None
    return next(block for block in section.blocks if isinstance(block, Table) and block.name == name)


def figure(results: Results, name: str) -> Figure:
    section = overall_section(results)
    assert section is not None
    return next(block for block in section.blocks if isinstance(block, Figure) and block.name == name)


def test_aggregates_use_finished_runs_only(results: Results) -> None:
    data = table(results, "aggregates").data.set_index(["series", "statistic"])

    for variant in ("base", "stochastic"):
        scores = np.array([finals(variant, "cheetah_run"), finals(variant, "walker_walk")])
        expected = {
            "IQM": stats.trim_mean(scores.ravel(), 0.25), "mean": scores.mean(),
            "median": np.median(scores.mean(axis=1)), "optimality gap": np.maximum(1 - scores, 0).mean(),
        }  # fmt: skip
        for name, value in expected.items():
            row = data.loc[(variant, name)]
            assert row["value"] == pytest.approx(value)
            assert row["low"] <= row["value"] <= row["high"]
            assert (row["tasks"], row["runs"]) == (2, 8)


def test_probability_of_improvement_is_the_mean_over_tasks(results: Results) -> None:
    data = table(results, "probability-of-improvement").data

    chances = [
        stats.mannwhitneyu(finals("base", task), finals("stochastic", task)).statistic / 16
        for task in ("cheetah_run", "walker_walk")
    ]
    assert data["probability"].item() == pytest.approx(np.mean(chances))


def test_area_and_thresholds_follow_each_runs_means(results: Results) -> None:
    evals = results.frame("eval")
    row = learning_speed(evals).set_index(["series", "task"]).loc[("base", "cheetah_run")]

    points = results.runs[0].eval_at()
    areas, reached = [], []
    level = 0.9 * 662  # Table 1
    for seed in range(5):
        x = np.array([p for p in points if seed < 4 or p <= 400], float)
        y = np.array([np.mean(returns_of("base", "cheetah_run")(int(p), seed)) for p in x])
        if seed < 4:
            areas.append(np.trapezoid(y, x) / (x[-1] - x[0]))
        reached += x[y >= level][:1].tolist()
    assert row["area"] == pytest.approx(np.median(areas))
    assert row["90 % of PlaNet's: level"] == pytest.approx(level)
    assert row["90 % of PlaNet's: seeds"] == len(reached)
    assert row["90 % of PlaNet's: episodes"] == pytest.approx(np.median(reached))
    assert (row["until"], row["area_seeds"], row["seeds"]) == (1005, 4, 5)


def test_areas_of_unfinished_runs_stop_where_the_last_of_them_stands(tmp_path: Path) -> None:
    for seed, until in ((0, 300), (1, 200)):
        make_run(tmp_path, seed=seed, until=until, state="running", train_rows=False, metrics_every=500)

    (row,) = learning_speed(load([tmp_path]).frame("eval")).to_dict("records")

    x = np.array([31, 84, 137, 189], float)
    curves = [[np.mean(returns_of("base", "cheetah_run")(int(p), seed)) for p in x] for seed in range(2)]
    assert row["until"] == 189
    assert row["area"] == pytest.approx(np.median([np.trapezoid(y, x) / 158 for y in curves]))


def test_nothing_over_all_tasks_without_a_finished_run(tmp_path: Path) -> None:
    make_run(tmp_path, until=300, state="running", train_rows=False, metrics_every=500)

    assert overall_section(load([tmp_path])) is None


@pytest.fixture(scope="module")
def one_agent(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Five runs of one agent for six tasks, equally good on all of them, and separate agents."""
    runs = tmp_path_factory.mktemp("one_agent")
    for seed in range(5):
        make_run(
            runs, variant="multitask", task="dmc6", seed=seed, train_rows=False, metrics_every=500,
            returns=lambda episode, seed: [QUALITY[seed]] * 10,
        )  # fmt: skip
        for task in TASKS:
            make_run(
                runs, task=task, seed=seed, train_rows=False, metrics_every=500,
                returns=lambda episode, seed: [955.0 + seed] * 10,
            )  # fmt: skip
    return load([runs])


def test_scores_of_one_run_are_one_unit(one_agent: Results) -> None:
    rows = table(one_agent, "aggregates").data.set_index(["series", "statistic"]).loc["multitask"]

    scores = np.array(QUALITY) / 1000
    whole = aggregate.bootstrap([scores], aggregate.mean, np.random.default_rng(0))
    for name in ("mean", "median"):
        row = rows.loc[name]
        assert (row["value"], row["low"], row["high"]) == pytest.approx((whole.value, whole.low, whole.high))
    drawn = scores[np.random.default_rng(0).integers(5, size=(aggregate.RESAMPLES, 5))]
    middle = stats.trim_mean(np.tile(drawn, 6), 0.25, axis=1)
    assert (rows.loc["IQM", "low"], rows.loc["IQM", "high"]) == pytest.approx(np.quantile(middle, [0.025, 0.975]))
    assert set(rows["runs"]) == {5} and set(rows["tasks"]) == {6}


def test_a_comparison_with_one_agent_is_of_its_runs(one_agent: Results) -> None:
    comparison = table(one_agent, "probability-of-improvement")

    [row] = comparison.data.to_dict("records")
    assert (row["runs_base"], row["runs_series"]) == (30, 5) and comparison.shown["runs"].item() == "30 and 5"
    assert (row["probability"], row["low"]) == (1.0, pytest.approx(0.025**0.2))  # five pairs of runs, not thirty


def test_a_profile_of_one_agent_is_as_uncertain_as_its_runs(one_agent: Results) -> None:
    profile = figure(one_agent, "performance-profiles").data

    own = profile[profile["series"] == "multitask"]
    value, low, high = aggregate.performance_profile(
        [np.array(QUALITY) / 1000], own["score"].to_numpy(float), np.random.default_rng(0)
    )
    np.testing.assert_allclose(own[["share", "low", "high"]].to_numpy(float).T, [value, low, high])


def test_a_run_of_several_tasks_has_finished_when_all_of_them_have(tmp_path: Path) -> None:
    _, run = (
        make_run(tmp_path, variant="multitask", task="dmc6", seed=seed, train_rows=False, metrics_every=500)
        for seed in range(2)
    )
    rows = [json.loads(line) for line in run.episodes_jsonl.read_text().splitlines()]
    there = [row for row in rows if (row["episode"], row["task"]) != (1005, "walker_walk")]
    run.episodes_jsonl.write_text("".join(json.dumps(row) + "\n" for row in there))

    data = table(load([tmp_path]), "aggregates").data

    assert set(data["runs"]) == {1} and set(data["tasks"]) == {6}


def test_a_variant_of_which_nothing_has_finished_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path, task="finger_spin", train_rows=False, metrics_every=500)
    run = make_run(tmp_path, variant="stochastic", task="finger_spin", train_rows=False, metrics_every=500)
    rows = [json.loads(line) for line in run.episodes_jsonl.read_text().splitlines()]
    there = [row for row in rows if row["episode"] < 500]
    assert there
    run.episodes_jsonl.write_text("".join(json.dumps(row) + "\n" for row in there))

    assert set(table(load([tmp_path]), "aggregates").data["series"]) == {"base"}


def test_runs_made_otherwise_than_planets_are_left_out_and_named(tmp_path: Path) -> None:
    for seed, task in itertools.product(range(2), ("cheetah_run", "finger_spin", "walker_walk")):
        make_run(tmp_path, task=task, seed=seed, train_rows=False, metrics_every=500)
        make_run(
            tmp_path, variant="stochastic", task=task, seed=seed, train_rows=False, metrics_every=500,
            resolved={"precision": "bfloat16"} if task == "walker_walk" else None,
            changes={"schedule.train_episodes": 500} if task == "finger_spin" else None,
        )  # fmt: skip
    results = load([tmp_path])

    comparison, scores = table(results, "probability-of-improvement"), table(results, "aggregates")

    ours, theirs = (finals(variant, "cheetah_run")[:2] for variant in ("base", "stochastic"))
    chance = stats.mannwhitneyu(ours, theirs).statistic / 4
    assert (comparison.data["tasks"].item(), comparison.data["probability"].item()) == (1, pytest.approx(chance))
    assert dict(zip(scores.data["series"], scores.data["tasks"], strict=True)) == {"base": 3, "stochastic": 1}
    profile = figure(results, "performance-profiles").data
    assert set(profile.loc[profile["series"] == "stochastic", "tasks"]) == {"cheetah_run"}
    for each in (comparison, scores):
        assert "on Finger spin (schedule.train_episodes); " in each.caption
        assert each.caption.endswith("on Walker walk (precision).")


def test_profiles_are_compared_on_the_tasks_that_both_have(tmp_path: Path) -> None:
    levels = {"cheetah_run": 600.0, "finger_spin": 100.0}
    for variant, task in (("base", "cheetah_run"), ("base", "finger_spin"), ("stochastic", "cheetah_run")):
        for seed in range(2):
            make_run(
                tmp_path, variant=variant, task=task, seed=seed, train_rows=False, metrics_every=500,
                returns=lambda episode, seed, level=levels[task]: [level] * 10,
            )  # fmt: skip

    drawn = figure(load([tmp_path]), "performance-profiles")

    at = drawn.data[drawn.data["score"] == 0.5].set_index(["tasks", "series"])["share"]
    assert at.to_dict() == {
        ("cheetah_run finger_spin", "base"): 0.5, ("cheetah_run", "base"): 1.0, ("cheetah_run", "stochastic"): 1.0
    }  # fmt: skip
    assert [panel.title.split(" (")[-1] for panel in drawn.panels] == ["Cheetah run, Finger spin)", "Cheetah run)"]


def test_a_series_without_a_task_of_planets_is_drawn_alone() -> None:
    def series(name: str, *tasks: str) -> dict[str, overall.Stratum]:
        return {task: overall.Stratum(np.zeros(2), ((name, task, 0), (name, task, 1))) for task in tasks}

    strata = {
        "base": series("base", "cheetah_run", "cup_catch"),
        "elu": series("elu", "cheetah_run", "cup_catch"),
        "drnn": series("drnn", "walker_walk"),
        "stochastic": series("stochastic", "cup_catch", "walker_walk"),
    }

    assert overall.same_tasks(strata) == {
        ("cheetah_run", "cup_catch"): ["base", "elu"],
        ("walker_walk",): ["drnn"],
        ("cup_catch",): ["base", "stochastic"],
    }


def test_the_caption_says_which_of_the_papers_two_numbers_is_the_level(results: Results) -> None:
    speed = table(results, "learning-speed")

    assert "A3C on reacher easy 95.6, where its Table 1 has 285." in speed.caption
    assert overall.levels("reacher_easy")["A3C"] == 95.6


# ----------------------------------------------------------------------------------------------------- Figure 6


def test_figure_6_averages_only_points_that_all_six_tasks_have(tmp_path: Path) -> None:
    for task in TASKS:
        until = 200 if task == "walker_walk" else 400
        make_run(tmp_path, task=task, until=until, state="running", train_rows=False, metrics_every=500)
    make_run(
        tmp_path, variant="multitask", task="dmc6", until=100, state="running", train_rows=False, metrics_every=500
    )
    results = load([tmp_path])

    frame = average_over_tasks(results.frame("eval"))

    base, multitask = frame[frame["series"] == "base"], frame[frame["series"] == "multitask"]
    assert base["episode"].tolist() == [31, 84, 137, 189]
    assert multitask["episode"].tolist() == [31, 84]
    values = [v for task in TASKS for v in returns_of("base", task)(137, 0)]
    row = base[base["episode"] == 137].iloc[0]
    np.testing.assert_allclose(
        [row["mean"], row["low"], row["high"]],
        [np.mean(values), np.mean(values) - np.std(values), np.mean(values) + np.std(values)],
    )
    assert (row["tasks"], row["runs"], row["episodes"]) == (6, 6, 60)
    assert multitask_section(results) is not None


def test_figure_6_counts_a_run_of_six_tasks_once_and_shows_where_runs_are_missing(tmp_path: Path) -> None:
    for seed, until in enumerate((100, 100, 40)):
        make_run(
            tmp_path, variant="multitask", task="dmc6", seed=seed, until=until, state="running", train_rows=False,
            metrics_every=500,
        )  # fmt: skip

    frame = average_over_tasks(load([tmp_path]).frame("eval"))
    axes = Axes(Plot(), (0, 0, 1, 1))
    average_panel(axes, frame=frame, x_max=200)

    assert dict(zip(frame["episode"], frame["runs"], strict=True)) == {31: 3, 84: 2}
    points = {
        str(line.get_markerfacecolor()): np.asarray(line.get_xdata()).tolist()
        for line in axes.lines
        if line.get_marker() == "o"
    }
    assert points == {style.colour("multitask"): [31], "white": [84]}


def test_figure_6_weighs_tasks_alike_however_many_seeds_they_have(tmp_path: Path) -> None:
    for task in TASKS:
        best = task == "cup_catch"
        for seed in range(5 if best else 1):
            make_run(
                tmp_path, task=task, seed=seed, until=40, state="running", train_rows=False, metrics_every=500,
                returns=lambda episode, seed, best=best: [900.0 if best else 100.0] * 10,
            )  # fmt: skip

    frame = average_over_tasks(load([tmp_path]).frame("eval"))

    [row] = frame.to_dict("records")
    assert row["mean"] == pytest.approx((900 + 5 * 100) / 6)
    assert row["std"] == pytest.approx(np.std([900, 100, 100, 100, 100, 100]))
    assert row["runs"] == 10


# ---------------------------------------------------------------------------------------------------- Figure 12


def test_figure_12_reads_cells_from_the_configuration_and_takes_nothing_else(tmp_path: Path) -> None:
    cells = {(1000, 0.1, 12, 10): 666.0, (300, 0.05, 6, 3): 400.0}
    for (candidates, fraction, horizon, iterations), level in cells.items():
        values = (candidates, fraction, horizon, iterations)
        changes = dict(zip(SIMULATOR_KEYS, values, strict=True)) | {"schedule.eval_episodes": 2}
        name = "true_simulator+" + "+".join(f"{key}={value}" for key, value in changes.items())
        for seed in range(2):
            make_run(
                tmp_path, variant=name, seed=seed, changes=changes,
                returns=lambda episode, seed, level=level: [level + 10 * seed, level - 10],
            )  # fmt: skip
    make_run(  # the same grid point, but another start of the search: no cell of the paper's
        tmp_path, variant="true_simulator+planner.init_std=0.5", changes={"planner.init_std": 0.5},
        returns=lambda episode, seed: [0.0] * 10,
    )  # fmt: skip
    make_run(tmp_path, variant="true_simulator", task="walker_walk", returns=lambda episode, seed: [1.0] * 10)
    results = load([tmp_path])

    frame = sweep(results)

    assert len(frame) == 320
    there = frame[frame["episodes"] > 0].set_index(["proposals", "elite_fraction", "horizon", "iterations"])
    assert set(there.index) == set(cells)
    for cell, level in cells.items():
        row = there.loc[cell]
        values = [level, level - 10, level + 10, level - 10]
        np.testing.assert_allclose([row["ours"], row["std"]], [np.mean(values), np.std(values)])
        assert (row["episodes"], row["seeds"]) == (4, 2)
    assert there.loc[(1000, 0.1, 12, 10), "paper"] == 666
    section = sweep_section(results)
    assert section is not None
    (marginals,) = [block for block in section.blocks if isinstance(block, Table)]
    horizon = marginals.data[marginals.data["setting"] == "horizon"].set_index("value")
    assert horizon.loc[12, "ours"] == pytest.approx(664 - 1.5, abs=3) and horizon.loc[12, "cells"] == 1
    assert horizon.loc[8, "ours"] is None or np.isnan(horizon.loc[8, "ours"])
    np.testing.assert_allclose(horizon["paper_all_cells"].to_numpy(float), [387, 600, 538, 502, 483], atol=0.6)


def test_a_cell_of_figure_12_is_of_one_series_and_the_rest_is_named(tmp_path: Path) -> None:
    def cell(horizon: int, level: float, *, seed: int = 0, dirty: bool = False, episodes: int = 0) -> None:
        changes: dict[str, int] = {"planner.horizon": horizon}
        changes |= {"schedule.eval_episodes": episodes} if episodes else {}
        make_run(
            tmp_path, variant="true_simulator+" + "+".join(f"{key}={value}" for key, value in changes.items()),
            seed=seed, changes=changes, git={"commit": "c0ffee0123456789", "dirty": dirty},
            returns=lambda episode, seed: [level] * (episodes or 10),
        )  # fmt: skip

    cell(6, 100.0)
    cell(6, 700.0, seed=1, dirty=True)  # nobody knows which of the two is meant
    cell(8, 200.0)
    cell(8, 900.0, episodes=2)  # the same setting under another name
    cell(10, 300.0)
    cell(10, 320.0, seed=1)
    results = load([tmp_path])

    frame = sweep(results)
    section = sweep_section(results)

    there = frame[frame["episodes"] > 0].set_index("horizon")
    assert there["ours"].to_dict() == {8: 200.0, 10: 310.0} and there["seeds"].to_dict() == {8: 1, 10: 2}
    assert section is not None
    figure = section.blocks[0]
    assert isinstance(figure, Figure)
    assert "Left out: 3 runs" in figure.caption and "horizon 8 + eval_episodes 2, seed 0" in figure.caption
    assert "one standard deviation of the cell's episodes" in figure.caption
    assert all("changes" not in commit for commit in figure.commits)


# ------------------------------------------------------------------------------------------------ paper's numbers


def test_the_papers_bins_are_left_edges(tmp_path: Path) -> None:
    curve = published.curves("fig4")

    assert sorted(curve["bin"].unique()) == list(range(20))
    assert [published.bin_of(e) for e in (4, 5, 57, 58, 1004, 1005, 1057, 1058)] == [None, 0, 0, 1, 18, 19, 19, None]


def test_effects_of_the_paper_are_differences_of_the_last_five_medians() -> None:
    assert published.paper_effect("stochastic", "cup_catch", 1005) == pytest.approx(924 - 952, abs=1)
    assert published.paper_effect("drnn_overshooting", "cup_catch", 1005) == pytest.approx(920, abs=1)
    assert published.paper_effect("stochastic_elu", "cartpole_swingup", 800) == pytest.approx(738 - 513, abs=1)
    assert published.paper_effect("kl_scale_3", "cheetah_run", 1005) is None
    assert published.paper_effect("base", "cheetah_run", 1005) is None
    assert published.paper_effect("deterministic", "cheetah_run", 1005) is None  # the paper's trains no prior
    assert published.paper_effect("deterministic_official", "cheetah_run", 1005) == pytest.approx(-627, abs=1)


def test_a_young_runs_effect_stands_beside_the_papers_at_its_age() -> None:
    # swingup's bin from 162.9 episodes: SSM 272.0, PlaNet 652.4
    assert published.paper_effect("stochastic", "cartpole_swingup", 205) == pytest.approx(272.0 - 652.4)
    assert published.paper_effect("stochastic", "cartpole_swingup", 4) is None
    at_end = published.paper_effect("stochastic", "cartpole_swingup", 1005)
    left = sorted(published.curves("fig4")["left"].unique())[-5]
    assert published.paper_effect("stochastic", "cartpole_swingup", int(left) + 1) == at_end
    assert published.paper_effect("stochastic", "cartpole_swingup", int(left) - 1) != at_end


def test_no_panel_of_profiles_has_two_lines_of_one_look() -> None:
    few = {name: name for name in ("base", "stochastic", "deterministic")}
    assert overall.told_apart(few) == [few]
    names = (
        "base",
        "stochastic",
        "multitask",
        "deterministic",
        "elu",
        "drnn",
        "random_collection",
    )  # three pairs alike
    many = {name: name for name in names}

    groups = overall.told_apart(many)

    assert all("base" in group and len(group) <= 4 for group in groups)
    assert {name for group in groups for name in group} == set(many)
    for group in groups:
        assert len({style.colour(variant) for variant in group.values()}) == len(group)


def test_scores_are_shares_of_what_an_episode_can_earn(tmp_path: Path) -> None:
    """Of 80 environment steps, at most 80."""
    make_run(tmp_path, preset="smoke", train_rows=False, metrics_every=500, returns=lambda episode, seed: [20.0, 40.0])

    strata = overall.finished(load([tmp_path]).frame("eval"))

    assert strata["base"]["cheetah_run"].scores.tolist() == [30 / 80]


def test_planners_in_the_true_simulator_are_not_among_the_agents_that_learn(tmp_path: Path) -> None:
    make_run(tmp_path, train_rows=False, metrics_every=500)
    make_run(tmp_path, variant="true_simulator", returns=lambda episode, seed: [656.0])
    results = load([tmp_path])

    assert set(table(results, "aggregates").data["series"]) == {"base"}
    assert set(table(results, "learning-speed").data["series"]) == {"base"}
