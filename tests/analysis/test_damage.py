"""Whatever is wrong with the files of one run, a report is made of the others and says which file and what."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic_runs import make_run, write_plan

from analysis.report import part_of
from analysis.runs import Results, load

NOW = 2_000_000_000.0
BAD = "smoke/base/cheetah_run/seed_1"
ODD = ["abc", "\ud800", -1, 10**30, float("nan"), None, {"a": 3}]
"""Half a letter, a number of no count, what no float can hold, and a value of every type JSON has."""
FILES = ("run.json", "config.toml", "status.json", "episodes.jsonl", "metrics.jsonl")

# What a report reads, with a value that each must not have.
USED = {
    "run.json": {
        "format": 2, "preset": 3, "variant": None, "task": ["a"], "seed": "abc", "git": 3, "starts": 3, "resolved": 3,
        "starts.0": "abc", "starts.0.git": [], "starts.0.git.dirty": "abc", "starts.0.versions": 3,
        "starts.0.processor": 3, "starts.0.gpus": {"a": 3}, "starts.0.changed": [3], "starts.0.cores": "two",
        "resolved.threads": "abc", "resolved.precision": 3,
    },
    "status.json": {
        "state": "sleeping", "heartbeat": "abc", "episode": "abc", "error": 3, "wall_seconds": 1e300,
        "episodes_per_hour": True,
    },
    "config.toml": {
        "task": 3, "seed": "abc", "env": 3, "model": 3, "schedule": "abc", "planner": [], "runtime": 3,
        "env.episode_env_steps": 0, "env.picture": 3, "planner.dynamics": "abc", "planner.horizon": "abc",
        "planner.candidates": 0, "schedule.train_episodes": float("nan"), "schedule.eval_points": 10**12,
        "schedule.seed_episodes": -1, "schedule.eval_episodes": 1.5, "objective.free_nats": "abc",
        "optimizer.clip_norm": [], "runtime.precision": 3, "model.stoch": [],
    },
    "episodes.jsonl": {
        "task": "walker_walk", "kind": "abc", "episode": 0.5, "env_steps": "abc", "updates": None,
        "return": float("inf"), "env_seed": -1, "wall_seconds": "abc",
    },
    "metrics.jsonl": {"episode": "abc", "loss": float("nan"), "kl": None, "grad_norm": {}, "train_seconds": True},
}  # fmt: skip


def read(path: Path) -> Any:
    """Return what is in a file; of rows, the last."""
    text = path.read_text()
    if path.suffix == ".toml":
        return tomllib.loads(text)
    return json.loads(text.splitlines()[-1] if path.suffix == ".jsonl" else text)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def put(path: Path, value: Any) -> None:
    if path.suffix == ".toml":
        path.write_text("".join(f"{key} = {toml(item)}\n" for key, item in value.items() if item is not None))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join([*path.read_text().splitlines()[:-1], json.dumps(value)]) + "\n")
    else:
        path.write_text(json.dumps(value))


def keys(value: object, prefix: str = "") -> Iterator[str]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield f"{prefix}{key}"
        yield from keys(item, f"{prefix}{key}.")


def damage(path: Path, key: str, *value: object) -> None:
    """Give one key of a file another value, or take it away where none is given."""
    whole = read(path)
    *outer, last = key.split(".")
    inner: Any = whole
    for part in outer:
        inner = inner[int(part) if isinstance(inner, list) else part]
    place: Any = int(last) if isinstance(inner, list) else last
    if value:
        inner[place] = value[0]
    else:
        del inner[place]
    put(path, whole)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished smoke runs, the second with all that a run can leave behind."""
    runs = tmp_path_factory.mktemp("good")
    for seed in (0, 1):
        run = make_run(runs, preset="smoke", seed=seed, heartbeat=NOW, returns=lambda episode, seed: [1.0, 3.0],
                       wall_seconds=7.0, episodes_per_hour=9.0)  # fmt: skip
    record = json.loads(run.run_json.read_text())
    record["starts"][0] |= {
        "gpus": [{"name": "a GPU", "driver": "1"}],
        "changed": ["code"],
        "argv": [],
        "versions": {"python": "3"},
    }
    record["starts"][0]["resolved"], record["argv"] = {}, []
    run.run_json.write_text(json.dumps(record))
    (run.predictions).mkdir(exist_ok=True)
    errors = {"task": "cheetah_run", "trained_episodes": 4, "episode": 0, "distance": [1, 2], "image_error": 0.1}
    pd.DataFrame(errors | {"reward_error": 0.1, "state_error": 0.1}).to_csv(run.predictions / "open_loop.csv")
    return runs


@pytest.fixture
def runs(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "runs")


def restore(good: Path, runs: Path, name: str) -> None:
    shutil.copy(good / BAD / name, runs / BAD / name)


def said_of(results: Results, path: Path) -> list[str]:
    return [problem.text for problem in results.problems if str(path) in problem.text]


@pytest.mark.parametrize("name", FILES)
def test_no_value_of_any_key_ends_a_report(good: Path, runs: Path, name: str) -> None:
    path = runs / BAD / name
    accepted: dict[str, object] = {}
    for key in keys(read(path)):
        for value in [(), *((odd,) for odd in ODD)]:
            restore(good, runs, name)
            damage(path, key, *value)

            results = load([path.parent], now=NOW)

            assert results.runs or said_of(results, path.parent), (key, value)
            if results.runs and value and not isinstance(value[0], dict | list):
                accepted[key] = value[0]
    restore(good, runs, name)
    for key, value in reversed(accepted.items()):  # what is inside first
        damage(path, key, value)
    results = load([runs], now=NOW)
    assert len(results.runs) == 2
    part_of(results, suite=None, x="episode")


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, used in USED.items() for key in used])
def test_what_is_read_and_wrong_is_said_with_file_value_and_what_is_expected(runs: Path, name: str, key: str) -> None:
    value = USED[name][key]
    damage(runs / BAD / name, key, value)

    results = load([runs], now=NOW)

    (text,) = said_of(results, runs / BAD / name)
    assert [run.seed for run in results.runs] == [0]
    shown = repr(value[0]) if key == "starts.0.changed" else repr(value)
    assert key.replace("starts.0", "starts[0]") in text and f" {shown}" in text
    assert ", which is not " in text or key == "format"


@pytest.mark.parametrize("key", ["seed", "starts", "env", "schedule.eval_points", "state", "return"])
def test_what_is_missing_is_named(runs: Path, key: str) -> None:
    name = next(name for name in FILES if key in keys(read(runs / BAD / name)) and (name, key) != ("run.json", "env"))
    damage(runs / BAD / name, key)

    (text,) = said_of(load([runs], now=NOW), runs / BAD / name)

    assert f"lacks {key}" in text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00\x01", b"[" * 100_000, None], ids=["empty", "binary", "deep", "half"]
)
def test_a_damaged_file_is_named(runs: Path, name: str, content: bytes | None) -> None:
    path = runs / BAD / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)

    results = load([runs], now=NOW)

    part_of(results, suite=None, x="episode")
    said = [problem for problem in results.problems if problem.where == "base/cheetah_run/seed_1"]
    assert said, results.problems
    assert path.suffix == ".jsonl" or str(path) in said[0].text


def test_another_runs_run_json_is_no_ones(runs: Path) -> None:
    damage(runs / BAD / "run.json", "seed", 2)

    (text,) = said_of(load([runs], now=NOW), runs / BAD / "run.json")

    assert "('cheetah_run', 2), where config.toml has ('cheetah_run', 1)" in text


@pytest.mark.parametrize("seed", ["abc", float("inf"), None, -1, {}])
def test_a_damaged_plan_is_named(runs: Path, seed: object) -> None:
    path = write_plan(runs, "smoke", "dmc6", [("base", "cheetah_run", 0)])
    damage(path, "runs.0.seed", seed)

    results = load([runs], now=NOW)

    assert len(results.runs) == 2 and not results.plans
    assert "launch.py writes it anew" in said_of(results, path)[0]


@pytest.mark.parametrize("value", ["abc", float("nan"), float("inf")])
def test_damaged_predictions_are_named_and_the_others_drawn(runs: Path, value: object) -> None:
    path = runs / BAD / "predictions/open_loop.csv"
    frame = pd.read_csv(path).astype(object)
    frame.loc[1, "distance"] = value
    frame.to_csv(path)
    (path.parent / "strip_cheetah_run_0.png").mkdir()

    results = load([runs], now=NOW)
    part_of(results, suite=None, x="episode")

    assert "no numbers" in said_of(results, path)[0]
