import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import cost, dispatch, launch
from benchmarks.executors import local, machine
from benchmarks.executors.profile import Profile
from planet import presets
from planet.lease import Lease
from planet.run_dir import RunDir

SCRIPT = Path(launch.__file__)
ONE = ["--tasks", "cartpole_swingup", "--seeds", "1", "--preset", "smoke"]


def run(tmp_path, *words, **environment):
    # TMPDIR: a sweep that is at work on this machine has nothing to do with the test's.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), **environment}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--runs", str(tmp_path / "runs")],
        capture_output=True, text=True, timeout=300, check=False, env=env,
    )  # fmt: skip


def main(tmp_path, *words):
    return launch.main([*words, "--runs", str(tmp_path / "runs")])


class Recording:
    submits = False
    hardware = cost.CPU_CORE

    def __init__(self):
        self.started = []

    def describe(self, items, *, dry_run):
        pass

    def check(self):
        pass

    def start(self, items, preset_folder, suite):
        self.started.append([item.run.name for item in items])
        return 0


@pytest.fixture
def recording(monkeypatch):
    executor = Recording()
    monkeypatch.setattr(dispatch, "choose", lambda options, dry_run: executor)
    return executor


def test_help_comes_fast_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom benchmarks import launch\n"
        "try:\n    launch.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'dm_control', 'numpy', 'submitit'} & set(sys.modules)))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.splitlines()[-1] == "[]"
    assert "--suite dmc6 --seeds 5 --preset smoke" in done.stdout
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "dmc7"], "no suite 'dmc7'.*perhaps dmc6"),
        (["--tasks", "cheetah"], "no task 'cheetah'.*perhaps cheetah_run"),
        (["--ablations", "stochastik"], "no ablation 'stochastik'; perhaps stochastic"),
        (["--ablations", "/nowhere/x.toml"], "no ablation file /nowhere/x.toml"),
        (["--preset", "papr"], "no preset 'papr'.*perhaps paper"),
        (["--seeds", "x"], "--seeds must be a count"),
        (["--set", "planner.elite=1"], "no config key 'planner.elite'"),
        (["--set", "planner.elites=many"], "planner.elites must be an integer, got 'many'"),
        (["--set", "planner.elites=2000"], r"planner.elites must be in 1..planner.candidates \(1000\), got 2000"),
        (["--set", "batch.chunk=900"], "batch.chunk must be at most the"),
        (["--ablations", "multitask", "--set", "env.episode_env_steps=80"], "at most the 11 frames.*multitask on dmc6"),
        (["--set", "runtime.device=cuda:abc"], "runtime.device must be auto, cpu, cuda or cuda:N"),
        (["--set", "schedule.open_loop_episodes=50"], "schedule.open_loop_episodes must be at most 10"),
        (["--seeds", "99999999999999999999"], "--seeds must be a count.*10000 seeds at most"),
        (["--seeds", "1,99999999999999999999"], "config.seed must be in 0..9223372036854775807"),
        (
            ["--executor", "slurm", "--dry-run", "--cluster-set", "mem_gb_per_run=inf"],
            "mem_gb_per_run must be a number",
        ),
        (["--set", "seed=3"], "'seed' cannot be set here"),
        (["--set", "planner.elites"], "--set takes key=value, got 'planner.elites'"),
        (["--cluster", "/nowhere.toml"], "no cluster profile /nowhere.toml"),
        (["--cluster-set", "time"], "--cluster-set takes key=value, got 'time'"),
        (["--cluster-set", "tim=3"], "no profile key 'tim'.*perhaps time"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_started(tmp_path, capsys, recording, words, message):
    import re

    assert main(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert recording.started == [] and not (tmp_path / "runs").exists()


def test_mistakes_of_all_kinds_come_together(tmp_path, capsys):
    assert main(tmp_path, "--seeds", "x", "--tasks", "cheetah", "--preset", "papr") == 2
    error = capsys.readouterr().err

    assert all(word in error for word in ("'cheetah'", "'papr'", "--seeds"))


def test_an_ablation_file_that_is_wrong_stops_everything(tmp_path, capsys, recording):
    file = tmp_path / "idea.toml"
    file.write_text('title = "t"\nquestion = "q"\n[overrides]\n"planner.elite" = 5\n')
    assert main(tmp_path, "--ablations", "base", str(file)) == 2

    assert "idea.toml: no config key 'planner.elite'" in capsys.readouterr().err
    assert recording.started == []


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
@pytest.mark.parametrize("blocked", ["runs", "runs/smoke"])
def test_a_file_in_the_folders_place_is_told_before_the_plan(tmp_path, capsys, recording, words, blocked):
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file in the way")
    assert main(tmp_path, *ONE, *words) == 2

    out, error = capsys.readouterr()
    assert f"--runs must be a folder, or a name for a new one, but {tmp_path / blocked} is a file" in error
    assert out == "" and recording.started == []


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_place_where_no_folder_can_be_made_is_told_before_the_plan(capsys, recording, words):
    assert launch.main([*ONE, *words, "--runs", "/proc/x"]) == 2

    out, error = capsys.readouterr()
    assert "--runs must be a folder that can be written, but nothing can be made in /proc (" in error
    assert out == "" and recording.started == []


def test_a_folder_of_somebody_else_can_be_looked_at_in_a_dry_run(tmp_path, recording, monkeypatch):
    (tmp_path / "runs/smoke").mkdir(parents=True)

    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert main(tmp_path, *ONE, "--dry-run") == 0
    assert main(tmp_path, *ONE) == 2


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_run_without_run_json_is_refused_also_in_a_dry_run(tmp_path, capsys, recording, words):
    main(tmp_path, *ONE)
    run = RunDir(tmp_path / "runs/smoke/base/cartpole_swingup/seed_0")
    run.run_json.unlink()
    run.checkpoints.mkdir()

    assert main(tmp_path, *ONE, *words) == 2
    assert f"{run.path} holds a run without run.json" in capsys.readouterr().err
    assert len(recording.started) == 1 and not run.run_json.exists()


@pytest.mark.parametrize("words", [[], ["--retry-failed"], ["--dry-run"]])
@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_retry_is_not_promised_to_a_run_without_checkpoint(tmp_path, capsys, recording, state, words):
    main(tmp_path, *ONE)
    run = RunDir(tmp_path / "runs/smoke/base/cartpole_swingup/seed_0")
    run.write_status({"state": state, "error": "x" if state == "failed" else None})
    run.metrics_jsonl.write_text('{"wall_seconds": 1e6}\n{"wall_seconds": 1e6}\n')
    capsys.readouterr()

    assert main(tmp_path, *ONE, *words) == (0 if words == ["--dry-run"] else 1)
    out = capsys.readouterr().out
    assert "1 failed run without checkpoint cannot go on; --runs ELSEWHERE starts anew" in out
    assert "--retry-failed" not in out and len(recording.started) == 1


def test_a_folder_that_cannot_be_written_is_told_before_anything_starts(tmp_path, capsys, recording, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)  # whoever runs the test may write anywhere
    assert main(tmp_path, *ONE) == 2

    assert "choose --runs" in capsys.readouterr().err
    assert recording.started == []


def test_without_a_suite_it_is_the_six_tasks_and_five_seeds(tmp_path, recording, capsys):
    file = tmp_path / "idea.toml"
    file.write_text('title = "t"\nquestion = "q"\n[overrides]\n"planner.horizon" = 3\n')
    assert main(tmp_path, "--ablations", str(file), "--preset", "smoke") == 0

    (started,) = recording.started
    assert (
        len(started) == 30 and started[0] == "idea/cartpole_swingup/seed_0" and started[-1] == "idea/walker_walk/seed_4"
    )


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--suite", "fig8"], "fig8"),
        ([], "dmc6"),
        (["--suite", "fig8", "--tasks", "cheetah_run"], "fig8"),
        (["--tasks", "cheetah_run"], "custom"),
        (["--ablations", "stochastic"], "custom"),
        (["--suite", "dmc6", "--set", "planner.horizon=3"], "custom"),
        (["--suite", "dmc6", "--set", "runtime.device=cpu"], "dmc6"),  # the same runs
        (["--suite", "fig8", "--set", "runtime.precision=bfloat16", "runtime.threads=2"], "fig8"),
        (["--suite", "dmc6", "--set", "runtime.device=cpu", "planner.horizon=3"], "custom"),
    ],
)
def test_the_plan_file_has_the_suites_name_where_it_is_the_suite(tmp_path, recording, words, name):
    main(tmp_path, *words, "--seeds", "1", "--preset", "smoke")

    assert [path.name for path in (tmp_path / "runs/smoke/plans").iterdir()] == [f"{name}.json"]


def test_run_directories_exist_with_their_questions_before_the_executor_starts(tmp_path, recording):
    seen = []
    recording.start = lambda items, folder, suite: seen.extend(RunDir.open(item.run.path).run() for item in items) or 0
    main(tmp_path, "--suite", "fig4", "--tasks", "cheetah_run", "--seeds", "1", "--preset", "smoke")

    assert [record["variant"] for record in seen] == ["base", "stochastic", "deterministic_official", "deterministic"]
    assert all(record["question"].endswith("?") and record["suite"] == "fig4" for record in seen)


def test_a_folder_named_by_its_parent_is_the_folder_itself(tmp_path, recording, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folders = []
    monkeypatch.setattr(recording, "start", lambda items, preset_folder, suite: folders.append(preset_folder) or 0)

    assert launch.main([*ONE, "--runs", "../runs"]) == 0
    assert folders == [tmp_path / "runs" / "smoke"]


def test_only_what_is_missing_is_started(tmp_path, recording, capsys):
    words = ["--tasks", "cheetah_run", "--seeds", "5", "--preset", "smoke"]
    main(tmp_path, *words)
    runs = [RunDir(tmp_path / f"runs/smoke/base/cheetah_run/seed_{k}") for k in range(5)]
    runs[0].write_status({"state": "done"})
    runs[1].write_status({"state": "failed", "error": "ValueError: x"})
    runs[2].write_status({"state": "stopped"})
    runs[2].checkpoints.mkdir()
    (runs[2].checkpoints / "latest.pt").touch()
    capsys.readouterr()
    with Lease.acquire(runs[3].path):
        assert main(tmp_path, *words) == 1  # one failed, and was not asked to be retried
        out = capsys.readouterr().out
        assert main(tmp_path, *words, "--retry-failed") == 0

    assert recording.started[1:] == [
        ["base/cheetah_run/seed_2", "base/cheetah_run/seed_4"],
        ["base/cheetah_run/seed_1", "base/cheetah_run/seed_2", "base/cheetah_run/seed_4"],
    ]
    for line in (
        "done finished",
        "failed 13 s ValueError: x",
        "resume 13 s stopped at",
        "1 failed run is left as it is; --retry-failed starts it again",
    ):
        assert line in " ".join(out.split())


def test_the_plan_says_what_each_run_costs_on_what_it_will_run_on(tmp_path, recording, capsys):
    words = ["--tasks", "cheetah_run", "--seeds", "2", "--dry-run"]
    main(tmp_path, *words)
    on_a_core = capsys.readouterr().out
    recording.hardware = cost.GPU
    main(tmp_path, *words)
    on_a_gpu = capsys.readouterr().out
    config = presets.resolve("cheetah_run")

    for out, hardware, unit in ((on_a_core, cost.CPU_CORE, "core"), (on_a_gpu, cost.GPU, "GPU")):
        title, row = out.splitlines()[1:3]
        hours = cost.text(cost.estimate(config, hardware).hours)
        assert f"{unit} time" in title
        assert row.split() == ["base", "cheetah_run", "0,", "1", "new", *hours.split(), "never", "started"]


def test_ctrl_c_before_a_run_is_at_work_is_no_traceback(tmp_path, recording, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    recording.start = interrupted
    assert main(tmp_path, *ONE) == 75
    assert "the same command goes on" in capsys.readouterr().err


def test_a_run_without_its_config_toml_is_told_what_is_missing(tmp_path, recording, capsys):
    assert main(tmp_path, *ONE) == 0
    path = tmp_path / "runs/smoke/base/cartpole_swingup/seed_0"
    (path / "config.toml").unlink()
    capsys.readouterr()

    assert main(tmp_path, *ONE) == 2
    assert capsys.readouterr().err == (
        f"launch.py: {path} lacks its config.toml; bring it back from a copy, or move the run directory away to start "
        "over\n"
    )


def test_a_dry_run_writes_nothing(tmp_path, recording, capsys):
    assert main(tmp_path, *ONE, "--dry-run") == 0

    assert "dry run: nothing was started" in capsys.readouterr().out
    assert recording.started == [] and not (tmp_path / "runs").exists()


def test_a_sweep_for_slurm_without_gpus_is_estimated_in_core_hours(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--tasks", "cartpole_swingup", "--preset", "quick", "--executor", "slurm", "--dry-run"]

    assert main(tmp_path, *words, "--cluster-set", "gpus=0") == 0

    out = capsys.readouterr().out
    assert "core hours" in out and "GPU time" not in out


def test_no_gpu_is_asked_for_where_the_command_line_says_so_and_the_profile_has_gres(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "site.toml").write_text('gres = "gpu:a100:1"\n')
    words = [*ONE, "--executor", "slurm", "--cluster", str(tmp_path / "site.toml"), "--dry-run"]

    assert main(tmp_path, *words) == 0
    assert "#SBATCH --gres=gpu:a100:1" in capsys.readouterr().out
    assert main(tmp_path, *words, "--cluster-set", "gpus=0") == 0
    out = capsys.readouterr().out
    assert "#SBATCH" in out and "--gres" not in out and "--gpus" not in out


def test_a_dry_run_for_slurm_prints_the_script_where_there_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--suite", "dmc6", "--executor", "slurm", "--max-parallel", "3", "--runs-per-gpu", "2", "--dry-run"]
    assert main(tmp_path, *words, "--cluster-set", "partition=gpu", "time=2:00:00") == 0
    out = capsys.readouterr().out

    for line in (
        "#SBATCH --array=0-14%3",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=120",
        "15 jobs, 2 runs each",
        "GPU hours",
    ):
        assert line in out
    assert "the script was not checked by one" in out


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_folder_whose_name_slurm_would_expand_is_refused(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr("benchmarks.executors.queue.answers", lambda: True)
    runs = tmp_path / "x%j"

    assert launch.main([*ONE, "--executor", "slurm", *words, "--runs", str(runs)]) == 2
    assert "--runs must be a path without % for Slurm, which reads it as a pattern" in capsys.readouterr().err
    assert not list(runs.rglob("*.json"))


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Return what makes an sbatch of these shell lines, where all else answers."""

    def make(sbatch):
        bodies = {"sbatch": sbatch, "scontrol": "echo is UP", "srun": "", "squeue": "", "scancel": ""}
        for name, body in bodies.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return make


def test_a_full_queue_is_told_once_and_what_to_do(tmp_path, fake_slurm, capfd):
    """The second of three arrays is refused: Slurm's limit of jobs (MaxJobCount)."""
    fake_slurm(f"""
if mkdir {tmp_path}/first 2> /dev/null; then echo Submitted batch job 7
else echo 'sbatch: error: Slurm temporarily unable to accept job' >&2; exit 1; fi""")
    words = ["--tasks", "cheetah_run", "--seeds", "5", "--preset", "smoke", "--executor", "slurm"]

    assert main(tmp_path, *words, "--cluster-set", "max_array=2") == 2
    out, err = capfd.readouterr()
    assert "submitted 2 runs in 2 jobs: 7_0 to 7_1" in out and out.count("submitted") == 1
    assert err == (
        "launch.py: sbatch refused: sbatch: error: Slurm temporarily unable to accept job\n"
        "3 runs not submitted; the same command submits them once Slurm takes them\n"
    )


@pytest.mark.parametrize(("longest", "told"), [(2, True), (5, False)])
def test_how_many_jobs_at_a_time_is_told_where_there_are_several_arrays(tmp_path, fake_slurm, capsys, longest, told):
    fake_slurm("exit 0")
    words = ["--tasks", "cheetah_run", "--seeds", "5", "--preset", "smoke", "--executor", "slurm", "--dry-run"]

    assert main(tmp_path, *words, "--max-parallel", "2", "--cluster-set", f"max_array={longest}") == 0
    assert ("max_parallel counts in each of 3 arrays: 5 jobs at a time in all" in capsys.readouterr().out) == told


@pytest.mark.parametrize(("code", "said"), [(0, "accepted"), (1, "REFUSED")])
def test_a_dry_run_that_the_cluster_refuses_is_no_success(tmp_path, fake_slurm, capsys, code, said):
    fake_slurm(f"echo 'invalid partition' >&2; exit {code}")

    assert main(tmp_path, *ONE, "--executor", "slurm", "--dry-run") == code
    assert f"sbatch --test-only: {said}: invalid partition" in capsys.readouterr().out


def test_the_hint_how_to_watch_can_be_pasted(tmp_path, fake_slurm, capsys, monkeypatch):
    fake_slurm("echo Submitted batch job 7")
    monkeypatch.chdir(tmp_path)

    assert launch.main([*ONE, "--executor", "slurm", "--runs", "my runs"]) == 0
    assert "watch:  python benchmarks/status.py 'my runs/smoke' --watch" in capsys.readouterr().out


def test_slurm_asked_for_where_there_is_none_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main(tmp_path, *ONE, "--executor", "slurm") == 2
    assert main(tmp_path, *ONE, "--cluster", str(SCRIPT.parents[1] / "slurm" / "gpu_cluster.toml")) == 2
    assert "no Slurm controller answers here" in capsys.readouterr().err
    assert main(tmp_path, *ONE, "--cluster-set", "time=30") == 2
    assert "no Slurm controller answers here" in capsys.readouterr().err
    assert isinstance(dispatch.choose(dispatch.Options(profile=Profile()), dry_run=False), dispatch.Local)


def test_where_slurm_does_not_answer_no_sweep_starts_on_the_login_node(tmp_path, capsys, monkeypatch):
    for name in ("sbatch", "srun", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Slurmctld(primary) at h is DOWN'\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert main(tmp_path, *ONE) == 2
    assert "no Slurm controller answers here" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert isinstance(dispatch.choose(dispatch.Options(profile=Profile()), dry_run=True), dispatch.Slurm)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local", "--cluster-set", "time=30"], "--cluster and --cluster-set are for Slurm; --executor local"),
        (["inline", "--cluster-set", "time=30"], "--executor inline does not read them"),
        (["local", "--runs-per-gpu", "2"], "no GPU is visible here; --max-parallel says"),
        (["inline", "--max-parallel", "2"], "executes one run at a time: leave out --max-parallel"),
    ],
)
def test_an_option_that_means_nothing_to_the_executor_is_refused(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert main(tmp_path, *ONE, "--executor", *words, "--dry-run") == 2
    assert message in capsys.readouterr().err


def test_paper_size_without_a_gpu_names_its_cost_and_the_quick_preset(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    main(tmp_path, "--suite", "dmc6", "--executor", "local", "--dry-run")
    out = capsys.readouterr().out

    assert "days a run on one processor core" in out and "--preset quick" in out
    main(tmp_path, "--suite", "fig12", "--executor", "local", "--dry-run")  # nothing is learned, no GPU would help
    assert "GPU" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "first", "told"),
    [
        ([], None, "1 thread each"),  # smoke's own number
        (["runtime.threads=0"], None, "8 threads each"),
        (["runtime.threads=3"], None, "3 threads each"),
        (["runtime.threads=0"], 2, "2 or 8 threads each"),
        (["runtime.threads=0", "planner.dynamics=simulator"], 2, "8 threads each"),
    ],
)
def test_the_plan_says_how_many_threads_the_runs_compute_with(tmp_path, capsys, monkeypatch, changes, first, told):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where no other sweep is at work
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the launcher's own
    monkeypatch.setattr(dispatch.Local, "start", lambda *_: 0)
    words = ["--tasks", "cartpole_swingup", "--seeds", "2", "--preset", "smoke", "--executor", "local"]
    words += ["--set", *changes] if changes else []
    main(tmp_path, *words)
    if first:
        run = RunDir(next(tmp_path.glob("runs/smoke/*/cartpole_swingup/seed_0")))
        run.record_start(threads=first)
    capsys.readouterr()
    main(tmp_path, *words, "--dry-run")

    assert f"), {told}" in capsys.readouterr().out


def test_a_machine_that_cannot_draw_is_told_before_any_run_starts(tmp_path):
    done = run(tmp_path, *ONE, "--executor", "local", MUJOCO_GL="glfw", DISPLAY="", WAYLAND_DISPLAY="")

    assert done.returncode == 1
    assert "this machine cannot run it, nothing was started" in done.stderr and "GLFW" in done.stderr
    assert not (tmp_path / "runs/smoke/base/cartpole_swingup/seed_0/status.json").exists()


@pytest.mark.parametrize("words", [[], ["--max-parallel", "2"]])
def test_a_second_launcher_on_a_machine_wants_to_be_told_how_many(tmp_path, capsys, monkeypatch, words):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(dispatch, "preflight", lambda: None)
    begun = []

    def execute(paths, slots, names):
        begun.extend(paths)
        assert [
            sweep.runs for sweep in machine.sweeps() if set(paths) <= sweep.runs
        ]  # registered beside the other, too
        return []

    monkeypatch.setattr(local, "execute", execute)
    with machine.at_work([tmp_path]) as others:
        assert others == []
        code = main(tmp_path, *ONE, "--executor", "local", *words)
    err = capsys.readouterr().err

    assert (code, len(begun)) == ((75, 1) if words else (2, 0))
    assert words or not (tmp_path / "runs").exists()  # refused before anything was written
    assert words or (f"pid {os.getpid()} has a sweep at work on this machine" in err and "--max-parallel N" in err)
    assert main(tmp_path, *ONE, "--executor", "local") == 75 and begun  # the other has ended


@pytest.mark.slow
def test_a_sweep_runs_to_done_and_typed_again_does_nothing(tmp_path):
    words = ["--tasks", "cartpole_swingup", "cheetah_run", "--seeds", "1", "--preset", "smoke", "--executor", "local"]
    first, second = run(tmp_path, *words), run(tmp_path, *words)

    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 done" in first.stdout and first.stdout.count("begun") == 2
    assert second.returncode == 0 and "2 done" in second.stdout and "begun" not in second.stdout


@pytest.mark.slow
def test_a_sweep_interrupted_goes_on_when_typed_again(tmp_path):
    words = [sys.executable, str(SCRIPT), *ONE, "--set", "schedule.train_episodes=400", "--runs", str(tmp_path)]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    path = tmp_path / "smoke/base+schedule.train_episodes=400/cartpole_swingup/seed_0"

    def status():
        return json.loads((path / "status.json").read_text()) if (path / "status.json").exists() else {}

    def interrupted_after(updates, executor):
        launcher = subprocess.Popen(
            [*words, "--executor", executor], stdout=subprocess.PIPE, text=True, env=env,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `make test &` ignores it
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while status().get("updates", 0) < updates:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        launcher.send_signal(signal.SIGINT)
        output, _ = launcher.communicate(timeout=120)
        assert launcher.returncode == 75 and "the same command goes on where it stopped" in output
        assert status()["state"] == "stopped"
        return status()["updates"]

    first = interrupted_after(3, "local")
    second = interrupted_after(first + 1, "inline")

    assert second > first and "resumed at episode" in (path / "log.txt").read_text()


def test_launcher_and_workers_run_the_code_of_the_checkout_that_was_named(tmp_path):
    """Not the one that is installed, nor the one in which they are started."""
    root, copy = SCRIPT.parents[1], tmp_path / "copy"
    for package in ("planet", "benchmarks", "ablations"):
        shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "planet" / "presets.py").open("a") as file:
        file.write('print("presets of the copy")\n')
    (copy / "planet" / "train.py").write_text("print(__file__)\n")

    done = subprocess.run(
        [sys.executable, str(copy / "benchmarks" / "launch.py"), *ONE, "--executor", "local", "--runs",
         str(tmp_path / "runs")],
        capture_output=True, text=True, timeout=300, check=False, cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )  # fmt: skip

    assert "presets of the copy" in done.stdout and "1 done" in done.stdout, done.stdout + done.stderr
    output = (tmp_path / "runs/smoke/base/cartpole_swingup/seed_0/output.txt").read_text()
    assert str(copy / "planet" / "train.py") in output
