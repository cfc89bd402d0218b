"""The arrows of the architecture point one way: data and model never meet below the program; claims read files only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = {
    "gl",
    "stopwatch",
    "camera",
    "held_out",
    "envs",
    "counting_env",
    "parallel_envs",
    "replay",
    "rollout",
    "episode_store",
}
DATA |= {"simulator_rewards", "simulator_score"}
MODEL = {
    "images",
    "convolutions",
    "networks",
    "rssm",
    "rssm_observe",
    "rssm_rollout",
    "fused",
    "fused_rollout",
    "triton_kernels",
    "fused_pictures",
    "triton_pictures",
    "ssm",
    "drnn",
    "transition",
    "state",
    "objective",
    "world_model",
    "cem",
}
SHARED = {"config", "tasks", "presets"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def planet_imports(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("planet.")}


@pytest.mark.parametrize("path", sorted((ROOT / "planet").glob("*.py")), ids=lambda p: p.stem)
def test_a_module_imports_only_from_its_own_group_and_below(path):
    group = next((g for g in (SHARED, DATA, MODEL) if path.stem in g), None)
    if group is None:
        return  # the program may import all of planet

    assert planet_imports(path) <= SHARED | group


@pytest.mark.parametrize("path", sorted((ROOT / "planet").glob("*.py")), ids=lambda p: p.stem)
def test_the_agent_knows_nothing_of_sweeps_and_figures(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("benchmarks", "analysis")}


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").glob("*.py")), ids=lambda p: p.stem)
def test_the_analysis_reads_files_only(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("planet", "benchmarks", "torch", "dm_control")}


def test_every_group_has_its_modules():
    stems = {path.stem for path in (ROOT / "planet").glob("*.py")}

    assert {"envs", "replay", "rollout"} <= DATA & stems
    assert {"rssm", "world_model", "cem"} <= MODEL & stems
