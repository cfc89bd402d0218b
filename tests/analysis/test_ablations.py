"""Effects are paired differences by seed; verdicts follow from the interval and the paper's number alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from synthetic_runs import make_run, returns_of

from analysis import aggregate, published
from analysis.ablation_tables import (
    Effect,
    ablation_section,
    claims_table,
    effect_figure,
    effect_frame,
    effect_table,
    effects,
    judge,
    over_tasks,
    signed,
    unlike,
)
from analysis.aggregate import Interval
from analysis.runs import Results, load


def levels(level: float, step: float = 1.0):
    return lambda episode, seed: [level + step * seed - 5.0, level + step * seed + 5.0]


def run(runs: Path, variant: str, seed: int, level: float, **options: object) -> None:
    make_run(runs, variant=variant, seed=seed, returns=levels(level), train_rows=False, metrics_every=500, **options)  # type: ignore[arg-type]


def test_effects_are_differences_of_the_same_seed_at_the_end(tmp_path: Path) -> None:
    for seed in range(4):
        run(tmp_path, "base", seed, 650.0)
    for seed, level in ((0, 300.0), (1, 320.0), (3, 340.0), (7, 0.0)):
        run(tmp_path, "stochastic", seed, level)

    (effect,), apart = effects(load([tmp_path]))

    assert effect.seeds == (0, 1, 3)  # base has no seed 7, stochastic no seed 2
    assert effect.differences == (-350.0, -330.0, -310.0)
    assert effect.interval.value == pytest.approx(-330.0)
    assert -350.0 <= effect.interval.low < effect.interval.high <= -310.0
    assert effect.final and effect.episode == 1005 and apart == []
    paper = pd.read_csv(published.REFERENCE / "fig4_model_designs.csv")
    paper = paper[paper["task"] == "cheetah_run"]
    last_five = {name: own["median_return"].tail(5).mean() for name, own in paper.groupby("variant")}
    assert effect.paper == pytest.approx(last_five["Stochastic (SSM)"] - last_five["PlaNet (RSSM)"])
    assert effect.verdict == "agrees"


def test_variants_about_another_variant_are_compared_with_that(tmp_path: Path) -> None:
    for seed in range(3):
        run(tmp_path, "base", seed, 900.0)
        run(tmp_path, "drnn", seed, 100.0)
        run(tmp_path, "drnn_overshooting", seed, 200.0)

    found, _ = effects(load([tmp_path]))

    by_variant = {effect.variant: effect for effect in found}
    assert by_variant["drnn"].against == "base" and by_variant["drnn"].interval.value == pytest.approx(-800.0)
    overshooting = by_variant["drnn_overshooting"]
    assert overshooting.against == "drnn" and overshooting.interval.value == pytest.approx(100.0)
    assert overshooting.paper == pytest.approx(
        published.final_level("fig8", "DRNN + Overshooting", "cheetah_run")
        - published.final_level("fig8", "DRNN", "cheetah_run")  # type: ignore[operator]
    )


def test_pairs_made_otherwise_are_not_compared_and_that_is_said(tmp_path: Path) -> None:
    run(tmp_path, "base", 0, 650.0)
    run(tmp_path, "base", 1, 650.0)
    run(tmp_path, "stochastic", 0, 300.0, resolved={"precision": "bfloat16"})
    run(tmp_path, "stochastic", 1, 300.0, changes={"planner.candidates": 500})

    results = load([tmp_path])
    found, apart = effects(results)

    assert found == []
    assert {run: text.split(": ")[1] for run, text in apart} == {
        "stochastic/cheetah_run/seed_0": "precision differ",
        "stochastic/cheetah_run/seed_1": "planner.candidates differ",
    }
    section = ablation_section(results)
    assert section is not None and len(section.blocks) == 1


def test_pairs_are_of_runs_computed_alike(tmp_path: Path) -> None:
    short = {"changes": {"runtime.precision": "bfloat16"}, "resolved": {"precision": "bfloat16"}}
    for seed in range(2):
        run(tmp_path, "base+runtime.precision=bfloat16", seed, 650.0, **short)
        run(tmp_path, "stochastic+runtime.precision=bfloat16", seed, 300.0, **short)

    (effect,), apart = effects(load([tmp_path]))

    assert effect.variant == "stochastic" and effect.against == "base" and apart == []
    assert effect.differences == (-350.0, -350.0) and effect.expected == 2 and effect.paper is not None

    for seed in range(2):  # a partner that was computed otherwise stands beside the one that was not
        run(tmp_path, "base", seed, 900.0)

    (again,), apart = effects(load([tmp_path]))

    assert again.differences == (-350.0, -350.0) and apart == []


def test_an_effect_so_far_says_where_and_of_whom(tmp_path: Path) -> None:
    for seed in range(4):
        run(tmp_path, "base", seed, 650.0)
        run(tmp_path, "stochastic", seed, 300.0, until=500 if seed < 3 else 100, state="running")

    (effect,), _ = effects(load([tmp_path]))

    assert not effect.final and effect.episode == 452
    assert effect.seeds == (0, 1, 2) and effect.expected == 4
    assert "so far" in effect_frame_text(effect)


def test_the_first_pair_that_is_evaluated_is_an_effect(tmp_path: Path) -> None:
    """A launcher makes all run directories at once; most of a sweep's runs have no evaluation yet."""
    for seed in range(5):
        run(tmp_path, "base", seed, 650.0)
        run(tmp_path, "stochastic", seed, 300.0, until=100 if seed == 3 else 5, state="running")

    (effect,), _ = effects(load([tmp_path]))

    assert (effect.seeds, effect.episode, effect.expected) == ((3,), 84, 5)


def test_pairs_without_a_common_point_still_have_the_furthest(tmp_path: Path) -> None:
    for seed, until in enumerate((40, 100, 150)):
        run(tmp_path, "base", seed, 650.0)
        run(tmp_path, "stochastic", seed, 300.0, until=until, state="running")
    for seed, points in ((0, [31]), (1, [84]), (2, [137])):  # evaluations that are lost
        path = tmp_path / f"paper/stochastic/cheetah_run/seed_{seed}/episodes.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["episode"] in points))

    (effect,), _ = effects(load([tmp_path]))

    assert (effect.seeds, effect.episode) == ((2,), 137)


def effect_frame_text(effect: object) -> str:
    return claims_table([effect]).markdown()  # type: ignore[list-item]


def test_every_number_of_the_tables_is_numpys(tmp_path: Path) -> None:
    tasks = ("cartpole_swingup", "walker_walk")
    for variant in ("base", "random_collection"):
        for task in tasks:
            for seed in range(5):
                make_run(tmp_path, variant=variant, task=task, seed=seed, train_rows=False, metrics_every=500)

    found, _ = effects(load([tmp_path]))
    by_task, claims = effect_frame(found), claims_table(found).data

    differences = {
        task: [
            np.mean(returns_of("random_collection", task)(1005, seed)) - np.mean(returns_of("base", task)(1005, seed))
            for seed in range(5)
        ]
        for task in tasks
    }
    pooled = {
        (variant, task): np.median([returns_of(variant, task)(1005, seed) for seed in range(5)])
        for variant in ("base", "random_collection")
        for task in tasks
    }
    medians = {task: pooled["random_collection", task] - pooled["base", task] for task in tasks}
    for row in by_task.to_dict("records"):
        np.testing.assert_allclose(row["of_medians"], medians[row["task"]])
        assert row["of_medians_low"] <= row["of_medians"] <= row["of_medians_high"]
        np.testing.assert_allclose(row["effect"], np.mean(differences[row["task"]]))
        np.testing.assert_allclose([float(d) for d in row["differences"].split()], differences[row["task"]])
        assert row["pairs"] == row["pairs_expected"] == 5
    assert claims["effect"].item() == pytest.approx(np.mean([np.mean(d) for d in differences.values()]))
    assert claims["low"].item() <= claims["effect"].item() <= claims["high"].item()
    assert claims["of_medians"].item() == pytest.approx(np.mean(list(medians.values())))


def test_the_verdict_is_by_medians_as_the_papers_number_is(tmp_path: Path) -> None:
    """Reacher's episodes are near 0 or near 1000: there random shooting has PlaNet's mean and a lower median."""
    paper = published.paper_effect("random_shooting", "reacher_easy", 1005)
    assert paper is not None and paper < -50
    for seed in range(5):
        base = [20.0] * 2 + [950.0 + seed] * 8
        shooting = [700.0 + seed] * 3 + [850.0 + seed] * 7
        for variant, own in (("base", base), ("random_shooting", shooting)):
            make_run(
                tmp_path, variant=variant, task="reacher_easy", seed=seed, train_rows=False, metrics_every=500,
                returns=lambda episode, seed, own=own: own,
            )  # fmt: skip

    [effect], _ = effects(load([tmp_path]))

    assert effect.interval.low > 0  # of the means: 807 against 766
    assert effect.medians.value == pytest.approx(-100, abs=1)
    assert effect.medians.low == pytest.approx(-100, abs=4) and effect.medians.high == pytest.approx(-100, abs=4)
    assert effect.verdict == "agrees" and judge(effect.interval, 5, paper) == "disagrees"


@pytest.mark.parametrize(
    ("interval", "pairs", "paper", "verdict"),
    [
        (Interval(-300, -350, -250), 5, -300.0, "agrees"),
        (Interval(-300, -350, -250), 2, -300.0, "not enough runs"),
        (Interval(300, 250, 350), 5, -300.0, "disagrees"),
        (Interval(10, -40, 60), 5, -300.0, "disagrees"),
        (Interval(10, -40, 60), 5, 20.0, "agrees"),
        (Interval(30, 10, 50), 5, 20.0, "agrees"),
        (Interval(200, 150, 250), 5, 20.0, "disagrees"),
        (Interval(-60, -180, 70), 5, -300.0, "not enough runs"),
        (Interval(-60, float("nan"), float("nan")), 5, -300.0, "not enough runs"),
        (Interval(-60, -80, -20), 5, None, ""),
        # The paper's number lies inside: nothing contradicts it. With 0 inside too, nothing is shown either.
        (Interval(60, 5, 115), 5, 45.0, "agrees"),
        (Interval(-60, -115, -5), 5, -45.0, "agrees"),
        (Interval(-10, -95, 75), 5, -60.0, "not enough runs"),
        (Interval(-20, -80, 40), 5, -55.0, "not enough runs"),
        (Interval(60, 5, 115), 5, -45.0, "disagrees"),
    ],
)
def test_verdicts(interval: Interval, pairs: int, paper: float | None, verdict: str) -> None:
    assert judge(interval, pairs, paper) == verdict


def test_the_multitask_agent_is_paired_with_the_separate_agent_of_each_task(tmp_path: Path) -> None:
    run(tmp_path, "multitask", 0, 400.0, task="dmc6")
    for task in ("cheetah_run", "walker_walk"):
        run(tmp_path, "base", 0, 600.0, task=task)

    found, apart = effects(load([tmp_path]))

    assert apart == []
    assert {effect.task: effect.differences for effect in found} == {"cheetah_run": (-200.0,), "walker_walk": (-200.0,)}


def test_runs_of_several_tasks_are_drawn_whole(tmp_path: Path) -> None:
    """Their quality is shared by all tasks: six tasks tell no more than one."""
    tasks = ("cartpole_swingup", "cheetah_run", "walker_walk")
    quality = (200.0, 350.0, 420.0, 600.0)
    for seed, level in enumerate(quality):
        run(tmp_path, "multitask", seed, level, task="dmc6")
        for task in tasks:
            run(tmp_path, "base", seed, 600.0, task=task)

    found, _ = effects(load([tmp_path]))
    [row] = claims_table(found).data.to_dict("records")

    whole = aggregate.bootstrap([np.array(quality) - 600], aggregate.mean, np.random.default_rng(0))
    assert (row["effect"], row["low"], row["high"]) == pytest.approx((whole.value, whole.low, whole.high))
    assert (row["tasks"], row["fewest_pairs"]) == (3, 4)


def test_runs_of_several_tasks_count_where_all_of_these_have_a_partner(tmp_path: Path) -> None:
    quality = (200.0, 350.0, 420.0)
    for seed, level in enumerate(quality):
        run(tmp_path, "multitask", seed, level, task="dmc6")
        run(tmp_path, "base", seed, 600.0, task="cheetah_run")
        if seed:
            run(tmp_path, "base", seed, 600.0, task="walker_walk")

    found, _ = effects(load([tmp_path]))
    [row] = claims_table(found).data.to_dict("records")
    apart = [
        replace(effect, seeds=(i,), differences=effect.differences[:1], episodes=effect.episodes[:1])
        for i, effect in enumerate(found)
    ]

    assert (row["effect"], row["fewest_pairs"]) == (pytest.approx(-215.0), 2)
    assert (row["low"], row["high"]) == pytest.approx((-250.0, -180.0))
    assert "no seed has a pair on all tasks" in claims_table(apart).markdown()


def test_a_question_stands_beside_both_values_of_what_was_changed(tmp_path: Path) -> None:
    """A shipped file's value is absolute: under a preset with 100 candidates, 300 are more, not fewer."""
    changes = {"planner.candidates": 100, "planner.elites": 10}
    run(tmp_path, "base", 0, 650.0, changes=changes)
    shipped = {"planner.candidates": 300, "planner.elite_fraction": 0.1}
    run(tmp_path, "candidates_300", 0, 700.0, changes={**changes, **shipped})

    found, _ = effects(load([tmp_path]))

    [effect] = found
    assert effect.changed == ("planner.candidates 100 → 300", "planner.elite_fraction 0.0 → 0.1")
    assert "planner.candidates 100 → 300" in claims_table(found).markdown()


@pytest.mark.parametrize(
    ("interval", "paper", "verdict"),
    [
        # What is near 0 on one side and far on the other could hide an effect.
        (Interval(50, -40, 150), -300.0, "not enough runs"),
        (Interval(-50, -150, 40), 300.0, "not enough runs"),
        (Interval(10, -90, 100), -300.0, "disagrees"),
        (Interval(10, -90, 101), -300.0, "not enough runs"),
        (Interval(40, 0, 150), 300.0, "not enough runs"),
        (Interval(-40, -150, 0), -300.0, "not enough runs"),
        # Under 50 is no difference, ours as the paper's.
        (Interval(40, 30, 49), 20.0, "agrees"),
        (Interval(60, 30, 90), 20.0, "disagrees"),
        (Interval(200, 45, 300), 45.0, "agrees"),
        (Interval(-200, -300, -45), -45.0, "agrees"),
    ],
)
def test_verdicts_at_the_edges(interval: Interval, paper: float, verdict: str) -> None:
    assert judge(interval, 5, paper) == verdict


def test_runs_whose_pictures_were_drawn_otherwise_are_not_compared(tmp_path: Path) -> None:
    run(tmp_path, "base", 0, 650.0)
    run(tmp_path, "stochastic", 0, 300.0, resolved={"picture": "fast"})

    found, apart = effects(load([tmp_path]))

    assert found == []
    assert [text.split(": ")[1] for _, text in apart] == ["pictures differ"]


def test_what_either_run_is_meant_to_change_is_no_difference(tmp_path: Path) -> None:
    """Partners have files and keys of their own; presets shorten the distance to their chunk."""
    for at, (variant, changes) in enumerate(
        [
            ("base", {}),
            ("base+planner.candidates=500", {"planner.candidates": 500}),
            ("stochastic", {"objective.overshooting_distance": 7}),
            ("drnn_overshooting", {}),
        ]
    ):
        run(tmp_path, variant, at, 650.0, changes=changes)
    base, searching, stochastic, drnn = sorted(load([tmp_path]).runs, key=lambda run: run.seed)

    assert unlike(base, searching) == unlike(searching, base) == []
    assert unlike(stochastic, base) == unlike(base, stochastic) == []
    assert unlike(drnn, base) == unlike(base, drnn) == []


def test_planners_in_the_true_simulator_have_no_effect_on_learning(tmp_path: Path) -> None:
    run(tmp_path, "base", 0, 650.0)
    run(tmp_path, "true_simulator", 0, 650.0, resolved={"precision": "bfloat16"})

    assert effects(load([tmp_path])) == ([], [])


def test_runs_of_several_tasks_made_otherwise_are_not_compared(tmp_path: Path) -> None:
    run(tmp_path, "base", 0, 600.0)
    run(tmp_path, "multitask", 0, 400.0, task="dmc6", resolved={"precision": "bfloat16"})

    found, apart = effects(load([tmp_path]))

    assert found == []
    assert apart == [("multitask/dmc6/seed_0", "not compared with base/cheetah_run/seed_0: precision differ")]


def test_no_paper_number_stands_beside_episodes_of_another_length(tmp_path: Path) -> None:
    for variant in ("base", "stochastic"):
        run(tmp_path, variant, 0, 300.0, changes={"env.episode_env_steps": 500})

    (effect,), _ = effects(load([tmp_path]))

    assert effect.paper is None and effect.verdict == ""


def test_half_of_the_pairs_and_not_fewer_say_how_far_an_effect_is(tmp_path: Path) -> None:
    for seed, until in enumerate((100, 100, 200)):
        run(tmp_path, "base", seed, 650.0)
        run(tmp_path, "stochastic", seed, 300.0, until=until, state="running")

    (effect,), _ = effects(load([tmp_path]))

    assert (effect.episode, effect.seeds) == (84, (0, 1, 2))  # one of three stands at 189


def test_over_tasks_the_verdict_is_by_the_medians_of_the_task_with_fewest_pairs() -> None:
    one, other = (np.full(2, 300.0), np.zeros(2)), (np.full(2, -100.0), np.zeros(2))

    def effect(task: str, pairs: int, paper: float | None, *, shared: bool = False) -> Effect:
        seeds = tuple(range(pairs))
        drawn = [(one, other)[(seed + (task == "walker_walk")) % 2] for seed in seeds]
        means = Interval(-80.0, -90.0, -70.0)
        return Effect("elu", "elu", "base", task, 1005, True, (-80.0,) * pairs, seeds, pairs, means, tuple(drawn),
                      Interval(0.0, 0.0, 0.0), paper, (), shared)  # fmt: skip

    few = over_tasks([effect("cheetah_run", 4, -80.0), effect("walker_walk", 2, -80.0)])
    alike = over_tasks([effect("cheetah_run", 4, -80.0, shared=True), effect("walker_walk", 4, -80.0, shared=True)])

    assert (few.fewest, few.verdict) == (2, "not enough runs")
    assert (alike.interval.value, alike.paper) == (-80.0, -80.0)
    # By the means they would agree; of each resample's medians, what one task gains the other loses.
    assert alike.medians == Interval(100.0, 100.0, 100.0) and alike.verdict == "disagrees"


def test_tables_say_so_far_for_one_task_and_mark_rows_that_lack_pairs(tmp_path: Path) -> None:
    for seed in range(2):
        for task in ("cheetah_run", "walker_walk"):
            run(tmp_path, "base", seed, 650.0, task=task)
            until = 200 if task == "walker_walk" else None
            run(tmp_path, "stochastic", seed, 300.0 + 40 * seed, task=task, until=until, state="running")
    found, _ = effects(load([tmp_path]))
    found = [replace(found[0], expected=3, medians=Interval(-335.0, -352.0, -301.0)), found[1]]

    rows = effect_table(found)

    assert "so far" in claims_table(found).shown["effect"].item()
    assert {place for place, name in rows.classes.items() if name == "partial"} == {(0, "pairs")}
    frame = effect_frame(found)
    np.testing.assert_allclose(frame[["low", "high"]], [[e.interval.low, e.interval.high] for e in found])
    np.testing.assert_allclose(
        frame[["of_medians_low", "of_medians_high"]], [[e.medians.low, e.medians.high] for e in found]
    )


def test_an_effect_that_rounds_to_nothing_has_no_minus() -> None:
    assert [signed(value) for value in (-0.4, 0.4, -0.6, 12.0)] == ["+0", "+0", "−1", "+12"]


def test_the_figure_draws_means_medians_and_the_papers_numbers_in_the_row_of_their_label() -> None:
    def effect(series: str, mean: float, median: float, paper: float | None) -> Effect:
        means, medians = Interval(mean, mean - 5, mean + 5), Interval(median, median - 9, median + 9)
        return Effect(series, series, "base", "cheetah_run", 1005, True, (mean, mean), (0, 1), 2, means, (), medians,
                      paper, (), False)  # fmt: skip

    found = [effect("elu", 20.0, 30.0, -700.0), effect("stochastic", -40.0, -60.0, None)]
    figure = effect_figure(found, Results([]))
    axes = Axes(Plot(), (0, 0, 1, 1))
    figure.panels[0].draw(axes)

    drawn = {
        (line.get_marker(), *map(float, np.concatenate([np.ravel(line.get_xdata()), np.ravel(line.get_ydata())])))
        for line in axes.lines
        if line.get_marker() in ("|", "D")
    }
    assert drawn == {("|", 30.0, 1.0), ("|", -60.0, 0.0), ("D", -700.0, 1.0)}
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == ["Stochastic (SSM)", "ELU"]
    assert axes.get_xlim()[0] < -700 and axes.get_xlim()[1] > 700
