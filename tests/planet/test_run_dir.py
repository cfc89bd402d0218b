import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from planet import provenance
from planet.presets import resolve
from planet.run_dir import Recorder, RunDir, read_jsonl, run_path, writable_folder, write_atomic

EPISODE = {
    "task": "cheetah_run", "kind": "train", "episode": 3, "env_steps": 3000, "agent_steps": 750, "updates": 100,
    "return": 12.5, "length": 250, "env_seed": 7, "wall_seconds": 1.5,
}  # fmt: skip
METRICS = {"updates": 100, "env_steps": 3000, "wall_seconds": 1.5, "kl": 3.25}


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "seed_0")


def make(path, **changes):
    config = resolve("cheetah_run", preset="smoke", changes=changes)
    return RunDir.create(path, config, preset="smoke", variant="base", question="why?")


def test_run_path_is_preset_variant_task_seed(tmp_path):
    path = run_path(tmp_path, "paper", "base+planner.candidates=500", "cheetah_run", 3)

    assert path.relative_to(tmp_path).as_posix() == "paper/base+planner.candidates=500/cheetah_run/seed_3"


def test_create_writes_a_complete_config_and_the_identity(run):
    record = run.run()

    assert run.config() == resolve("cheetah_run", preset="smoke")
    assert {k: record[k] for k in ("format", "preset", "variant", "task", "seed", "question", "starts")} == {
        "format": 1, "preset": "smoke", "variant": "base", "task": "cheetah_run", "seed": 0, "question": "why?",
        "starts": [],
    }  # fmt: skip
    assert record["versions"]["python"].startswith("3.") and record["versions"]["mujoco"]
    assert record["code_hash"] == provenance.code_hash()
    assert run.status() is None


def test_create_again_with_the_same_configuration_changes_nothing(run):
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}

    make(run.path)

    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before


def test_create_refuses_a_second_configuration_and_lists_the_differences(run):
    with pytest.raises(FileExistsError) as caught:
        make(run.path, **{"planner.candidates": 30, "model.stoch": 5})

    assert "planner.candidates 20 -> 30" in str(caught.value) and "model.stoch 6 -> 5" in str(caught.value)
    assert "choose --runs" in str(caught.value)
    assert run.config() == resolve("cheetah_run", preset="smoke")


def test_create_brings_settings_outside_the_identity_up_to_date(run):
    make(run.path, **{"runtime.checkpoint_seconds": 7})

    assert run.config().runtime.checkpoint_seconds == 7


def test_create_finishes_a_folder_whose_making_was_cut_short(run):
    run.run_json.unlink()

    make(run.path)

    assert run.run()["variant"] == "base"


def test_create_says_what_to_do_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OSError, match="choose --runs"):
        make(tmp_path / "file" / "seed_0")


def test_open_names_the_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run directory.*launch\.py"):
        RunDir.open(tmp_path)


@pytest.mark.parametrize("name", ["config.toml", "run.json"])
def test_open_names_the_one_file_that_is_missing(run, name):
    (run.path / name).unlink()

    with pytest.raises(FileNotFoundError) as caught:
        RunDir.open(run.path)
    assert str(caught.value) == (
        f"{run.path} lacks its {name}; bring it back from a copy, or move the run directory away to start over"
    )


def test_open_refuses_another_format(run):
    run.run_json.write_text(json.dumps({**run.run(), "format": 2}))

    with pytest.raises(ValueError, match="has format 2, this program reads 1"):
        RunDir.open(run.path)


def test_open_names_a_damaged_file(run):
    run.run_json.write_text('{"format":')

    with pytest.raises(ValueError, match=rf"run\.json is damaged.* move the run directory {run.path} away"):
        RunDir.open(run.path)


def test_the_first_start_decides_the_resolved_settings(run):
    assert run.resolved() is None
    run.record_start(precision="bfloat16", threads=2)
    second = run.record_start(precision="float32", threads=2)

    assert run.resolved() == {"precision": "bfloat16", "threads": 2}
    assert second["changed"] == ["precision"]
    assert len(run.run()["starts"]) == 2


def test_a_start_under_changed_code_is_recorded(run, monkeypatch):
    run.record_start(threads=1)
    monkeypatch.setattr(provenance, "of_code", lambda: {**CODE, "code_hash": "0" * 12, "patch": b"diff --git a b\n"})
    start = run.record_start(threads=1)

    assert start["changed"] == ["code"]
    assert (run.path / start["patch"]).read_bytes() == b"diff --git a b\n"


CODE = provenance.of_code()


def test_a_start_on_another_kind_of_gpu_is_recorded_and_on_another_card_of_the_kind_is_not(run, monkeypatch):
    machine = provenance.of_machine()
    for name, uuid in (("H200", "a"), ("H200", "b"), ("A100", "c")):
        gpu = {"name": name, "driver": "1", "uuid": uuid}
        monkeypatch.setattr(provenance, "of_machine", lambda gpu=gpu: {**machine, "gpus": [gpu]})
        run.record_start()

    assert [start["changed"] for start in run.run()["starts"]] == [[], [], ["gpu"]]


def test_rows_come_back_as_they_were_written(run):
    with Recorder(run) as recorder:
        recorder.append_episode(EPISODE)
        recorder.append_metrics(METRICS)

        assert read_jsonl(run.episodes_jsonl) == ([EPISODE], 0)
        assert read_jsonl(run.metrics_jsonl) == ([METRICS], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"return": float("nan")}, "return of episodes.jsonl must be finite"),
        ({"kind": "test"}, "kind must be one of seed, train, eval"),
        ({"episode": 3.0}, "episode of episodes.jsonl must be int, got 3.0"),
        ({"extra": 1}, "has no key extra"),
        ({"return": None}, "must be int or float"),
    ],
)
def test_a_wrong_episode_row_is_refused_and_nothing_is_written(run, change, message):
    with Recorder(run) as recorder, pytest.raises(ValueError, match=message):
        recorder.append_episode({**EPISODE, **change})

    assert run.episodes_jsonl.read_bytes() == b""


def test_a_metrics_row_needs_its_counters_and_finite_numbers(run):
    with Recorder(run) as recorder:
        with pytest.raises(ValueError, match="lacks wall_seconds"):
            recorder.append_metrics({"updates": 1, "env_steps": 1})
        with pytest.raises(ValueError, match="kl of metrics.jsonl must be finite"):
            recorder.append_metrics({**METRICS, "kl": float("inf")})


def test_truncate_drops_what_came_after_the_checkpoint_and_a_torn_line(run):
    with Recorder(run) as recorder:
        recorder.append_episode(EPISODE)
        positions = recorder.positions()
        recorder.append_episode({**EPISODE, "episode": 4})
        recorder.append_metrics(METRICS)
    with run.episodes_jsonl.open("a") as file:
        file.write('{"task": "chee')
    assert read_jsonl(run.episodes_jsonl)[1] == 1

    with Recorder(run) as recorder:
        recorder.truncate(positions)
        recorder.append_episode({**EPISODE, "episode": 5})

    assert [row["episode"] for row in read_jsonl(run.episodes_jsonl)[0]] == [3, 5]
    assert read_jsonl(run.episodes_jsonl)[1] == 0
    assert run.metrics_jsonl.read_bytes() == b""


def test_truncate_refuses_a_file_shorter_than_its_checkpoint_knows(run):
    with Recorder(run) as recorder, pytest.raises(ValueError, match=r"episodes\.jsonl has 0 bytes.*knows 10"):
        recorder.truncate({"episodes": 10})


@pytest.mark.parametrize(
    ("state", "wall_seconds", "lost"),
    [
        ("running", (), False),  # killed in its first episodes
        ("failed", (60.0, 119.0, 125.0), False),  # killed while the first checkpoint was written
        ("running", (60.0, 125.0, 130.0), True),
        ("failed", (125.0, 130.0), True),
        ("stopped", (), True),
    ],
)
def test_a_run_that_must_have_had_a_checkpoint_and_has_none_is_told(run, state, wall_seconds, lost):
    run.write_status({"state": state, "episode": 3, "episodes_total": 9})
    with Recorder(run) as recorder:
        for seconds in wall_seconds:
            recorder.append_metrics({"updates": 1, "env_steps": 1, "wall_seconds": seconds})

    assert (run.lost_checkpoint() is not None) == lost
    run.checkpoints.mkdir()
    (run.checkpoints / "previous.pt").touch()  # the latest is missing after a kill between two renames
    assert run.lost_checkpoint() is None


def test_checkpoints_more_often_from_now_on_are_not_missed_in_what_was_before(run):
    make(run.path, **{"runtime.checkpoint_seconds": 3600})
    run.record_start(device="cpu")
    run.write_status({"state": "running", "episode": 3, "episodes_total": 9})
    with Recorder(run) as recorder:
        for seconds in (300.0, 600.0, 900.0):
            recorder.append_metrics({"updates": 1, "env_steps": 1, "wall_seconds": seconds})
    make(run.path, **{"runtime.checkpoint_seconds": 120})

    assert run.lost_checkpoint() is None
    with Recorder(run) as recorder:
        for seconds in (3601.0, 3700.0):
            recorder.append_metrics({"updates": 1, "env_steps": 1, "wall_seconds": seconds})
    assert run.lost_checkpoint() is not None


def test_an_exported_agent_has_no_checkpoint_to_go_on_from_unless_it_lies_in_its_run(run):
    run.weights.touch()

    assert f"python -m planet.evaluate {run.path} lets it act" in str(run.lost_checkpoint())
    run.checkpoints.mkdir()
    (run.checkpoints / "latest.pt").touch()
    assert run.lost_checkpoint() is None


def test_a_writable_folder_is_made_and_stays_empty(tmp_path):
    writable_folder(tmp_path / "a/b", "choose another")

    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_folder_in_which_no_file_can_be_made_is_named_with_the_reason_and_the_advice(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)

    with pytest.raises(OSError) as caught:
        writable_folder(tmp_path, "choose another")
    assert str(caught.value) == f"cannot write into {tmp_path} (Permission denied); choose another"


def test_status_keeps_fields_across_writes_and_restarts(run):
    with Recorder(run) as recorder:
        recorder.write_status(state="running", episode=1, last_return=5.0)
    with Recorder(run) as recorder:
        recorder.write_status(state="stopped", episode=2)

    status = run.status()
    assert status is not None
    assert (status["state"], status["episode"], status["last_return"], status["format"]) == ("stopped", 2, 5.0, 1)
    assert abs(status["heartbeat"] - time.time()) < 60


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state": "paused"}, "state must be one of running, done, failed, stopped"),
        ({"state": "done", "reward": 1}, "no field reward"),
        ({"state": "done", "last_eval": float("nan")}, "last_eval must be finite"),
    ],
)
def test_a_wrong_status_is_refused(run, fields, message):
    with pytest.raises(ValueError, match=message):
        run.write_status(fields)
    assert run.status() is None


WRITER = """
import sys
from pathlib import Path
from planet.run_dir import write_atomic
sizes = 0
print("go", flush=True)
while True:
    sizes += 1
    write_atomic(Path(sys.argv[1]), bytes([sizes % 256]) * 200_000, durable=False)
"""


def test_a_kill_during_replacement_leaves_a_whole_file(tmp_path):
    target = tmp_path / "status.json"
    for delay in (0.0, 0.003, 0.007):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"go\n"
        time.sleep(0.02 + delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()

        data = target.read_bytes()
        assert len(data) == 200_000 and len(set(data)) == 1


def test_write_atomic_leaves_nothing_behind_where_the_disk_is_full(tmp_path, monkeypatch):
    write_atomic(tmp_path / "status.json", b"old")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="free space"):
        write_atomic(tmp_path / "status.json", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("status.json", b"old")]


def test_write_atomic_names_the_file_it_cannot_write(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        write_atomic(tmp_path / "absent" / "status.json", b"x")


def test_a_start_whose_pictures_something_else_draws_is_recorded(run):
    for renderer in ("egl, llvmpipe", "egl, llvmpipe", "egl, NVIDIA H200"):
        run.record_start()
        run.record_renderer(renderer)

    starts = run.run()["starts"]
    assert [start["renderer"] for start in starts] == ["egl, llvmpipe", "egl, llvmpipe", "egl, NVIDIA H200"]
    assert [start["changed"] for start in starts] == [[], [], ["renderer"]]
