"""README's examples run as they stand, and its links point at files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


def run(code: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_two_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.slow
def test_the_library_example_builds_the_papers_model_and_plans(tmp_path):
    printed = run(EXAMPLES[0], tmp_path)

    assert printed.startswith("5130220 tensor([")


@pytest.mark.slow
def test_the_own_environment_example_trains_and_acts(tmp_path):
    printed = run(EXAMPLES[1], tmp_path)

    assert "done in" in printed and "dot" in printed.split("done in")[1]
    assert len(list((tmp_path / "runs/smoke/base/dot/seed_0/videos").glob("evaluation_00004_dot_*.gif"))) == 3
    assert (tmp_path / "runs/smoke/base/dot/seed_0/checkpoints/latest.pt").exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_point_at_files(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b[a-z_]+\.py\b", README.split("## What is where")[1]))))
def test_the_file_map_names_files(name):
    assert any(list((ROOT / folder).rglob(name)) for folder in ("planet", "benchmarks", "analysis"))


@pytest.mark.parametrize("folder", ["planet", "benchmarks", "analysis"])
def test_the_file_map_names_every_file(folder):
    named = set(re.findall(r"\b[a-z_]+\.py\b", README.split("## What is where")[1]))

    assert {path.name for path in (ROOT / folder).glob("*.py")} - named <= {"__init__.py"}


@pytest.mark.parametrize(
    ("name", "path"), sorted(set(re.findall(r"\[`([A-Za-z_.]+)`\]\((planet/[a-z_]+\.py)\)", README)))
)
def test_the_table_paper_and_code_names_what_is_there(name, path):
    last = name.split(".")[-1]

    assert re.search(rf"(def|class) {last}\b", (ROOT / path).read_text())


def test_the_shipped_agent_is_the_only_model_in_results():
    (weights,) = (ROOT / "results").rglob("*.pt")

    assert f"planet.evaluate {weights.parent.relative_to(ROOT)}" in README


def test_the_benchmarks_with_a_limit_are_counted():
    rows = (ROOT / "results/speed/cpu.csv").read_text().splitlines()[1:]
    limited = [row for row in rows if not row.startswith(("test_checkpoint[", "test_episode[", "test_filter["))]

    assert f"all {len(limited)} benchmarks that have a limit" in README
    assert f"All {len(limited)} of the {len(rows)} benchmarks" in (ROOT / "results/speed/README.md").read_text()
