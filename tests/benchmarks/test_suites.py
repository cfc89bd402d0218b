"""The suites are the paper's figures, and the ones that share runs name the same cells."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import suites, variants
from benchmarks.plan import expand
from planet import presets, tasks
from planet.config import identity_hash

REFERENCE = Path(__file__).parents[2] / "analysis" / "reference"


def keys(cells: tuple[suites.Cell, ...]) -> set[tuple[str, str, str]]:
    return {(cell.task, cell.variant, str(sorted(cell.changes.items()))) for cell in cells}


@pytest.mark.parametrize("name", list(suites.SUITES))
def test_cells_resolve_and_are_distinct(name: str) -> None:
    cells = suites.load(name).cells()
    configs = [
        presets.resolve(cell.task, ablation=variants.load(cell.variant).overrides, changes=cell.changes)
        for cell in cells
    ]

    assert len(keys(cells)) == len(cells)
    if name not in ("sensitivity", "fig12"):  # there a cell may be the paper's own setting, under another name
        assert len({identity_hash(config) for config in configs}) == len(cells)


def test_figures_that_share_runs_name_the_same_cells() -> None:
    base = keys(suites.load("dmc6").cells())
    for name in ("table1", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "planner", "sensitivity", "details"):
        assert base <= keys(suites.load(name).cells()), name
    assert keys(suites.load("fig6").cells()) == keys(suites.load("fig7").cells())
    assert keys(suites.load("fig10").cells()) <= keys(suites.load("fig4").cells() + suites.load("fig8").cells())


def test_the_multitask_agent_is_one_run_for_all_tasks_under_its_own_name(tmp_path: Path) -> None:
    cells = [cell for cell in suites.load("fig7").cells() if cell.variant == "multitask"]
    plan = expand(cells, [0], preset="paper", runs=tmp_path)
    assert [run.path for run in plan.runs] == [tmp_path / "paper/multitask/dmc6/seed_0"] and not plan.same


def test_a_group_of_tasks_stands_for_its_members_but_where_a_variant_is_one_agent_for_all() -> None:
    single = suites.cells(("cup_catch", "dmc6"), ("base",))
    assert [cell.task for cell in single] == ["cup_catch", *(name for name in suites.DMC6 if name != "cup_catch")]
    assert [cell.task for cell in suites.cells(("dmc6",), ("multitask",))] == ["dmc6"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / folder / "idea.toml" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text('title = "Idea"\nquestion = "Does it help?"\n[overrides]\nplanner.warm_start = true\n')

    with pytest.raises(ValueError, match=r"a/idea.toml and .*b/idea.toml are both a variant named idea"):
        suites.cells(("cup_catch",), [str(file) for file in files])
    assert len(suites.cells(("cup_catch",), [str(files[0])] * 2)) == 2  # twice the same is no contradiction


def test_suites_that_share_cells_share_run_directories(tmp_path: Path) -> None:
    """So `--suite fig4` after `--suite fig5` finds its PlaNet runs done."""
    paths = {
        name: {run.path for run in expand(suites.load(name).cells(), [0, 1], preset="paper", runs=tmp_path).runs}
        for name in ("dmc6", "fig4", "fig5", "fig8", "fig9")
    }
    assert len(paths["dmc6"]) == 12
    assert paths["fig4"] & paths["fig5"] == paths["dmc6"] == paths["fig5"] & paths["fig8"]
    stochastic = {path for path in paths["fig4"] if "stochastic" in path.parts}
    assert stochastic and paths["fig4"] & paths["fig9"] == paths["dmc6"] | stochastic


def test_a_sweep_of_single_tasks_keeps_their_order() -> None:
    cells = suites.cells(("walker_walk", "cup_catch"), ("base", "elu"))
    assert [(c.variant, c.task) for c in cells] == [
        ("base", "walker_walk"), ("base", "cup_catch"), ("elu", "walker_walk"), ("elu", "cup_catch"),
    ]  # fmt: skip


@pytest.mark.skipif(not (REFERENCE / "fig12_planner_sweep_cheetah_true_sim.csv").exists(), reason="no reference data")
def test_fig12_is_the_papers_grid() -> None:
    with (REFERENCE / "fig12_planner_sweep_cheetah_true_sim.csv").open() as file:
        paper = {
            (float(row["elite_fraction"]), int(row["horizon"]), int(row["iterations"]), int(row["proposals"]))
            for row in csv.DictReader(file)
        }
    ours = {tuple(cell.changes[key] for key in suites.FIG12_GRID) for cell in suites.load("fig12").cells()}
    assert ours == paper and len(paper) == 320


def test_the_papers_setting_is_one_run_in_table_1_and_figure_12(tmp_path: Path) -> None:
    plans = [
        expand(suites.load(name).cells(), [0], preset="paper", runs=tmp_path, suite=name)
        for name in ("table1", "fig12")
    ]

    table1, fig12 = ({run.path for run in each.runs} for each in plans)
    assert table1 & fig12 == {tmp_path / "paper/true_simulator/cheetah_run/seed_0"}
    assert len(fig12) == 320


def test_an_unknown_suite_gets_the_nearest() -> None:
    with pytest.raises(KeyError, match="perhaps fig12"):
        suites.load("fig_12")


def test_dmc6_is_the_papers_order() -> None:
    assert list(suites.DMC6) == list(tasks.TASKS)
