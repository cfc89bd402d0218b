import subprocess

import pytest

from planet import provenance


def git(folder, *words):
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repo"
    (folder / "planet").mkdir(parents=True)
    (folder / "planet" / "a.py").write_text("one = 1\n")
    (folder / "README.md").write_text("words\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_tree_has_a_commit_and_no_patch(repository):
    assert provenance.git_state(repository) == {
        "commit": git(repository, "rev-parse", "HEAD"), "dirty": False, "patch": b""
    }  # fmt: skip


def test_the_patch_rebuilds_changed_and_new_files(repository, tmp_path):
    (repository / "planet" / "a.py").write_text("one = 2\n")
    (repository / "planet" / "new.py").write_text("three = 3\n")
    state = provenance.git_state(repository)
    git(tmp_path, "clone", "-q", str(repository), "copy")
    subprocess.run(["git", "apply"], cwd=tmp_path / "copy", input=state["patch"], check=True)

    assert state["dirty"] is True
    for name in ("a.py", "new.py"):
        assert (tmp_path / "copy" / "planet" / name).read_text() == (repository / "planet" / name).read_text()
    assert (
        git(repository, "status", "--porcelain") == "M planet/a.py\n?? planet/new.py"
    )  # the user's index is untouched


def test_what_cannot_move_a_run_does_not_make_a_commit_dirty(repository):
    (repository / "README.md").write_text("other words\n")
    (repository / "scratch.bin").write_bytes(b"0" * 100)

    assert provenance.git_state(repository)["dirty"] is False


def test_a_huge_patch_is_left_out_and_the_commit_stays_dirty(repository, monkeypatch):
    monkeypatch.setattr(provenance, "MAX_PATCH_BYTES", 10)
    (repository / "planet" / "a.py").write_text("one = 2\n")
    state = provenance.git_state(repository)

    assert state["dirty"] is True and state["patch"] is None


def test_a_package_inside_somebody_elses_repository_has_no_commit(repository):
    nothing = {"commit": None, "dirty": None, "patch": None}

    assert provenance.git_state(repository / "planet") == nothing
    assert provenance.git_state(repository.parent) == nothing


def test_the_code_hash_follows_the_sources_only(repository):
    before = provenance.code_hash(repository / "planet")
    (repository / "planet" / "notes.txt").write_text("no code")
    same = provenance.code_hash(repository / "planet")
    (repository / "planet" / "a.py").write_text("one = 2\n")

    assert same == before
    assert provenance.code_hash(repository / "planet") != before


def test_slurm_ids_are_those_of_the_job(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert provenance.slurm_ids() == {}

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert provenance.slurm_ids().items() >= {"job_id": "12", "array_task_id": "3", "nodename": "n1"}.items()


def test_gpus_come_from_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1, GPU-abc'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert provenance.gpus() == [{"name": "NVIDIA H200", "driver": "570.1", "uuid": "GPU-abc"}]


def test_versions_name_every_package_that_can_move_a_result():
    found = provenance.versions()

    assert set(found) == {"python", *provenance.PACKAGES}
    assert all(found.values())
