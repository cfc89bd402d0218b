import dataclasses
import os
import sys
from pathlib import Path

import pytest

from benchmarks import plan
from benchmarks.executors import slurm
from benchmarks.executors.profile import Profile
from benchmarks.plan import Item
from benchmarks.suites import Cell

GOLDEN = Path(__file__).parent / "golden" / "sbatch.sh"
RUNS = Path("/shared/planet/runs")
SITE = Profile(
    partition="gpu", account="lab", qos="normal", time="12:00:00", gpus="a100:1", cpus_per_run=4, mem_gb_per_run=16,
    constraint="a100|h100", exclude="node[3-4]", reservation="course", nice=100, mail_type="END", mail_user="me@lab.de",
    runs_per_gpu=2, max_parallel=8, signal_seconds=180, setup=("module load cuda/12", "source 'my env'/bin/activate"),
    comment="planet", extra={"core-spec": 1, "exclusive": True}, python="apptainer exec --nv planet.sif python",
    srun_args=("--cpu-bind=cores",),
)  # fmt: skip


def items(count, variant="base", changes=None):
    cells = [Cell(task="cheetah_run", variant=variant)]
    planned = plan.expand(cells, range(count), preset="paper", runs=RUNS, changes=changes)
    return [Item(run=run, state="new", why="never started") for run in planned.runs]


def test_the_script_is_the_golden_one_to_the_letter():
    (batch,) = slurm.batches(items(6), SITE)
    text = slurm.script(batch, RUNS / "paper", "dmc6")
    if os.environ.get("ACCEPT_GOLDEN"):
        GOLDEN.write_text(text)

    assert text == GOLDEN.read_text(), (
        "after a wanted change: ACCEPT_GOLDEN=1 pytest tests/benchmarks/test_slurm_script.py"
    )


def test_the_default_profile_asks_for_little_and_for_this_python():
    (batch,) = slurm.batches(items(1), Profile())
    text = slurm.script(batch, RUNS / "paper", "dmc6")
    flags = {line.split()[1].split("=")[0] for line in text.splitlines() if line.startswith("#SBATCH")}

    assert flags == {
        "--cpus-per-task", "--error", "--gpus-per-node", "--job-name", "--mem", "--nodes", "--ntasks-per-node",
        "--open-mode", "--output", "--requeue", "--signal", "--time",
    }  # fmt: skip
    assert f"bash {sys.executable} -u -m submitit.core._submit" in text
    assert "--array" not in text and "wckey" not in text


def test_writing_a_script_makes_no_folder(tmp_path):
    (batch,) = slurm.batches(items(2), Profile())
    slurm.script(batch, tmp_path / "paper", "dmc6")

    assert list(tmp_path.iterdir()) == []


def test_runs_are_packed_by_gpu_and_the_rest_makes_a_smaller_pack():
    (batch,) = slurm.batches(items(7), Profile(runs_per_gpu=3, cpus_per_run=2, mem_gb_per_run=5))

    assert [len(pack) for pack in batch.packs] == [3, 3, 1]
    asked = slurm.parameters(batch, "n")
    assert (asked["cpus_per_task"], asked["mem"]) == (6, "15360M")


def test_a_job_with_several_gpus_fills_them_all():
    (batch,) = slurm.batches(items(8), Profile(gpus="a100:2", runs_per_gpu=2))

    assert [len(pack) for pack in batch.packs] == [4, 4]


def test_arrays_are_cut_at_the_clusters_limit():
    cut = slurm.batches(items(25), Profile(), max_array=10)

    assert [len(batch.packs) for batch in cut] == [10, 10, 5]
    assert sum((batch.packs for batch in cut), ()) == tuple((item.run.path,) for item in items(25))
    assert [len(batch.packs) for batch in slurm.batches(items(25), Profile(max_array=20), max_array=10)] == [20, 5]


def test_runs_that_need_no_gpu_are_a_batch_of_their_own():
    mixed = [*items(2), *items(2, "true_simulator")]
    gpu, cpu = slurm.batches(mixed, Profile(partition="gpu", cpu={"partition": "standard", "time": "2:00:00"}))

    assert {run.parts[-3] for pack in gpu.packs for run in pack} == {"base"}
    assert {run.parts[-3] for pack in cpu.packs for run in pack} == {"true_simulator"}
    assert "gpus_per_node" in slurm.parameters(gpu, "n") and "gpus_per_node" not in slurm.parameters(cpu, "n")
    assert (slurm.parameters(cpu, "n")["partition"], slurm.parameters(cpu, "n")["time"]) == ("standard", 120)


def test_memory_follows_the_replay_unless_the_profile_says_it():
    (small,) = slurm.batches(items(1), Profile())
    (long,) = slurm.batches(items(1, changes={"schedule.train_episodes": 4000}), Profile())

    assert long.mem_gb > small.mem_gb + 8
    (batch,) = slurm.batches(items(1), Profile(mem_per_gpu="60G"))
    assert slurm.parameters(batch, "n")["mem_per_gpu"] == "60G" and "mem" not in slurm.parameters(batch, "n")


def test_gres_takes_the_place_of_gpus():
    (batch,) = slurm.batches(items(1), Profile(gres="gpu:a100:1"))
    asked = slurm.parameters(batch, "n")

    assert asked["gres"] == "gpu:a100:1" and "gpus_per_node" not in asked


def test_a_set_up_line_that_fails_ends_the_job(tmp_path):
    import subprocess

    done = tmp_path / "done"
    lines = [*slurm._checked("true # fine"), *slurm._checked("false"), f"touch {done}"]
    ended = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)

    assert ended.returncode == 1 and ended.stderr == "set-up line failed: false\n"
    assert not done.exists()


@pytest.mark.parametrize("variable", ["SLURM_CONF", "SBATCH_ACCOUNT"])
def test_what_belongs_to_the_user_survives_the_clean_environment(monkeypatch, variable):
    monkeypatch.setenv(variable, "mine")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x1")
    with slurm._environment():
        seen = dict(os.environ)

    assert seen[variable] == "mine"
    assert "SLURM_JOB_ID" not in seen and "SLURM_CPU_BIND" not in seen
    assert os.environ["SLURM_JOB_ID"] == "12"


@pytest.mark.parametrize("answers", [True, False])
def test_a_refused_submission_is_taken_back_where_the_controller_answers(tmp_path, monkeypatch, answers):
    """Its record would make the next launch believe in the failed job that Slurm shows for it."""
    for name, body in (
        ("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1"),
        ("scancel", f'echo "$@" >> {tmp_path}/cancelled; exit {0 if answers else 1}'),
        ("srun", "exit 0"),
    ):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (batch,) = slurm.batches(items(1), Profile())
    batch = dataclasses.replace(batch, packs=((tmp_path / "paper" / "base" / "cheetah_run" / "seed_0",),))

    with pytest.raises(slurm.SubmissionFailed, match="Invalid account"):
        slurm.submit(batch, tmp_path / "paper", "dmc6")
    left = [file.parent.name for file in (tmp_path / "paper" / "slurm").glob("*/submission.json")]
    (cancelled,) = (tmp_path / "cancelled").read_text().splitlines()
    assert cancelled.startswith("--name=planet-dmc6-")
    assert left == ([] if answers else [cancelled.removeprefix("--name=planet-dmc6-")])
