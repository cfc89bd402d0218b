"""Launch a sweep: suites, ablations, tasks and seeds to runs, executed on this machine or on a Slurm cluster.

Typing the same command again is always right: runs that are done are skipped, running ones left alone, halted ones
resumed, failed ones reported.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# This checkout's code, whichever one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import cost, dispatch, plan, suites, variants
from benchmarks.executors import profile, queue
from benchmarks.plan import Item, Plan, PlanError, counted
from planet import presets, tasks
from planet.config import parse_changes
from planet.run_dir import RunDir
from planet.stop_signal import EXIT_STOPPED

EXIT_USAGE = 2
MAX_ROWS = 60
EXAMPLES = """\
examples:
  launch.py --suite dmc6 --seeds 5                     the paper's six tasks, five seeds, paper size
  launch.py --suite dmc6 --seeds 5 --preset smoke      the same path in minutes on a laptop
  launch.py --suite fig8 --seeds 0:3 --dry-run         plan, cost and sbatch script; starts nothing
  launch.py --ablations stochastic my/idea.toml --tasks cheetah_run --set planner.candidates=500
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="launch.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = p.add_argument_group("what to run")
    what.add_argument("--suite", metavar="NAME", help=f"{', '.join(suites.SUITES)} (dmc6 if nothing else is named)")
    what.add_argument("--tasks", nargs="+", action="extend", metavar="TASK", help="only these tasks")
    what.add_argument(
        "--ablations", nargs="+", action="extend", metavar="NAME", help="these variants, from ablations/ or a TOML file"
    )
    what.add_argument("--seeds", default="5", help="5 means 0..4, 2:6 means 2..5, 1,7 those two (default 5)")
    what.add_argument("--preset", default="paper", help=f"{', '.join(presets.PRESETS)} (default paper)")
    what.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change a configuration key of every run",
    )
    what.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs live (default runs/)")
    how = p.add_argument_group("how to run it")
    how.add_argument(
        "--executor",
        choices=("auto", "slurm", "local", "inline"),
        default="auto",
        help="auto: slurm on a machine of a cluster, else local",
    )
    how.add_argument(
        "--max-parallel", type=dispatch.positive, metavar="N", help="runs (Slurm: jobs of an array) at a time"
    )
    how.add_argument("--runs-per-gpu", type=dispatch.positive, metavar="K", help="runs that share a GPU (default 1)")
    how.add_argument("--cluster", type=Path, metavar="FILE", help="a cluster profile, see slurm/README.md")
    how.add_argument(
        "--cluster-set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change a key of the profile"
    )
    how.add_argument("--retry-failed", action="store_true", help="start failed runs again, from their last checkpoint")
    how.add_argument("--dry-run", action="store_true", help="print plan, cost and job script; start nothing")
    return p


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan the arguments ask for.

    Raises:
        PlanError: everything wrong with it.
    """
    problems: list[str] = []

    def attempt(function, *args, **options):
        try:
            return function(*args, **options)
        except (KeyError, ValueError, FileNotFoundError) as error:
            problems.append(str(error.args[0]))
            return None

    seeds = attempt(plan.parse_seeds, arguments.seeds)
    changes = attempt(parse_changes, arguments.set)
    attempt(plan.check_folder, arguments.runs / arguments.preset, dry_run=arguments.dry_run)
    if arguments.preset not in presets.PRESETS:
        attempt(lambda: presets.resolve("cartpole_swingup", preset=arguments.preset))
    for name in arguments.tasks or ():
        attempt(tasks.canonical, name)
    suite = attempt(suites.load, arguments.suite or "dmc6")
    for name in arguments.ablations or ():
        attempt(variants.load, name)
    if problems or seeds is None or changes is None or suite is None:
        raise PlanError(problems)

    chosen = tuple(arguments.ablations or suite.variants)
    where = tuple(tasks.canonical(name) for name in arguments.tasks or ()) or suite.tasks
    cells = suites.cells(where, chosen, suite.changes if not arguments.ablations else ({},))
    same_agents = all(key.startswith("runtime.") for key in changes)  # however they are computed
    own_name = not arguments.ablations and same_agents and (arguments.suite or not arguments.tasks)
    return plan.expand(
        cells,
        seeds,
        preset=arguments.preset,
        runs=arguments.runs,
        suite=suite.name if own_name else plan.CUSTOM,
        changes=changes,
    )


def make_options(arguments: argparse.Namespace) -> dispatch.Options:
    """Return how to run; the cluster profile is read and checked whatever the executor.

    Raises:
        ValueError, FileNotFoundError: the profile is wrong.
    """
    return dispatch.Options(
        executor=arguments.executor,
        max_parallel=arguments.max_parallel,
        runs_per_gpu=arguments.runs_per_gpu,
        profile=profile.load(arguments.cluster, parse_changes(arguments.cluster_set, "--cluster-set")),
        profile_named=arguments.cluster is not None or bool(arguments.cluster_set),
    )


def show(plan_: Plan, items: Sequence[Item], hardware: cost.Hardware) -> None:
    """Print the plan table, each run with what it costs from its beginning, and what the table adds up to."""
    table = plan.rows(items)
    print(f"{plan_.suite}, {plan_.preset} preset: {counted(len(items), 'run')} in {plan_.folder}")
    configs = {(item.run.variant, item.run.task): item.run.config for item in items}
    titles = ("variant", "task", "seeds", "state", f"{hardware.unit} time", "why")
    shown: list[tuple[str, ...]] = [titles]
    for variant, task, seeds, state, why in table[:MAX_ROWS]:
        hours = "" if state == "done" else cost.text(cost.estimate(configs[variant, task], hardware).hours)
        shown.append((variant, task, seeds, state, hours, why))
    widths = [max(len(row[i]) for row in shown) for i in range(5)]
    for row in shown:
        print("  " + "  ".join(f"{row[i]:{widths[i]}}" for i in range(5)) + "  " + row[5])
    if len(table) > MAX_ROWS:
        print(f"  ... and {len(table) - MAX_ROWS} rows more (status.py lists every run)")
    for variant, run_variant, task in dict.fromkeys((s.variant, s.run.variant, s.task) for s in plan_.same):
        print(f"  {variant} on {task} equals {run_variant}: not run twice")
    counts = Counter(item.state for item in items)
    print("  " + ", ".join(f"{counts[state]} {state}" for state in plan.STATES if counts[state]))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return launch(arguments)
    except KeyboardInterrupt:  # between runs, or before the first; a run at work saves and stops by itself
        print("launch.py: stopped; the same command goes on", file=sys.stderr)
        return EXIT_STOPPED
    except PlanError as error:
        for problem in error.problems:
            print(f"launch.py: {problem}", file=sys.stderr)
        print("launch.py: nothing was started", file=sys.stderr)
    except (OSError, ValueError, KeyError) as error:
        print(f"launch.py: {error if isinstance(error, OSError) else error.args[0]}", file=sys.stderr)
    return EXIT_USAGE


def launch(arguments: argparse.Namespace) -> int:
    """Plan, show, start; return the exit code (0 fine, 1 a run failed or a dry run is refused, 75 Ctrl-C)."""
    arguments.runs = Path(os.path.abspath(arguments.runs))
    sweep = make_plan(arguments)
    executor = dispatch.choose(make_options(arguments), dry_run=arguments.dry_run)
    lock = executor.submits and not arguments.dry_run
    with queue.locked(sweep.folder) if lock else contextlib.nullcontext():
        jobs = queue.Queue.read(sweep.folder)
        items = plan.examine(sweep, job_of=jobs.job_of, knows=jobs.knows)
        show(sweep, items, executor.hardware)
        states = ("new", "resume", "failed") if arguments.retry_failed else ("new", "resume")
        failed = [item.run.path for item in items if item.state == "failed"]
        lost = {path for path in failed if RunDir(path).lost_checkpoint()}
        todo = [item for item in items if item.state in states and item.run.path not in lost]
        left = 0 if arguments.retry_failed else len(failed) - len(lost)
        if left:
            are, them = ("is left as it is", "it") if left == 1 else ("are left as they are", "them")
            print(f"{counted(left, 'failed run')} {are}; --retry-failed starts {them} again")
        if lost:
            print(f"{counted(len(lost), 'failed run')} without checkpoint cannot go on; --runs ELSEWHERE starts anew")
        refused = bool(todo) and executor.describe(todo, dry_run=arguments.dry_run)
        if arguments.dry_run:
            print("dry run: nothing was started")
            return 1 if refused else 0
        if todo:
            executor.check()
        plan.write(sweep)
        for item in todo:
            run = item.run
            RunDir.create(
                run.path, run.config, preset=run.preset, variant=run.variant, question=run.question, suite=sweep.suite
            )
        if executor.submits and todo:
            return executor.start(todo, sweep.folder, sweep.suite)
    code = executor.start(todo, sweep.folder, sweep.suite) if todo else 0
    return code or (1 if left or lost else 0)


if __name__ == "__main__":
    sys.exit(main())
