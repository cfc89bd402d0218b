"""From runs that are to be started to an executor that starts them. The executors are interchangeable.

`describe` says what would happen, `start` does it and returns the exit code. Launch and `status.py retry` share this.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks import cost
from benchmarks.executors import machine, queue
from benchmarks.executors.pool import Ended, last_line, worker_environment
from benchmarks.executors.profile import Profile, minutes, num_gpus
from benchmarks.plan import Item, Run, counted
from planet import presets
from planet.run_dir import RunDir
from planet.stop_signal import EXIT_STOPPED


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to run, as the command line says it."""

    executor: str = "auto"
    max_parallel: int | None = None
    runs_per_gpu: int | None = None
    profile: Profile
    profile_named: bool = False
    """A cluster profile, or a key of it, was given: this machine cannot honour it."""


def positive(text: str) -> int:
    """Return an option's number of runs; argparse says what is wrong with others."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


class Executor(Protocol):
    submits: bool
    """Whether `start` hands the runs on and returns at once; then planning and starting must not be interrupted by
    another launcher's (`queue.locked`)."""
    hardware: cost.Hardware
    """What one run gets to itself."""

    def describe(self, items: Sequence[Item], *, dry_run: bool) -> bool:
        """Print where and how the runs would be started, and what they cost; return whether a dry run finds a fault."""
        ...

    def check(self) -> None:
        """Raise ValueError where nothing can be started here and now: before anything is written."""
        ...

    def start(self, items: Sequence[Item], preset_folder: Path, suite: str) -> int:
        """Start the runs, whose directories exist; return the exit code.

        Raises:
            ValueError: not here and now; the message says why.
        """
        ...


def choose(options: Options, *, dry_run: bool) -> Executor:
    """Return the executor: `auto` is Slurm on a machine of a cluster, else this machine.

    Raises:
        ValueError: Slurm is asked for, or is to be expected here, and does not answer (a dry run needs none); or an
            option means nothing to the executor.
    """
    if options.executor in ("inline", "local") and options.profile_named:
        raise ValueError(f"--cluster and --cluster-set are for Slurm; --executor {options.executor} does not read them")
    if options.executor == "inline":
        if options.max_parallel is not None or options.runs_per_gpu is not None:
            raise ValueError("--executor inline executes one run at a time: leave out --max-parallel, --runs-per-gpu")
        return Inline()
    if options.executor == "local":
        return Local(options)
    there = queue.answers()
    if options.executor == "auto" and there is None and not options.profile_named:
        return Local(options)
    if not there and not dry_run:
        raise ValueError(
            "no Slurm controller answers here (sbatch, srun and `scontrol ping`); try again later, log in to the "
            "cluster, or choose --executor local"
        )
    return Slurm(options, there=bool(there))


def threads(run: Run, share: int) -> int:
    """Return how many threads a run computes with: those of its first start, else as configured, else its share."""
    if run.config.planner.dynamics == "latent":  # planning in the simulator is the same with any number
        resolved = (RunDir(run.path).record() or {}).get("resolved") or {}
        if resolved.get("threads"):
            return resolved["threads"]
    return run.config.runtime.threads or share


def show_cost(items: Sequence[Item], hardware: cost.Hardware, parallel: int | None) -> None:
    """Print what the runs will cost on such hardware; `parallel`: how many at a time, None: unknown."""
    hours = [cost.estimate(item.run.config, hardware).hours for item in items]
    text = f"estimated cost: {cost.text(sum(hours) / len(hours))} a run on one {hardware.name}"
    text += (
        f", {sum(hours):.0f} {hardware.unit} hours in all" if sum(hours) >= 1 else f", {cost.text(sum(hours))} in all"
    )
    if parallel is not None and len(items) > 1:
        text += f"; about {cost.text(max(sum(hours) / parallel, *hours))} with {parallel} at a time"
    print(text)


class Inline:
    submits = False

    def __init__(self) -> None:
        self.hardware = cost.GPU if machine.visible_gpus() else cost.core()

    def describe(self, items: Sequence[Item], *, dry_run: bool) -> bool:
        show_cost(items, self.hardware, 1)
        print("in this process, one after the other")
        return False

    def check(self) -> None:
        pass

    def start(self, items: Sequence[Item], preset_folder: Path, suite: str) -> int:
        from benchmarks.executors import inline

        return report(inline.execute([item.run.path for item in items]), len(items), preset_folder)


class Local:
    submits = False

    def __init__(self, options: Options) -> None:
        self.options = options
        self.gpus = machine.visible_gpus()
        if options.runs_per_gpu is not None and not self.gpus:
            raise ValueError("--runs-per-gpu: no GPU is visible here; --max-parallel says how many runs at a time")
        self.hardware = cost.GPU if self.gpus else cost.core()

    def _slots(self, items: Sequence[Item]) -> tuple[list[machine.Slot], str]:
        return machine.slots(
            [item.run.config for item in items],
            gpus=self.gpus,
            max_parallel=self.options.max_parallel,
            runs_per_gpu=self.options.runs_per_gpu or 1,
        )

    def describe(self, items: Sequence[Item], *, dry_run: bool) -> bool:
        slots, why = self._slots(items)
        show_cost(items, self.hardware, len(slots))
        share = int(slots[0].environment["OMP_NUM_THREADS"])
        *fewer, most = sorted({threads(item.run, share) for item in items})
        each = "".join(f"{number} or " for number in fewer) + counted(most, "thread")
        print(f"on this machine, {len(slots)} at a time ({why}), {each} each")
        learning = [item for item in items if item.run.config.planner.dynamics == "latent"]
        if not self.gpus and any(item.run.preset == "paper" for item in learning):
            quick = cost.text(cost.estimate(presets.resolve("cartpole_swingup", preset="quick"), self.hardware).hours)
            print(f"no GPU here, and paper size is made for one: --preset quick learns cartpole swingup in {quick}")
        return False

    def check(self) -> None:
        self._refuse_beside(machine.sweeps())

    def _refuse_beside(self, others: Sequence[machine.Sweep]) -> None:
        if others and self.options.max_parallel is None:
            raise ValueError(
                f"pid {others[0].pid} has a sweep at work on this machine, sized for all of it; nothing was started. "
                "Wait for it, or say how many runs shall go beside it: --max-parallel N"
            )

    def start(self, items: Sequence[Item], preset_folder: Path, suite: str) -> int:
        from benchmarks.executors import local

        with machine.at_work([item.run.path for item in items]) as others:
            self._refuse_beside(others)
            problem = preflight()
            if problem:
                print(f"launch.py: this machine cannot run it, nothing was started: {problem}", file=sys.stderr)
                return 1
            names = {item.run.path: item.run.name for item in items}
            ended = local.execute([*names], self._slots(items)[0], names=lambda path: names[path])
        return report(ended, len(items), preset_folder)


class Slurm:
    submits = True

    def __init__(self, options: Options, *, there: bool) -> None:
        changes = {
            name: value
            for name, value in (("max_parallel", options.max_parallel), ("runs_per_gpu", options.runs_per_gpu))
            if value is not None
        }
        self.profile = dataclasses.replace(options.profile, **changes)
        self.hardware = cost.GPU if num_gpus(self.profile) else cost.CPU_CORE
        self.there = there

    def describe(self, items: Sequence[Item], *, dry_run: bool) -> bool:
        from benchmarks.executors import slurm

        show_cost(items, self.hardware, None)
        batches = self._batches(items)
        for batch in batches:
            runs = sum(map(len, batch.packs))
            each = f", {max(map(len, batch.packs))} runs each" if runs > len(batch.packs) else ""
            jobs = counted(len(batch.packs), "job")
            limit = cost.text(minutes(batch.profile.time) / 60)
            print(f"on Slurm: {jobs}{each}; requeued after {limit} until its runs are done")
        if self.profile.max_parallel and len(batches) > 1:
            together = sum(min(batch.profile.max_parallel or len(batch.packs), len(batch.packs)) for batch in batches)
            print(f"max_parallel counts in each of {len(batches)} arrays: {counted(together, 'job')} at a time in all")
        if not dry_run:
            return False
        preset_folder, refused = items[0].run.path.parents[2], False
        for batch in batches:
            text = slurm.script(batch, preset_folder, "dry-run")
            print(f"\n{text}")
            if not self.there:
                print("no Slurm answers here: the script was not checked by one")
                continue
            accepted, said = slurm.ask_cluster(text)
            print(f"sbatch --test-only: {'accepted' if accepted else 'REFUSED'}: {said}")
            refused = refused or not accepted
        return refused

    def check(self) -> None:
        pass

    def _batches(self, items: Sequence[Item]):
        from benchmarks.executors import slurm

        preset_folder = items[0].run.path.parents[2]
        if "%" in str(preset_folder):
            raise ValueError(
                f"--runs must be a path without % for Slurm, which reads it as a pattern (%j, the job's number), got "
                f"{preset_folder.parent}; choose another"
            )
        return slurm.batches(items, self.profile, max_array=queue.max_array_size() if self.there else None)

    def start(self, items: Sequence[Item], preset_folder: Path, suite: str) -> int:
        from benchmarks.executors import slurm

        batches = self._batches(items)
        for i, batch in enumerate(batches):
            try:
                submission = slurm.submit(batch, preset_folder, suite)
            except slurm.SubmissionFailed as error:
                left = counted(sum(len(pack) for rest in batches[i:] for pack in rest.packs), "run")
                advice = f"{left} not submitted; the same command submits them once Slurm takes them"
                raise slurm.SubmissionFailed(f"{error}\n{advice}") from error
            jobs = submission.jobs
            span = jobs[0] if len(jobs) == 1 else f"{jobs[0]} to {jobs[-1]}"
            runs = counted(sum(map(len, batch.packs)), "run")
            print(f"submitted {runs} in {counted(len(jobs), 'job')}: {span} ({submission.name})")
        print(f"watch:  python benchmarks/status.py {shlex.quote(shown(preset_folder))} --watch")
        return 0


def shown(path: Path) -> str:
    """Return a path as a person would type it from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


PREFLIGHT = """
from planet import gl
gl.choose_backend()
from planet.config import EnvConfig
from planet.envs import make_env
from planet.tasks import TASKS
env = make_env(TASKS["cartpole_swingup"], EnvConfig())
env.reset(0)
env.close()
"""


def preflight() -> str | None:
    """Draw one frame in another process; return what is wrong (missing GL, packages that do not fit), or None."""
    done = subprocess.run(
        [sys.executable, "-c", PREFLIGHT], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env=worker_environment(),
    )  # fmt: skip
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"drawing a frame ended with exit code {done.returncode}"


def report(ended: Sequence[Ended], planned: int, preset_folder: Path) -> int:
    """Print how it went and return the exit code: 0 all done, 1 some failed, 75 stopped before the end."""
    counts = Counter(result.outcome for result in ended)
    left = planned - counts["done"] - counts["failed"] - counts["held"]
    print(", ".join(f"{counts[o]} {o}" for o in ("done", "failed", "stopped", "held") if counts[o]) or "none was begun")
    failed = [result for result in ended if result.outcome == "failed"]
    for result in failed[:20]:
        print(f"failed: {shown(result.path)}: {result.message or last_line(RunDir(result.path).output)}")
    if failed:
        print("launch.py --retry-failed starts failed runs again; status.py logs RUN shows all a run said")
    if left:
        are, they = ("is", "it") if left == 1 else ("are", "they")
        print(f"{counted(left, 'run')} {are} not finished: the same command goes on where {they} stopped")
        return EXIT_STOPPED
    return 1 if failed else 0
