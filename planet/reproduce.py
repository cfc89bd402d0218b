"""`python -m planet.reproduce RUN_DIR`: print the commands that repeat a run; `--into DIR` makes the run to repeat it.

A repetition has the same configuration and seed, and what `auto` meant at the run's first start (precision, threads).
On the CPU, with the same code, package versions and kind of processor, it ends with equal files (wall times aside).
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planet import provenance
from planet.run_dir import RunDir, run_path

KEPT = ("precision", "threads")
"""What a repetition takes over from the first start; the rest of `resolved` says where it ran."""


def commands(run_dir: RunDir) -> list[str]:
    """Return the shell lines that repeat the run, in a clone of the repository; comments say what they cannot.

    The repetition goes to again/<preset>/<variant>/<task>/seed_<k>.

    Raises:
        FileNotFoundError, ValueError: not a run directory, or damaged.
    """
    record = run_dir.run()
    starts: list[Mapping[str, Any]] = record["starts"]
    made = starts[0] if starts else record
    names = (record["preset"], record["variant"], record["task"], record["seed"])
    again = run_path(Path("again"), *names)
    lines = [f"# {run_path(Path(), *names)}"]
    states = {(start["git"]["commit"], start["code_hash"]) for start in starts}
    if len(states) > 1:
        lines.append(
            f"# made by {len(states)} states of the code, one after the other: no single one repeats it exactly"
        )
    for start in starts[1:]:
        if start["changed"]:
            lines.append(f"# a restart changed {', '.join(start['changed'])}")
    # First: a checkout takes a run of results/ away, with its patches.
    path = shlex.quote(str(run_dir.path.absolute()))
    lines.append(f"python -m planet.reproduce {path} --into {shlex.quote(str(again))}")
    commit = made["git"]["commit"]
    if commit is None:
        lines.append(f"# the code was no git checkout; its hash is {made['code_hash']}")
    else:
        lines.append(f"git checkout {commit}")
    if made["git"]["dirty"]:
        patch = made.get("patch")
        lines.append(f"git apply {shlex.quote(str(again / patch))}" if patch else "# with changes that were not kept")
    # An index has no builds like 2.13.0+cpu under that name; the version without it takes the one that fits.
    pins = [
        f"{name}=={version.partition('+')[0]}"
        for name, version in made["versions"].items()
        if name != "python" and version
    ]
    builds = [f", {name} {version}" for name, version in made["versions"].items() if version and "+" in version]
    lines.append(f"pip install {' '.join(pins)}   # Python {made['versions']['python']}{''.join(builds)}")
    device = _device(made)
    lines.append(f"python -m planet.train {shlex.quote(str(again))}{device}")
    return lines


def _device(start: Mapping[str, Any]) -> str:
    if "processor" not in start:
        return ""
    names = sorted({gpu["name"] for gpu in start["gpus"]})
    used = start["resolved"].get("device", "")
    return f"   # it ran on {', '.join(names) if names and used.startswith('cuda') else start['processor']}"


def differences(run_dir: RunDir) -> list[str]:
    """Return in what this installation and machine differ from the run's first start."""
    record = run_dir.run()
    made = record["starts"][0] if record["starts"] else record
    here = {**provenance.of_code(), **provenance.of_machine()}
    found = []
    if here["code_hash"] != made["code_hash"]:
        found.append(f"code: {made['code_hash']} there, {here['code_hash']} here")
    for name, version in made["versions"].items():
        if here["versions"].get(name) != version:
            found.append(f"{name}: {version} there, {here['versions'].get(name)} here")
    if made.get("processor", here["processor"]) != here["processor"]:
        found.append(f"processor: {made['processor']} there, {here['processor']} here")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m planet.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, help="a run directory")
    parser.add_argument("--into", type=Path, metavar="DIR", help="make a new run directory that repeats it")
    arguments = parser.parse_args(argv)
    try:
        run_dir = RunDir.open(arguments.run_dir)
        if arguments.into is None:
            print("\n".join(commands(run_dir)))
        else:
            made = run_dir.repetition(arguments.into, KEPT)
            path = shlex.quote(os.fspath(made.path))
            if starts := len(made.run()["starts"]):
                was = "was" if starts == 1 else f"was {starts} times"
                print(f"# {path} is no new run: it {was} started before, and goes on where it stopped")
            print(f"python -m planet.train {path}")
        for difference in differences(run_dir):
            print(f"# differs here: {difference}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"planet.reproduce: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
