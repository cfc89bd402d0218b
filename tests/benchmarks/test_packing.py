import subprocess
import sys

import pytest

from benchmarks import packing
from benchmarks.packing import Pace, Work
from planet.presets import resolve


def some(updates=10, seconds=2.0, **changes):
    base = {"decisions": 25, "update_seconds": 0.5, "decision_seconds": 1.0, "gpu_gib": 1.5}
    return Work(**{"updates": updates, "seconds": seconds, **base, **changes})


def at(runs, updates_per_second, run_gib=0.0, card_gib=0.0):
    return Pace(
        runs=runs, updates_per_second=updates_per_second, hours_per_run=1, runs_per_day=1, update_ms=1, decision_ms=1,
        gpu_gib=1, run_gib=run_gib, card_gib=card_gib,
    )  # fmt: skip


def test_the_pace_is_that_of_all_together():
    found = packing.pace(resolve("cheetah_run"), [some(10), some(30, gpu_gib=2.0)])

    assert found.runs == 2 and found.updates_per_second == 20.0
    # 100,000 updates at 10 a second and run
    assert found.hours_per_run == pytest.approx(100_000 / 10 / 3600)
    assert found.runs_per_day == pytest.approx(2 * 24 / (100_000 / 10 / 3600))
    assert found.update_ms == pytest.approx(1000 * 1.0 / 40) and found.decision_ms == pytest.approx(1000 * 2.0 / 50)
    assert found.gpu_gib == 2.0 and found.fits


@pytest.mark.parametrize(
    ("paces", "best"),
    [
        ([at(1, 10), at(2, 18), at(4, 25), at(8, 25.5)], 4),
        ([at(1, 10), at(2, 9), at(4, 12)], 4),
        ([at(1, 10), at(2, 10.2)], 1),
        ([at(8, 20), at(1, 10)], 8),
    ],
)
def test_the_recommendation_is_the_smallest_that_no_larger_beats_clearly(paces, best):
    assert packing.recommend(paces).runs == best


@pytest.mark.parametrize(("card_gib", "best"), [(122.0, 8), (121.9, 4), (62.0, 4), (32.0, 2), (16.0, 1)])
def test_no_more_are_recommended_than_have_room_for_whole_runs(card_gib, best):
    paces = [at(k, 10.0 * k, run_gib=15.0, card_gib=card_gib) for k in (1, 2, 4, 8)]

    assert packing.recommend(paces).runs == best


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "planner.elite=1"], "no config key 'planner.elite'"),
        (["--runs", "2", "0"], "--runs must be at least 1, got 0"),
        (["--seconds", "0"], "--seconds must be above 0, got 0"),
        (["--mps"], "--mps: there is no nvidia-cuda-mps-control here"),
    ],
)
def test_a_wrong_setting_is_one_line(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert packing.main(words) == 2
    assert capsys.readouterr().err.startswith(f"packing: {message}")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nope/x.json", "nothing can be made in {0}/nope: No such file or directory"),
        ("file/x.json", "nothing can be made in {0}/file: Not a directory"),
        ("folder", "a folder has this name"),
    ],
)
def test_a_table_that_cannot_be_written_is_told_before_anything_is_measured(capsys, monkeypatch, tmp_path, name, why):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(packing, "measure", lambda *_, **__: pytest.fail("measured"))

    assert packing.main(["--preset", "smoke", "--json", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err == (
        f"packing: --json must be a file that can be written, got {tmp_path / name} ({why.format(tmp_path)}); "
        "choose another\n"
    )


@pytest.mark.parametrize("vanished", [False, True])
def test_the_recommendation_is_told_whatever_becomes_of_its_file(capsys, monkeypatch, tmp_path, vanished):
    file = tmp_path / "folder/paces.json"
    file.parent.mkdir()

    def measure(config, runs, *, seconds, environment):
        if vanished and file.parent.exists():
            file.parent.rmdir()
        return at(runs, 10.0 * runs, card_gib=9.0)

    monkeypatch.setattr(packing, "measure", measure)

    assert packing.main(["--preset", "smoke", "--runs", "1", "2", "--json", str(file)]) == vanished
    out, err = capsys.readouterr()
    assert "recommended: --" in out and " 2 (2.00 times the pace of 1)" in out
    assert file.exists() != vanished and ("cannot write" in err) == vanished


@pytest.mark.slow
def test_a_small_measurement_from_end_to_end(tmp_path):
    file = tmp_path / "paces.json"
    words = ["--preset", "smoke", "--runs", "1", "2", "--seconds", "1", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.packing", *words], capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "recommended: --" in done.stdout and file.read_text().count("hours_per_run") == 2


@pytest.mark.slow
def test_a_process_that_fails_ends_the_measurement_with_its_words(tmp_path):
    words = ["--preset", "smoke", "--runs", "1", "--seconds", "1", "--set", "runtime.device=cuda:7"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.packing", *words], capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 1 and "failed:" in done.stdout and "cuda:7" in done.stdout
