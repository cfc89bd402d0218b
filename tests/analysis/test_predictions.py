"""Figures 10 and 11 show what predictions/ and strips/ hold, and say so where a file cannot be used."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_runs import make_run

from analysis import style
from analysis.content import Fold, Gallery, Table, Text
from analysis.figures import Figure
from analysis.predictions import ACTION_REPEAT, error_ratios, predictions_section
from analysis.render import _combined  # pyright: ignore[reportPrivateUsage]
from analysis.report import part_of
from analysis.runs import load
from planet.tasks import TASKS

NAMES = ("rootx position", "rootz velocity")


def with_predictions(
    runs: Path, *, variant: str = "base", seed: int = 0, task: str = "cheetah_run", trained: int | None = 100
) -> Path:
    """`trained`: None for the files of before, which do not say it."""
    path = make_run(
        runs, variant=variant, task=task, seed=seed, until=100, state="stopped", train_rows=False, metrics_every=500
    ).path
    rows = pd.DataFrame(
        [
            {
                "task": task, "episode": e, "distance": d, "image_error": seed + e * d, "reward_error": d / 10,
                "state_error": d / (1 + e),
            }
            for e in range(3) for d in range(1, 6)
        ]
    )  # fmt: skip
    probe = pd.DataFrame(
        [
            {"task": task, "episode": e, "distance": d, "dimension": i, "name": name, "error": seed + i + d / 10 + e}
            for e in range(3) for d in range(1, 6) for i, name in enumerate(NAMES)
        ]
    )  # fmt: skip
    (path / "predictions").mkdir()
    if trained is not None:
        rows["trained_episodes"] = probe["trained_episodes"] = trained
    rows.to_csv(path / "predictions" / "open_loop.csv", index=False)
    probe.to_csv(path / "predictions" / "probe.csv", index=False)
    picture = Image.fromarray(np.zeros((64, 128, 3), np.uint8))
    picture.save(path / "predictions" / f"strip_{task}_0.png")
    picture.save(path / "predictions" / f"open_loop_{task}_0.gif")
    (path / "strips").mkdir(exist_ok=True)
    for episode in (31, 58, 84, 100, 137, 150, 189):
        picture.save(path / "strips" / f"reconstruction_{episode:05d}.png")
    return path


def figures(runs: Path) -> dict[str, Figure]:
    section = predictions_section(load([runs]))
    assert section is not None
    return {block.name: block for block in section.blocks if isinstance(block, Figure)}


def test_errors_over_distance_are_means_over_seeds_and_episodes(tmp_path: Path) -> None:
    for seed in range(2):
        with_predictions(tmp_path, seed=seed)

    data = figures(tmp_path)["open-loop-error"].data

    assert data["distance"].tolist() == [1, 2, 3, 4, 5]
    for row in data.to_dict("records"):
        d = row["distance"]
        assert row["image_error"] == pytest.approx(np.mean([seed + e * d for seed in range(2) for e in range(3)]))
        assert row["state_error"] == pytest.approx(np.mean([d / (1 + e) for e in range(3)]))
        assert (row["seeds"], row["episodes"]) == (2, 6)


@pytest.mark.parametrize(
    ("trained", "kept", "left_out"),
    [
        ((100, 200, 200), (1, 2), ["base/cheetah_run/seed_0 (after 100 episodes)"]),
        ((200, 100, 50), (0,), ["seed_1 (after 100 episodes)", "seed_2 (after 50 episodes)"]),
        ((None, 60, 60), (1, 2), ["seed_0 (after an unknown number of episodes)"]),
        ((None, None, None), (0, 1, 2), []),
        ((7, 7, 7), (0, 1, 2), []),
    ],
)
def test_only_the_furthest_models_of_one_number_of_episodes_are_pooled(
    tmp_path: Path, trained: tuple[int | None, ...], kept: tuple[int, ...], left_out: list[str]
) -> None:
    for seed, number in enumerate(trained):
        with_predictions(tmp_path, seed=seed, trained=number)

    drawn = figures(tmp_path)

    for name, column in (("open-loop-error", "image_error"), ("state-diagnostics-base", "error")):
        figure = drawn[name]
        assert set(figure.data["seeds"]) == {len(kept)}
        said = trained[kept[0]]
        assert [None if pd.isna(n) else n for n in figure.data["trained_episodes"].unique()] == [said]
        first = figure.data[figure.data["distance"] == 1].iloc[0]
        added = 1.0 if column == "image_error" else 1.1  # what an episode (of mean 1) and the distance add to a seed
        assert first[column] == pytest.approx(np.mean(kept) + added)
        assert all(text in figure.caption for text in left_out)
        assert (f"Left out: {len(left_out)} run" in figure.caption) == bool(left_out)
        assert ("of an earlier version" in figure.caption) == (said is None)
    assert [key.label for key in drawn["open-loop-error"].keys] == [
        "PlaNet, after an unknown number of episodes" if said is None else f"PlaNet, after {said} episodes"
    ]


def test_the_action_repeats_are_the_tasks_own() -> None:
    assert {name: task.action_repeat for name, task in TASKS.items()} == ACTION_REPEAT


def test_another_action_repeat_is_not_drawn_with_the_others_and_said(tmp_path: Path) -> None:
    with_predictions(tmp_path)  # cheetah: 4
    with_predictions(tmp_path, variant="action_repeat_4")  # the same by its own file
    with_predictions(tmp_path, variant="action_repeat_8")
    with_predictions(tmp_path, variant="action_repeat_8", task="cartpole_swingup")  # its own is 8
    with_predictions(tmp_path, variant="multitask", task="dmc6")  # 0: each task's own
    section = predictions_section(load([tmp_path]))
    assert section is not None

    drawn = figures(tmp_path)["open-loop-error"].data
    texts = [block.html for block in section.blocks if isinstance(block, Text)]

    assert set(zip(drawn["variant"], drawn["task"], strict=True)) == {
        ("base", "cheetah_run"), ("action_repeat_4", "cheetah_run"), ("action_repeat_8", "cartpole_swingup"),
        ("multitask", "dmc6"),
    }  # fmt: skip
    assert [text.split(". ")[0] for text in texts] == ["Not drawn with the others: Action repeat 8 on Cheetah run"]
    assert "same for every variant that keeps the paper's action repeat" in section.lead


def test_only_other_action_repeats_make_no_shared_figure(tmp_path: Path) -> None:
    with_predictions(tmp_path, variant="action_repeat_2")
    section = predictions_section(load([tmp_path]))
    assert section is not None

    assert "open-loop-error" not in figures(tmp_path)
    assert any(isinstance(block, Text) and "Action repeat 2" in block.html for block in section.blocks)


def test_each_agent_and_task_has_a_furthest_model_of_its_own(tmp_path: Path) -> None:
    with_predictions(tmp_path, trained=200)
    with_predictions(tmp_path, task="walker_walk", trained=50)
    with_predictions(tmp_path, variant="elu", trained=10)

    figure = figures(tmp_path)["open-loop-error"]

    counts = figure.data.groupby(["variant", "task"])["trained_episodes"].unique()
    assert {key: list(value) for key, value in counts.items()} == {
        ("base", "cheetah_run"): [200], ("base", "walker_walk"): [50], ("elu", "cheetah_run"): [10],
    }  # fmt: skip
    assert "Left out" not in figure.caption
    assert {key.label for key in figure.keys} >= {"PlaNet, after 50 or 200 episodes"}


def test_a_variant_is_measured_against_its_partner_of_the_same_seed_and_age(tmp_path: Path) -> None:
    for variant, seed, trained in (("base", 1, 100), ("base", 2, 100), ("base", 3, 90), ("drnn", 2, 100)):
        with_predictions(tmp_path, variant=variant, seed=seed, trained=trained)
    for variant in ("stochastic", "drnn_overshooting"):
        for seed in (1, 2, 3):
            with_predictions(tmp_path, variant=variant, seed=seed)
    for file in tmp_path.rglob("stochastic/*/seed_1/predictions/open_loop.csv"):
        rows = pd.read_csv(file)
        pd.DataFrame(rows.assign(image_error=rows["image_error"] * 4, reward_error=0.0)).to_csv(file, index=False)

    section = predictions_section(load([tmp_path]))
    assert section is not None
    [table] = [block for block in section.blocks if isinstance(block, Table)]

    rows = table.data.set_index("series")
    assert rows.loc["stochastic", "pairs"] == 2  # seed 3's partner is another age
    assert rows.loc["stochastic", "image_error_far"] == pytest.approx(2.0)  # 4 and 1
    assert rows.loc["stochastic", "state_error_near"] == pytest.approx(1.0)
    assert rows.loc["stochastic", "reward_error_far"] == 0.0  # one pair without any error
    assert (rows.loc["drnn_overshooting", "against"], rows.loc["drnn_overshooting", "pairs"]) == ("drnn", 1)
    shown = table.shown.set_index("variant")
    assert shown.loc["Stochastic (SSM)", "image, all"] == "2.00"


def test_near_is_the_planners_horizon_and_nothing_is_said_without_a_pair() -> None:
    def errors(variant: str, factor: float, trained: int = 100) -> pd.DataFrame:
        distance = np.arange(1, 51)
        grows = np.where(distance > 12, factor, 1.0)
        return pd.DataFrame(
            {"series": variant, "variant": variant, "task": "cheetah_run", "seed": 0, "trained_episodes": trained,
             "distance": distance, "image_error": grows, "reward_error": grows, "state_error": grows}
        )  # fmt: skip

    both = error_ratios(pd.concat([errors("base", 1.0), errors("stochastic", 3.0)])).iloc[0]
    apart = error_ratios(pd.concat([errors("base", 1.0), errors("stochastic", 3.0, trained=90)])).iloc[0]

    assert both["image_error_near"] == pytest.approx(1.0)
    assert both["image_error_far"] == pytest.approx((12 + 38 * 3) / 50)
    assert apart["pairs"] == 0 and np.isnan(apart["image_error_far"])


def test_no_panel_has_two_variants_of_one_look_and_the_picture_holds_titles_and_legend(tmp_path: Path) -> None:
    variants = (
        "base",
        "stochastic",
        "elu",
        "deterministic",
        "random_collection",
        "stochastic_elu",
        "drnn_overshooting",
    )
    for variant in variants:
        with_predictions(tmp_path, variant=variant)

    figure = figures(tmp_path)["open-loop-error"]

    drawn = set()
    for panel in figure.panels:
        _, axes = plt.subplots()
        panel.draw(axes)
        looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
        assert len(set(looks)) == len(looks) > 1, panel.title
        drawn |= set(looks)
        plt.close()
    assert len(drawn) == len({style.colour(variant) for variant in variants}) < len(variants)
    assert (
        figure.panels[0].title.startswith("Cheetah run: image\nDeterministic")
        and "PlaNet beside a few" in figure.caption
    )
    with plt.rc_context(style.MATPLOTLIB):
        canvas = _combined(figure)
        legend, page = canvas.legends[0].get_window_extent(), canvas.bbox
        assert 0 <= legend.x0 < legend.x1 <= page.x1
        titles = {axes: axes.title.get_window_extent() for axes in canvas.axes}
        for axes in canvas.axes:
            label = axes.xaxis.label.get_window_extent()
            assert not any(label.overlaps(title) for title in titles.values())
            assert titles[axes].y1 <= page.y1
        plt.close(canvas)


def test_a_figures_own_report_shows_how_far_its_models_see(tmp_path: Path) -> None:
    for variant in ("base", "stochastic"):
        with_predictions(tmp_path, variant=variant)

    part = part_of(load([tmp_path]), suite="fig4", x="episode")

    assert "predictions" in [section.anchor for section in part.sections]


def test_state_diagnostics_keep_every_dimension(tmp_path: Path) -> None:
    with_predictions(tmp_path)

    data = figures(tmp_path)["state-diagnostics-base"].data.set_index(["name", "distance"])

    assert len(data) == 2 * 5
    assert data.loc[("rootz velocity", 3), "error"] == pytest.approx(1 + 0.3 + 1.0)


def test_pictures_are_named_by_what_they_are_and_at_most_five_reconstructions_are_shown(tmp_path: Path) -> None:
    with_predictions(tmp_path)
    section = predictions_section(load([tmp_path]))
    assert section is not None

    galleries = [block for block in section.blocks if isinstance(block, Gallery)]

    assert [picture.path.name for picture in galleries[0].pictures] == [
        "strip_cheetah_run_0.png", "open_loop_cheetah_run_0.gif"
    ]  # fmt: skip
    episodes = [int(picture.caption.split()[1]) for picture in galleries[1].pictures]
    assert episodes == [31, 84, 100, 137, 189]  # of seven: the first, the last and three between
    assert all(picture.alt for gallery in galleries for picture in gallery.pictures)


def test_many_variants_fold_instead_of_filling_the_page(tmp_path: Path) -> None:
    for variant in ("base", "stochastic", "drnn", "elu"):
        with_predictions(tmp_path, variant=variant)
    section = predictions_section(load([tmp_path]))
    assert section is not None

    assert any(isinstance(block, Fold) for block in section.blocks)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task,episode,distance\ncheetah_run,0,1\n", "lacks image_error, reward_error, state_error"),
        ("task,episode,distance,image_error,reward_error,state_error\ncheetah_run,0,1,,0,0\n", "no numbers"),
        (
            "task,trained_episodes,episode,distance,image_error,reward_error,state_error\ncheetah_run,,0,1,0,0,0\n",
            "no whole numbers",
        ),
        ("task,episode,distance,image_error,reward_error,state_error\n", "no rows"),
        ("", "No columns"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_out_and_said(tmp_path: Path, content: str, said: str) -> None:
    path = with_predictions(tmp_path)
    (path / "predictions" / "open_loop.csv").write_text(content)
    results = load([tmp_path]).of("paper")

    part = part_of(results, suite=None, x="episode")

    assert any(said in problem.text for problem in results.problems if problem.kind == "unusable")
    predictions = next(section for section in part.sections if section.anchor == "predictions")
    assert "open-loop-error" not in [getattr(block, "name", "") for block in predictions.blocks]


def test_nothing_without_predictions(tmp_path: Path) -> None:
    make_run(tmp_path, until=50, state="stopped", train_rows=False, metrics_every=500)

    assert predictions_section(load([tmp_path])) is None
