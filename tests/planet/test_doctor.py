from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planet import doctor, gl
from planet.doctor import Check, Drawn

ROOT = Path(__file__).parents[2]


def only(checks: list[Check]) -> Check:
    [check] = checks
    return check


@pytest.fixture
def has_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "check_backend", lambda: "egl")
    monkeypatch.setattr(doctor, "has_nvidia_device", lambda: False)


def drawn(**by_backend: Drawn) -> Any:
    return lambda backend: by_backend[backend]


def test_installed_packages_are_listed_and_missing_ones_named() -> None:
    found = only(doctor.packages(["numpy>=2.0", "rich>=14", "pytest; extra == 'dev'"]))
    assert found.state == "ok"
    assert f"numpy {importlib.metadata.version('numpy')}" in found.text
    assert "pytest" not in found.text

    missing = only(doctor.packages(["numpy>=2.0", "no-such-package<3", "another.missing==1"]))
    assert missing == Check(
        "packages", "problem", "missing: no-such-package, another.missing; pip install -e . -c constraints.txt"
    )


def test_the_projects_own_requirements_are_read() -> None:
    found = only(doctor.packages())
    assert found.state == "ok"
    assert "dm-control" in found.text or "dm_control" in found.text


def test_a_pair_that_does_not_fit_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0" if name == "mujoco" else "1.0.50")
    found = only(doctor.simulator())
    assert found.state == "problem"
    assert "does not work with mujoco 4.0.0" in found.text


@pytest.mark.usefixtures("has_gl")
def test_every_back_end_is_drawn_with_and_timed() -> None:
    checks = doctor.pictures(drawn(egl=Drawn("egl, llvmpipe", 12.34), osmesa=Drawn("osmesa, llvmpipe", 15.0)))

    assert [(check.name, check.state) for check in checks] == [("egl (chosen)", "ok"), ("osmesa", "ok")]
    assert checks[0].text == "egl, llvmpipe; 12.3 ms per decision and picture (cheetah run)"


@pytest.mark.usefixtures("has_gl")
def test_a_back_end_that_fails_is_a_problem_only_if_it_is_the_chosen_one() -> None:
    checks = doctor.pictures(drawn(egl=Drawn(error="no display"), osmesa=Drawn(error="no library")))

    assert [(check.name, check.state, check.text) for check in checks] == [
        ("egl (chosen)", "problem", "no display"),
        ("osmesa", "note", "no library"),
    ]


@pytest.mark.usefixtures("has_gl")
def test_software_beside_an_unused_gpu_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_nvidia_device", lambda: True)
    checks = doctor.pictures(drawn(egl=Drawn("egl, llvmpipe", 12.0), osmesa=Drawn(error="no library")))

    assert checks[1].state == "note"
    assert "drawn in software though there is an NVIDIA device" in checks[1].text


def test_no_gl_at_all_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "load_library", lambda name, *files: None)
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    found = only(doctor.pictures())

    assert found.state == "problem"
    assert found.text.endswith(gl.APT_LINE)


def test_drawing_reports_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_DRAW", "raise RuntimeError('no such thing')")
    assert doctor.draw("egl") == Drawn(error="RuntimeError: no such thing")
    monkeypatch.setattr(doctor, "_DRAW", "import os; os._exit(7)")
    assert doctor.draw("egl") == Drawn(error="the process ended with code 7")
    monkeypatch.setattr(doctor, "_DRAW", """print('{"renderer": "egl, x", "milliseconds": 1, "blank": true}')""")
    assert doctor.draw("egl") == Drawn(error="egl, x draws nothing but one colour")


def test_an_unwritable_runs_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = only(doctor.runs_folder(tmp_path / "file" / "runs"))
    assert found.state == "problem"
    assert f"cannot write to {tmp_path / 'file'}" in found.text

    assert only(doctor.runs_folder(tmp_path / "not" / "yet" / "there")).state in ("ok", "note")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]  # looking leaves nothing behind


def test_too_little_memory_for_the_paper_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from planet import replay

    monkeypatch.setattr(replay, "available_memory", lambda: 3 * 2**30)
    found = only(doctor.memory())
    assert (found.state, found.text) == ("note", "3.0 GiB available; a paper-size run takes up to 10 GiB")
    monkeypatch.setattr(replay, "available_memory", lambda: 30 * 2**30)
    assert only(doctor.memory()).state == "ok"


def script(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_slurm_is_absent_silent_or_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no sbatch here" in only(doctor.slurm()).text

    script(tmp_path, "sbatch", "echo slurm-wlm 22.05.8")
    script(tmp_path, "sinfo", "exit 1")
    silent = only(doctor.slurm())
    assert (silent.state, silent.text) == ("note", "slurm-wlm 22.05.8, but no cluster answers: use --executor local")

    script(tmp_path, "sinfo", "echo 'gpu*'; echo long")
    there = only(doctor.slurm())
    assert (there.state, there.text) == ("ok", "slurm-wlm 22.05.8, partitions gpu*, long")


def test_the_exit_code_says_whether_something_must_be_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "pictures", lambda: [Check("egl", "ok", "draws")])
    assert doctor.main(["--runs", str(tmp_path)]) == 0
    assert "ready: " in capsys.readouterr().out

    monkeypatch.setattr(doctor, "pictures", lambda: [Check("egl", "problem", "[no] display")])
    assert doctor.main(["--runs", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "problem  egl          [no] display\n" in printed
    assert printed.endswith("to mend: egl\n")


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the capture for a terminal
    doctor.show([Check("egl", "problem", "[no] display")])

    printed = capsys.readouterr().out
    assert "PlaNet on this machine" in printed
    assert "[no] display" in printed  # not taken for rich's markup


def test_it_explains_itself_where_nothing_is_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "planet.doctor", "--runs", str(tmp_path)],  # -S: without site-packages
        cwd=ROOT, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr == ""
    assert "the project itself is not installed: pip install -e . -c constraints.txt" in done.stdout
    assert "No module named 'numpy'" in done.stdout
    assert "torch does not start (No module named 'torch')" in done.stdout
    assert done.stdout.splitlines()[-1] == "to mend: packages, simulator, torch, memory"


@pytest.mark.slow
def test_this_machine_is_ready(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "planet.doctor", "--runs", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert "(chosen)" in done.stdout
    assert "ms per decision" in done.stdout
