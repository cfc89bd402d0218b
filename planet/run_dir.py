"""The run directory, `format = 1`: every path in it and the format of every file that others read.

    runs/<preset>/<variant>/<task>/seed_<k>/
        config.toml     the complete configuration; the run reads only that
        run.json        identity, code, machine, and one entry per start
        episodes.jsonl  one row per episode            metrics.jsonl  one row per collection interval
        status.json     replaced atomically            log.txt        what the run said
        episodes/  checkpoints/  predictions/  videos/  strips/  lease/  patches/

It is the seam between sweep and program, and between program and claims. Standard library only, so that planning ten
thousand runs never imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planet import config as configs
from planet import provenance
from planet.config import Config

if TYPE_CHECKING:
    from planet.lease import Lease

FORMAT = 1

CHECKPOINT_FILES = ("latest.pt", "previous.pt")

STATES = ("running", "done", "failed", "stopped")
STATUS_FIELDS = (
    "state", "phase", "episode", "episodes_total", "env_steps", "agent_steps", "updates", "updates_total",
    "last_return", "last_eval", "evals_done", "evals_total", "episodes_per_hour", "eta_seconds", "wall_seconds",
    "restarts", "error", "traceback",
)  # fmt: skip
"""What a run may say of itself in status.json; format, heartbeat, pid and host are added on writing."""
_STATUS_TEXTS = ("state", "phase", "error", "traceback")

EPISODE_KINDS = ("seed", "train", "eval")
EPISODE_FIELDS: dict[str, tuple[type, ...]] = {
    "task": (str,), "kind": (str,), "episode": (int,), "env_steps": (int,), "agent_steps": (int,), "updates": (int,),
    "return": (int, float), "length": (int,), "env_seed": (int,), "wall_seconds": (int, float),
}  # fmt: skip
METRICS_FIELDS: dict[str, tuple[type, ...]] = {
    "updates": (int,), "env_steps": (int,), "wall_seconds": (int, float),
}  # fmt: skip
"""What every row of metrics.jsonl has; all other keys are numbers under the name of what was measured."""

_NULL = type(None)
_CODE_FIELDS: dict[str, tuple[type, ...]] = {"git": (dict,), "code_hash": (str,), "versions": (dict,)}
RUN_FIELDS: dict[str, tuple[type, ...]] = {
    "preset": (str,), "variant": (str,), "task": (str,), "seed": (int,), "question": (str,), "config_hash": (str,),
    "starts": (list,), **_CODE_FIELDS,
}  # fmt: skip
"""What every run.json has at least, beside its format."""
START_FIELDS: dict[str, tuple[type, ...]] = {
    "host": (str,), "processor": (str,), "gpus": (list,), "slurm": (dict,), "resolved": (dict,), "changed": (list,),
    **_CODE_FIELDS,
}  # fmt: skip
"""What every entry of its `starts` has at least."""


def run_path(runs: Path, preset: str, variant: str, task: str, seed: int) -> Path:
    """Return `runs/<preset>/<variant>/<task>/seed_<k>`."""
    return runs / preset / variant / task / f"seed_{seed}"


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Raises:
        OSError: naming the file and what to do, where the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise type(error)(
            error.errno,
            f"cannot write ({error.strerror}); free space, mend the permissions, or choose --runs",
            str(path),
        ) from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def writable_folder(folder: Path, advice: str) -> None:
    """Make the folder where there is none, and try whether files can be made in it: for root, modes do not tell.

    Raises:
        OSError: they cannot; the message names the folder and ends with the advice.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "a file has this name" if isinstance(error, FileExistsError) else error.strerror
        raise OSError(f"cannot write into {folder} ({why}); {advice}") from None


def read_json(path: Path, advice: str = "move it away and start the run again") -> dict[str, Any] | None:
    """Return a JSON file's object; None where there is no such file.

    Raises:
        ValueError: the file is damaged; the message names it and ends with the advice.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {advice}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}; {advice}")
    return value


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a `.jsonl` file and how many lines could not be read (a kill can tear the last one)."""
    rows: list[dict[str, Any]] = []
    broken = 0
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return rows, broken
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            broken += 1
    return rows, broken


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder. Nobody else joins these names."""

    path: Path

    @property
    def config_toml(self) -> Path:
        return self.path / "config.toml"

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def episodes_jsonl(self) -> Path:
        return self.path / "episodes.jsonl"

    @property
    def metrics_jsonl(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def status_json(self) -> Path:
        return self.path / "status.json"

    @property
    def log(self) -> Path:
        """What the run said, all starts one after the other."""
        return self.path / "log.txt"

    @property
    def output(self) -> Path:
        """Standard output and error of the process, where an executor catches them: what came before the log."""
        return self.path / "output.txt"

    @property
    def episodes(self) -> Path:
        return self.path / "episodes"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The model alone, small enough to be handed on (`python -m planet.checkpoint export`)."""
        return self.path / "weights.pt"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def strips(self) -> Path:
        return self.path / "strips"

    @property
    def lease(self) -> Path:
        return self.path / "lease"

    @property
    def patches(self) -> Path:
        """Uncommitted changes of the code, one file per state of the code, named in run.json."""
        return self.path / "patches"

    # ------------------------------------------------------------------ life

    @classmethod
    def create(
        cls,
        path: Path,
        config: Config,
        *,
        preset: str,
        variant: str,
        question: str = "",
        suite: str | None = None,
    ) -> RunDir:
        """Make the folder with config.toml and run.json; a folder that holds this very configuration is left as it is.

        Keys that are no part of a run's identity (`planet.config.NOT_IDENTITY`) are brought up to date in it.

        Raises:
            FileExistsError: another configuration is there; the message lists the keys that differ.
            OSError: the folder cannot be written.
        """
        run = cls(path)
        if run.run_json.exists():
            existing = cls.open(path)
            old = existing.config()
            if configs.identity_hash(old) != configs.identity_hash(config):
                changed = ", ".join(f"{key} {a!r} -> {b!r}" for key, (a, b) in configs.diff(old, config).items())
                raise FileExistsError(f"{path} holds another configuration ({changed}); choose --runs or remove it")
            if old != config:
                write_atomic(run.config_toml, configs.to_toml(config).encode())
            return existing
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(
                error.errno, f"cannot make the run directory ({error.strerror}); choose --runs", str(path)
            ) from error
        code = provenance.of_code()
        record = {
            "format": FORMAT,
            "preset": preset,
            "variant": variant,
            "task": config.task,
            "seed": config.seed,
            "question": question,
            "config_hash": configs.identity_hash(config),
            "created": time.time(),
            "git": {"commit": code["commit"], "dirty": code["dirty"]},
            "code_hash": code["code_hash"],
            "versions": code["versions"],
            "host": socket.gethostname(),
            "argv": sys.argv,
            "suite": suite,
            "starts": [],
        }
        # run.json last: where it is missing the folder was never finished, and is simply made again.
        write_atomic(run.config_toml, configs.to_toml(config).encode(), durable=False)
        write_atomic(run.run_json, _json(record), durable=False)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return an existing run directory.

        Raises:
            FileNotFoundError: no run directory, or one of its two files is missing. ValueError: damaged, or of another
                format.
        """
        run = cls(path)
        files = (run.run_json, run.config_toml)
        missing = [file.name for file in files if not file.exists()]
        if len(missing) == len(files):
            raise FileNotFoundError(
                f"{path} is no run directory (no run.json and config.toml); benchmarks/launch.py makes them"
            )
        if missing:
            raise FileNotFoundError(
                f"{path} lacks its {missing[0]}; bring it back from a copy, or move the run directory away to start "
                "over"
            )
        run.record()
        return run

    def config(self) -> Config:
        return configs.load(self.config_toml)

    def check_unchanged(self, config: Config) -> None:
        """Raise ValueError where config.toml, which `config` was read from, is not what the run was made with."""
        made = self.run()["config_hash"]
        if (found := configs.identity_hash(config)) != made:
            raise ValueError(
                f"{self.config_toml} is not what this run was made with (its hash is {found}, run.json has {made}): "
                "bring the old file back, or make another run: benchmarks/launch.py --set KEY=VALUE"
            )

    def record(self) -> dict[str, Any] | None:
        """Return run.json, or None where there is none.

        Raises:
            ValueError: damaged (a field is missing or of a wrong type), or of another format.
        """
        # Not this file alone: a folder without it would be taken for a new run.
        advice = f"bring it back from a copy, or move the run directory {self.path} away to start over"
        record = read_json(self.run_json, advice)
        if record is None:
            return None
        if record.get("format") != FORMAT:
            raise ValueError(f"{self.path} has format {record.get('format')!r}, this program reads {FORMAT}")
        try:
            _check_record(record)
        except ValueError as error:
            raise ValueError(f"{self.run_json} is damaged ({error}); {advice}") from None
        return record

    def run(self) -> dict[str, Any]:
        """Return run.json, which must be there."""
        record = self.record()
        if record is None:
            raise FileNotFoundError(f"{self.run_json} is missing")
        return record

    def status(self) -> dict[str, Any] | None:
        """Return status.json, or None for a run that never started.

        Raises:
            ValueError: damaged: a field is of a wrong type.
        """
        status = read_json(self.status_json)
        if status is None:
            return None
        types = {name: (str, _NULL) if name in _STATUS_TEXTS else (int, float, _NULL) for name in STATUS_FIELDS}
        try:
            _check_row(self.status_json.name, status, {name: types[name] for name in types if name in status})
        except ValueError as error:
            raise ValueError(f"{self.status_json} is damaged ({error}); move it away and start the run again") from None
        return status

    def lost_checkpoint(self) -> str | None:
        """Return what is wrong and what to do where a run has got on but has no checkpoint to go on from; else None.

        That is also an exported agent: its weights cannot be trained on, and a new run would hide them.
        A run killed before its first checkpoint is simply begun again. One that stopped in order has written one, and
        so has one with two rows from later than `runtime.checkpoint_seconds`.
        """
        if any((self.checkpoints / name).exists() for name in CHECKPOINT_FILES):
            return None
        if self.weights.exists():
            path = shlex.quote(str(self.path))
            return (
                f"{self.path} is an exported agent ({self.weights.name}, no checkpoint), which cannot be trained on; "
                f"python -m planet.evaluate {path} lets it act, and python -m planet.reproduce {path} --into DIR makes "
                "a run that trains it anew"
            )
        status = self.status() or {}
        if status.get("state") not in ("stopped", "done"):
            rows = read_jsonl(self.metrics_jsonl)[0]  # not the configuration first: it takes longer, and most have none
            if len(rows) < 2:
                return None
            then = [start.get("checkpoint_seconds", 0.0) for start in self.run()["starts"]]  # it may be changed since
            if rows[-2].get("wall_seconds", 0) <= max(self.config().runtime.checkpoint_seconds, *then, 0.0):
                return None
        at = f"episode {status.get('episode', '?')} of {status.get('episodes_total', '?')}"
        return (
            f"{self.path} is at {at}, but has no "
            f"checkpoint to go on from (a copy without {self.checkpoints.name}/?); bring that folder back, or move the "
            "run directory away to start over"
        )

    def repetition(self, into: Path, kept: Collection[str]) -> RunDir:
        """Make a folder to run this run again: its configuration, identity and patches, and no start yet.

        Its code is that of the first start. Of what that start decided it has what is `kept`. Files are copied as they
        are: they may be of another state of the code, which will read them. A repetition of this very run that is
        already there is returned as it is, its starts included.

        Raises:
            FileExistsError: this run itself or another one is there; the message says in what that differs.
            ValueError: what is there is damaged. OSError: the folder cannot be written.
        """
        if into.exists() and into.samefile(self.path):
            raise FileExistsError(f"{into} is the run itself; choose another folder for its repetition")
        made, config, record = RunDir(into), self.config_toml.read_bytes(), self.run()
        first = record["starts"][0] if record["starts"] else record
        resolved = {name: value for name, value in (record.pop("resolved", None) or {}).items() if name in kept}
        code = {name: first.get(name) for name in (*_CODE_FIELDS, "patch")}
        again = {**record, **code, "starts": [], **({"resolved": resolved} if resolved else {})}
        if made.run_json.exists():
            if differences := RunDir.open(into)._differences(config, again, kept):
                raise FileExistsError(
                    f"{into} holds another run ({', '.join(differences)}); choose another folder or remove it"
                )
            return made
        writable_folder(into, "choose another folder")
        if self.patches.is_dir():
            shutil.copytree(self.patches, made.patches, dirs_exist_ok=True)
        write_atomic(made.config_toml, config, durable=False)
        write_atomic(made.run_json, _json(again), durable=False)
        return made

    def _differences(self, config: bytes, record: Mapping[str, Any], kept: Collection[str]) -> list[str]:
        """Return in what this run is not the repetition that would have these files: `seed 1 -> 0`."""
        found, had = self.run(), self.resolved() or {}
        wanted = record.get("resolved", {})
        names = ("task", "seed", "variant", "preset", "code_hash", "patch")
        pairs = [(name, found.get(name), record.get(name)) for name in names]
        # What was left open is decided by the repetition's own first start.
        pairs += [(name, had.get(name), wanted.get(name)) for name in kept if name in wanted or not found["starts"]]
        texts = [f"{name} {there!r} -> {here!r}" for name, there, here in pairs if there != here]
        return [*texts, "its config.toml"] if self.config_toml.read_bytes() != config else texts

    # ------------------------------------------------------------------ starts

    def record_start(self, **resolved: Any) -> dict[str, Any]:
        """Add an entry to run.json's `starts` and return it: time, process, machine, code, and what `auto` became.

        The first start's `resolved` settings (device, precision, threads, picture, gl) hold for all later ones, see
        `resolved()`. An entry's `changed` lists what differs from the start before: `code`, `versions`, `processor`,
        `gpu`, or a resolved setting.
        """
        record = self.run()
        code = provenance.of_code()
        machine = provenance.of_machine()
        start = {
            "time": time.time(),
            "pid": os.getpid(),
            "argv": sys.argv,
            "git": {"commit": code["commit"], "dirty": code["dirty"]},
            "code_hash": code["code_hash"],
            "versions": code["versions"],
            "patch": self._save_patch(code["patch"]),
            "checkpoint_seconds": self.config().runtime.checkpoint_seconds,
            **machine,
            "resolved": resolved,
        }
        start["changed"] = _changes(record["starts"][-1], start) if record["starts"] else []
        if not record["starts"]:
            record["resolved"] = {**resolved, **record.get("resolved", {})}
        record["starts"].append(start)
        write_atomic(self.run_json, _json(record))
        return start

    def record_renderer(self, renderer: str) -> None:
        """Add to the last start what draws its pictures: a GPU's are not software's, so `changed` says `renderer` where
        another drew those of the start before."""
        record = self.run()
        *before, start = record["starts"]
        start["renderer"] = renderer
        if before and before[-1].get("renderer") not in (None, renderer):
            start["changed"].append("renderer")
        write_atomic(self.run_json, _json(record))

    def resolved(self) -> dict[str, Any] | None:
        """Return the settings the first start decided, or None before it."""
        return self.run().get("resolved")

    def _save_patch(self, patch: bytes | None) -> str | None:
        if not patch:
            return None
        self.patches.mkdir(exist_ok=True)
        name = f"{hashlib.sha256(patch).hexdigest()[:12]}.patch"
        write_atomic(self.patches / name, patch)
        return f"{self.patches.name}/{name}"

    # ------------------------------------------------------------------ status

    def write_status(self, fields: Mapping[str, Any]) -> None:
        """Replace status.json by exactly these fields, plus format, heartbeat (now), pid and host.

        Raises:
            ValueError: an unknown field or state, or a number that is not finite.
        """
        unknown = sorted(set(fields) - set(STATUS_FIELDS))
        if unknown:
            raise ValueError(f"status.json has no field {', '.join(unknown)}; it has {', '.join(STATUS_FIELDS)}")
        if fields.get("state") not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {fields.get('state')!r}")
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"status field {name} must be finite, got {value}; use null for unknown")
        own = {"format": FORMAT, "heartbeat": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
        write_atomic(self.status_json, _json({**own, **fields}), durable=fields["state"] != "running")


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    changed = []
    if before["code_hash"] != after["code_hash"]:
        changed.append("code")
    if before["versions"] != after["versions"]:
        changed.append("versions")
    if before["processor"] != after["processor"]:
        changed.append("processor")
    if _gpu_kinds(before) != _gpu_kinds(after):
        changed.append("gpu")
    old, new = before["resolved"], after["resolved"]
    return changed + [name for name in new if old.get(name) != new[name]]


def _gpu_kinds(start: Mapping[str, Any]) -> set[tuple[str, str]]:
    # Not the UUID: another card of the same kind computes the same.
    return {(gpu["name"], gpu["driver"]) for gpu in start["gpus"]}


class Recorder:
    """Writes a run's rows and status. Open files; `close()` it or use it as a context manager.

    Every append and status first asks the lease, where one is given, whether the run is still ours.
    """

    def __init__(self, run_dir: RunDir, lease: Lease | None = None) -> None:
        self._run = run_dir
        self._lease = lease
        self._files = {"episodes": _open_rows(run_dir.episodes_jsonl), "metrics": _open_rows(run_dir.metrics_jsonl)}
        status = run_dir.status() or {}
        self._status: dict[str, Any] = {name: status[name] for name in STATUS_FIELDS if name in status}

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def append_episode(self, row: Mapping[str, Any]) -> None:
        """Add one episode: exactly the keys of `EPISODE_FIELDS`, all finite.

        Raises:
            ValueError: a missing or unknown key, a wrong type, or a number that is not finite.
        """
        unknown = sorted(set(row) - set(EPISODE_FIELDS))
        if unknown:
            raise ValueError(f"episodes.jsonl has no key {', '.join(unknown)}; it has {', '.join(EPISODE_FIELDS)}")
        _check_row("episodes.jsonl", row, EPISODE_FIELDS)
        if row["kind"] not in EPISODE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(EPISODE_KINDS)}, got {row['kind']!r}")
        self._append("episodes", row)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one collection interval: the keys of `METRICS_FIELDS` and any number of named finite numbers.

        Raises:
            ValueError: a missing key, a value that is no number, or one that is not finite.
        """
        _check_row("metrics.jsonl", row, {**dict.fromkeys(row, (int, float)), **METRICS_FIELDS})
        self._append("metrics", row)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        self._check_lease()
        file = self._files[name]
        file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        file.flush()

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def positions(self) -> dict[str, int]:
        """Make all rows durable and return the length of each file in bytes: what a checkpoint remembers."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def truncate(self, positions: Mapping[str, int]) -> None:
        """Drop the rows beyond the checkpoint these positions are of; `{}`: drop all rows (no checkpoint).

        Raises:
            ValueError: a file is shorter than that: rows were lost, and resuming would leave a hole in the curve.
        """
        for name, file in self._files.items():
            wanted, length = positions.get(name, 0), file.seek(0, os.SEEK_END)
            if length < wanted:
                raise ValueError(
                    f"{self._run.path / (name + '.jsonl')} has {length} bytes, its checkpoint knows {wanted}: rows "
                    "were lost; restore the file or remove the run directory"
                )
            file.truncate(wanted)
            file.seek(wanted)

    def write_status(self, **fields: Any) -> None:
        """Replace status.json; fields not named keep what they were, also from before a restart.

        Raises:
            LeaseLost: the run was taken over; its status is the new owner's.
        """
        self._check_lease()
        self._status.update(fields)
        self._run.write_status(self._status)


def _open_rows(path: Path) -> BufferedRandom:
    path.touch()
    file = path.open("r+b")
    file.seek(0, os.SEEK_END)
    return file


def _check_record(record: Mapping[str, Any]) -> None:
    _check_row("run.json", record, RUN_FIELDS)
    _check_row("run.json", {"resolved": {}, **record}, {"resolved": (dict,)})
    for number, start in enumerate(record["starts"], 1):
        _check_row(f"start {number}", start, START_FIELDS)
        for gpu in start["gpus"]:
            _check_row(f"a GPU of start {number}", gpu, {"name": (str,), "driver": (str,)})
    for made in (record, *record["starts"]):
        _check_row("git", made["git"], {"commit": (str, _NULL), "dirty": (bool, _NULL)})
        _check_row("versions", made["versions"], {**dict.fromkeys(made["versions"], (str, _NULL)), "python": (str,)})


def _check_row(file: str, row: Any, fields: Mapping[str, tuple[type, ...]]) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{file} must be an object, got {row!r}")
    missing = [name for name in fields if name not in row]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}")
    for name, types in fields.items():
        value = row[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join("null" if t is _NULL else t.__name__ for t in types)
            raise ValueError(f"{name} of {file} must be {wanted}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} of {file} must be finite, got {value}")
