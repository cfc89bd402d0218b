"""Diagnostics show the metrics as they were written, thinned by means, and mark restarts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import make_run, metrics_row

from analysis.content import Fold, Table
from analysis.diagnostics import diagnostics_section, phase_seconds, run_table, terms_figure, terms_of
from analysis.figures import Figure
from analysis.provenance_table import provenance_section
from analysis.runs import load
from analysis.sparkline import shares, sparkline, thin

COMMON = {"episode": 0, "env_steps": 0, "agent_steps": 0, "updates": 0, "wall_seconds": 0.0}


def test_terms_are_the_written_ones_thinned_to_means_of_neighbours(tmp_path: Path) -> None:
    make_run(tmp_path, seed=3, until=245, state="running", train_rows=False)
    results = load([tmp_path])

    figure = terms_figure("base", results.runs, results)

    written = [metrics_row(episode, 3, COMMON) for episode in range(6, 246)]  # 240 rows in 120 pairs
    data = figure.data[figure.data["term"] == "image"]
    assert len(data) == 120
    pairs = np.array([row["image"] for row in written]).reshape(120, 2)
    np.testing.assert_allclose(data["value"], pairs.mean(axis=1))
    np.testing.assert_allclose(data["episode"], np.arange(6.5, 245, 2))


def test_terms_that_are_zero_throughout_are_not_drawn(tmp_path: Path) -> None:
    make_run(tmp_path, until=50, state="running", train_rows=False)

    terms = terms_of(load([tmp_path]).runs)

    assert terms == ["loss", "image", "reward", "kl", "kl_raw", "grad_norm"]  # no overshooting, no global KL


def test_phase_times_are_means_per_collected_episode(tmp_path: Path) -> None:
    make_run(tmp_path, until=105, state="running", train_rows=False)

    seconds = phase_seconds(load([tmp_path]).runs[0])

    rows = [metrics_row(episode, 0, COMMON) for episode in range(6, 106)]
    assert seconds == pytest.approx(
        {"train": np.mean([r["train_seconds"] for r in rows]), "plan": 9.0, "env": 2.5, "eval": 0.02}
    )


def test_restarts_are_read_from_the_log_and_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path, until=100, state="running", train_rows=False)
    record = json.loads(run.run_json.read_text())
    record["starts"].append({**record["starts"][0], "changed": ["code"]})
    run.run_json.write_text(json.dumps(record))
    run.log.write_text("started\n2026-11-23 09:40:05 resumed at episode 63, update 5800\n")
    results = load([tmp_path])

    table = run_table(results.runs, results.now)

    assert table.data["restarts"].item() == 1 and table.data["resumed_at"].item() == "63"
    assert 'class="mark"' in table.html[(0, "returns")]
    assert any(p.kind == "code" and "2 starts, between which code changed" in p.text for p in results.problems)


def test_the_section_holds_base_first_and_folds_the_others(tmp_path: Path) -> None:
    for variant in ("stochastic", "base"):
        make_run(tmp_path, variant=variant, until=60, state="running", train_rows=False)

    section = diagnostics_section(load([tmp_path]))

    assert section is not None
    assert isinstance(section.blocks[0], Figure) and section.blocks[0].name == "diagnostics-base"
    assert isinstance(section.blocks[1], Fold)
    assert isinstance(section.blocks[-1], Table) and len(section.blocks[-1].data) == 2


def test_a_run_without_any_row_does_not_break_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path, until=0, state="running", train_rows=False)
    run.status_json.unlink()
    results = load([tmp_path])

    table = run_table(results.runs, results.now)

    assert table.data["state"].item() == "new"
    assert diagnostics_section(results) is None


def test_a_run_in_the_true_simulator_has_as_many_episodes_as_are_scored(tmp_path: Path) -> None:
    make_run(tmp_path, variant="true_simulator", task="cup_catch", changes={"schedule.eval_episodes": 10})
    results = load([tmp_path])

    table = run_table(results.runs, results.now)

    assert table.data["episodes_total"].item() == len(results.runs[0].evals()) == 10
    assert table.shown["state"].item() == "done 10/10"


def test_origins_are_counted_and_mixed_commits_are_said(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, until=20, state="running")
    make_run(tmp_path, seed=1, until=20, state="running", git={"commit": "beef000", "dirty": False})

    section = provenance_section(load([tmp_path]))

    assert section is not None
    table, *warnings = section.blocks
    assert isinstance(table, Table) and table.data["code"].tolist() == ["c0ffee0", "beef000"]
    assert "2 clean commits are drawn together" in str(warnings)
    assert "within a task never over presets" in table.caption  # over tasks some are pooled


def test_pictures_of_several_renderers_are_said(tmp_path: Path) -> None:
    for seed, renderer in enumerate(("egl, llvmpipe", "egl, llvmpipe", "")):
        run = make_run(tmp_path, seed=seed, until=20, state="running")
        if renderer:
            run.record_renderer(renderer)
    section = provenance_section(load([tmp_path]))
    assert section is not None
    table, *warnings = section.blocks
    assert isinstance(table, Table) and table.data["pictures"].tolist() == ["exact, egl, llvmpipe", "exact"]
    assert not warnings  # of one run it is not known

    make_run(tmp_path, seed=3, until=20, state="running").record_renderer("egl, NVIDIA H200")
    section = provenance_section(load([tmp_path]))
    assert section is not None
    assert "pictures 2 renderers drew are drawn together, and theirs differ: egl, NVIDIA H200; egl, llvmpipe" in str(
        section.blocks
    )


def test_thin_keeps_the_mean() -> None:
    x, y = np.arange(10.0), np.arange(10.0) ** 2

    at, value = thin(x, y, 3)

    np.testing.assert_allclose(at, [1.0, 4.0, 7.5])
    np.testing.assert_allclose(value, [np.mean([0, 1, 4]), np.mean([9, 16, 25]), np.mean([36, 49, 64, 81])])


def test_sparklines_stay_in_their_box_and_skip_what_is_no_number() -> None:
    drawn = sparkline([0, 50, 100], [0.0, float("nan"), 2000.0], x_max=100, low=0, high=1000, marks=[50])

    points = drawn.split('points="')[1].split('"')[0].split()
    assert points == ["0.0,18.0", "96.0,2.0"]  # above the top is drawn at the top
    assert 'd="M48.0 15V20"' in drawn
    assert sparkline([], [], x_max=1) == ""
    assert shares({"a": 0.0}, {"a": "red"}, "") == ""
