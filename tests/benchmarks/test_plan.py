import json
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from benchmarks import plan, suites
from benchmarks.plan import PlanError
from benchmarks.suites import Cell
from planet.config import flatten
from planet.lease import Lease, this_process
from planet.presets import resolve
from planet.run_dir import RunDir


def expand(tmp_path, cells=None, seeds=(0, 1), **options):
    options = {"preset": "smoke", "runs": tmp_path, **options}
    return plan.expand(cells or [Cell(task="cheetah_run", variant="base")], seeds, **options)


def create(run):
    return RunDir.create(run.path, run.config, preset=run.preset, variant=run.variant)


def states(planned, **options):
    return [(item.state, item.why) for item in plan.examine(planned, **options)]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("5", (0, 1, 2, 3, 4)), ("2:6", (2, 3, 4, 5)), ("1,7", (1, 7)), (":2", (0, 1)), ("3,", (3,)), ("1,1", (1,))],
)
def test_seeds_are_a_count_a_range_or_a_list(text, seeds):
    assert plan.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    ["", "0", "x", "-1", "3:3", "1:2:3", "-1,2", "1.5", "10001", "99999999999999999999", "5:99999999999999999999"],
)
def test_other_seeds_are_refused_with_the_three_forms(text):
    with pytest.raises(ValueError, match=r"count \(5\), a range \(2:6.*list \(1,7\), 10000 seeds at most, got"):
        plan.parse_seeds(text)


def test_every_run_has_its_own_complete_configuration_and_path(tmp_path):
    planned = expand(tmp_path)

    assert [run.config for run in planned.runs] == [resolve("cheetah_run", preset="smoke", seed=k) for k in (0, 1)]
    assert [run.path.relative_to(tmp_path).as_posix() for run in planned.runs] == [
        "smoke/base/cheetah_run/seed_0", "smoke/base/cheetah_run/seed_1"
    ]  # fmt: skip


def test_a_variant_directory_names_its_changed_keys_once_in_one_spelling(tmp_path):
    changes = {"planner.horizon": "5.0", "model.activation": "elu", "runtime.checkpoint_seconds": "3"}
    (run,) = expand(tmp_path, seeds=(0,), changes=changes).runs

    assert run.variant == "base+model.activation=elu+planner.horizon=5"
    assert flatten(run.config)["runtime.checkpoint_seconds"] == 3


def test_all_errors_of_all_runs_come_at_once(tmp_path):
    cells = [
        Cell(task="cheetah_run", variant="base", changes={"planner.elite": 3}),
        Cell(task="cheetah_run", variant="no_such_ablation"),
        Cell(task="cheetah", variant="base"),
        Cell(task="walker_walk", variant="base", changes={"planner.elites": 21}),
        Cell(task="cup_catch", variant="base", changes={"planner.elites": 21}),
        Cell(task="cup_catch", variant="base"),
    ]
    with pytest.raises(PlanError) as caught:
        expand(tmp_path, cells)

    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for part in (
        "'planner.elite'",
        "'no_such_ablation'",
        "no task 'cheetah'",
        "got 21 (base on walker_walk, base on cup_catch)",
    ):
        assert part in text


def test_a_cell_equal_to_base_is_the_base_run(tmp_path):
    cells = [Cell(task="cheetah_run", variant="base", changes={"planner.candidates": 20})]  # smoke's own value
    planned = expand(tmp_path, cells)

    assert [run.variant for run in planned.runs] == ["base", "base"]
    assert [(s.variant, s.seed, s.run.variant) for s in planned.same] == [
        ("base+planner.candidates=20", 0, "base"), ("base+planner.candidates=20", 1, "base")
    ]  # fmt: skip


def test_two_equal_cells_run_once(tmp_path):
    cells = [
        Cell(task="cheetah_run", variant="base", changes={"planner.horizon": 3}),
        Cell(task="cheetah_run", variant="horizon_6", changes={"planner.horizon": 3}),
    ]
    planned = expand(tmp_path, cells, seeds=(0,))

    assert [run.variant for run in planned.runs] == ["base+planner.horizon=3"]
    assert [s.variant for s in planned.same] == ["horizon_6+planner.horizon=3"]


@pytest.mark.parametrize("name", sorted(suites.SUITES))
@pytest.mark.parametrize("preset", ["paper", "quick", "smoke"])
def test_every_suite_can_be_planned_at_every_size(tmp_path, name, preset):
    suite = suites.load(name)
    planned = expand(tmp_path, suite.cells(), seeds=(0,), preset=preset, suite=name)

    assert len({run.path for run in planned.runs}) == len(planned.runs) > 0


@pytest.mark.parametrize(
    ("known", "queue", "state"),
    [(True, "waiting", "waiting"), (True, "running", "running"), (None, "waiting", "running")],
)
def test_a_run_whose_job_is_back_in_the_queue_waits_though_it_keeps_its_lease(tmp_path, known, queue, state):
    run = create(expand(tmp_path, seeds=(0,)).runs[0])
    run.write_status({"state": "running", "episode": 4, "episodes_total": 9})
    run.lease.mkdir()
    owner = replace(this_process(), host="n2", boot="other", slurm_job="12")
    (run.lease / "1.json").write_text(json.dumps(asdict(owner)))
    answer = (queue, "Slurm job 12 pending (BeginTime)")

    told = plan.state_of(run.path, run.status(), job_of=lambda path: answer, knows=lambda job: known)
    assert told == (answer if state == "waiting" else ("running", f"episode 4 of 9, {owner}"))


def test_states_tell_what_a_directory_says(tmp_path):
    planned = expand(tmp_path, seeds=range(6))
    runs = [create(run) for run in planned.runs[:-1]]
    runs[0].write_status({"state": "done"})
    runs[1].write_status({"state": "failed", "error": "ValueError: NaN"})
    runs[2].write_status({"state": "stopped", "episode": 3, "episodes_total": 9})
    runs[2].checkpoints.mkdir()
    (runs[2].checkpoints / "latest.pt").touch()
    runs[3].write_status({"state": "running", "episode": 4, "episodes_total": 9})
    dead = replace(this_process(), process_start=1, host=this_process().host)
    runs[3].lease.mkdir()
    (runs[3].lease / "1.json").write_text(json.dumps(asdict(dead)))

    assert states(planned) == [
        ("done", "finished"),
        ("failed", "ValueError: NaN"),
        ("resume", "stopped at episode 3 of 9"),
        ("resume", f"ended without a word at episode 4 of 9 ({dead})"),
        ("new", "never started"),
        ("new", "never started"),
    ]


def test_a_run_that_stopped_and_lost_its_checkpoints_is_not_resumed(tmp_path):
    planned = expand(tmp_path, seeds=(0,))
    run = create(planned.runs[0])
    run.write_status({"state": "stopped", "episode": 106, "episodes_total": 325})
    ((state, why),) = states(planned)

    assert state == "failed" and f"{run.path} is at episode 106 of 325, but has no checkpoint" in why
    assert "move the run directory away to start over" in why


def test_a_run_whose_lease_is_alive_is_running_whatever_its_status_says(tmp_path):
    planned = expand(tmp_path, seeds=(0,))
    run = create(planned.runs[0])
    run.write_status({"state": "failed", "error": "of the last attempt"})
    with Lease.acquire(run.path):
        ((state, why),) = states(planned)

    assert state == "running" and "pid" in why
    assert states(planned) == [("failed", "of the last attempt")]


def test_the_queue_speaks_for_a_run_that_is_not_at_work(tmp_path):
    planned = expand(tmp_path, seeds=(0, 1))
    create(planned.runs[0]).write_status({"state": "done"})

    def job_of(path):
        return "waiting", "Slurm job 7 pending"

    assert states(planned, job_of=job_of) == [("done", "finished"), ("waiting", "Slurm job 7 pending")]


def test_a_folder_with_another_configuration_stops_the_whole_plan(tmp_path):
    (run,) = expand(tmp_path, seeds=(0,)).runs
    other = replace(run, config=resolve("cheetah_run", preset="smoke", changes={"model.stoch": 5}))
    create(other)
    create_damaged = expand(tmp_path, seeds=(1,)).runs[0]
    create(create_damaged).run_json.write_text("{")

    with pytest.raises(PlanError) as caught:
        plan.examine(expand(tmp_path, seeds=(0, 1)))
    assert "model.stoch 5 -> 6" in caught.value.problems[0]
    assert "is damaged" in caught.value.problems[1]


@pytest.mark.parametrize("part", ["episodes", "checkpoints", "episodes.jsonl"])
def test_a_run_whose_run_json_is_gone_is_not_begun_under_another_name(tmp_path, part):
    planned = expand(tmp_path, seeds=(0, 1))
    run = create(planned.runs[0])
    run.run_json.unlink()
    assert states(planned) == [("new", "never started")] * 2  # a folder that was never finished
    (run.path / part).mkdir()

    with pytest.raises(PlanError) as caught:
        plan.examine(planned)
    (problem,) = caught.value.problems
    assert f"{run.path} holds a run without run.json; bring that file back, or move the whole directory" in problem


def test_examining_writes_nothing(tmp_path):
    planned = expand(tmp_path)
    plan.examine(planned)

    assert list(tmp_path.iterdir()) == []


def test_the_plan_file_remembers_seeds_asked_for_earlier(tmp_path):
    cells = [Cell(task="cheetah_run", variant="base"), Cell(task="cheetah_run", variant="action_repeat_4")]
    plan.write(expand(tmp_path, cells, seeds=(0,), suite="mine"))
    plan.write(expand(tmp_path, cells, seeds=(1,), suite="mine"))

    content = json.loads((tmp_path / "smoke" / "plans" / "mine.json").read_text())
    assert (content["suite"], content["preset"], content["format"]) == ("mine", "smoke", 1)
    assert content["runs"] == [
        {"variant": "base", "task": "cheetah_run", "seed": k, "path": f"base/cheetah_run/seed_{k}"} for k in (0, 1)
    ]
    assert content["same"] == [
        {"variant": "action_repeat_4", "task": "cheetah_run", "seed": k, "same_as": "base"} for k in (0, 1)
    ]


@pytest.mark.parametrize(
    "content",
    [
        '{"runs": 3}',
        '{"runs": [1]}',
        '{"runs": [{"variant": "base", "task": "cheetah_run", "seed": 0}]}',
        '{"runs": [{"variant": "base", "task": "cheetah_run", "seed": 0, "path": 3}]}',
        '{"same": {}}',
        "[]",
        "{",
    ],
)
def test_a_plan_file_of_another_shape_is_named_and_written_anew(tmp_path, content):
    planned = expand(tmp_path, seeds=(0,), suite="mine")
    planned.file.parent.mkdir(parents=True)
    planned.file.write_text(content)

    with pytest.raises(ValueError, match=r"plans/mine\.json (is damaged|must hold a JSON object).*move it away"):
        plan.read(planned.file)
    plan.write(planned)
    assert [run["path"] for run in plan.read(planned.file)["runs"]] == ["base/cheetah_run/seed_0"]


def test_the_table_joins_seeds_of_one_state(tmp_path):
    planned = expand(tmp_path, seeds=(0, 1, 2, 5))
    create(planned.runs[3]).write_status({"state": "done"})

    assert plan.rows(plan.examine(planned)) == [
        ("base", "cheetah_run", "0-2", "new", "never started"), ("base", "cheetah_run", "5", "done", "finished")
    ]  # fmt: skip


def test_seeds_are_written_as_ranges():
    assert plan.seeds_text((0, 1, 2, 4, 7, 8)) == "0-2, 4, 7, 8"


PLANNING = """
import sys
from pathlib import Path
from benchmarks import launch
launch.main(["--suite", "fig8", "--preset", "quick", "--dry-run", "--runs", sys.argv[1], "--executor", "local"])
# numpy comes with the replay, which knows how much memory is free.
heavy = sorted({"torch", "dm_control", "mujoco", "submitit", "rich"} & set(sys.modules))
print("loaded:", heavy)
"""


def test_planning_imports_neither_torch_nor_a_simulator(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PLANNING, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "120 new" in done.stdout
    assert time.monotonic() - began < 10


def test_what_is_set_on_the_command_line_goes_before_the_suites_own_value(tmp_path):
    cells = [Cell(task="cheetah_run", variant="base", changes={"planner.horizon": 3, "planner.iterations": 1})]
    (run,) = expand(tmp_path, cells, seeds=(0,), changes={"planner.horizon": 2}).runs

    assert (run.config.planner.horizon, run.config.planner.iterations) == (2, 1)
    assert run.variant == "base+planner.horizon=2+planner.iterations=1"


def test_so_many_changed_keys_that_no_folder_can_be_named_after_them_are_refused(tmp_path):
    keys = (
        "objective.free_nats", "objective.kl_scale", "objective.reward_scale", "optimizer.clip_norm", "optimizer.eps",
        "optimizer.learning_rate", "schedule.action_noise", "schedule.eval_episodes", "model.reward_units",
    )  # fmt: skip
    changes = dict.fromkeys(keys, 1)
    (run,) = expand(tmp_path, seeds=(0,), changes=dict.fromkeys(keys[:7], 1)).runs

    assert len(run.variant) <= 200
    with pytest.raises(PlanError, match="too many changed keys for a folder's name; put them in an ablation file"):
        expand(tmp_path, changes=changes)
