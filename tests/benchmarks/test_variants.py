"""Every ablation file resolves, changes exactly what it says, and mistakes in one are refused with a way out."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from benchmarks import suites, variants
from planet import presets, tasks
from planet.config import diff

SHIPPED = [name for name in variants.names() if name != "base"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_is_complete_and_changes_exactly_its_overrides(name: str) -> None:
    variant = variants.load(name)
    changed: dict[str, object] = {}
    for task in variant.task_names(tuple(tasks.TASKS)):
        base = presets.resolve(task)
        changed |= {key: new for key, (_, new) in diff(base, presets.resolve(task, ablation=variant.overrides)).items()}

    assert variant.title and variant.question.endswith("?")
    assert changed == dict(variant.overrides), "a key that never differs from the paper's value does not belong here"
    assert changed or variant.task in tasks.GROUPS


@pytest.mark.parametrize("preset", list(presets.PRESETS))
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_resolves_under_every_preset(name: str, preset: str) -> None:
    variant = variants.load(name)
    for task in variant.task_names(tuple(tasks.TASKS)):
        config = presets.resolve(task, preset=preset, ablation=variant.overrides)
        assert config.task == task


def test_each_shipped_file_is_in_a_suite() -> None:
    used = {name for suite in suites.SUITES.values() for name in suite.variants}
    assert used == set(variants.names())


def test_titles_tell_variants_apart() -> None:
    titles = [variants.load(name).title for name in variants.names()]
    assert len(set(titles)) == len(titles)


def test_readme_is_what_the_generator_writes() -> None:
    assert (variants.FOLDER / "README.md").read_text() == variants.readme(), "run python -m benchmarks.variants"


def test_no_torch_no_simulator_is_imported_to_plan() -> None:
    """Planning is a matter of names: every module named in the sources is the standard library's or light."""
    light = {"planet", "planet.config", "planet.presets", "planet.tasks", "benchmarks"}
    for module in (variants, suites):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name in light or name.split(".")[0] in sys.stdlib_module_names for name in found)


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_file_of_five_lines_is_a_variant(tmp_path: Path) -> None:
    path = write(tmp_path, 'title = "T"\nquestion = "Q?"\n\n[overrides]\nobjective.free_nats = 1.5\n')
    variant = variants.load(path)
    assert (variant.name, dict(variant.overrides)) == ("mine", {"objective.free_nats": 1.5})


@pytest.mark.parametrize(
    "overrides", ['"planner.horizon" = 6', "planner.horizon = 6", "[overrides.planner]\nhorizon = 6"]
)
def test_the_three_spellings_of_a_key_mean_the_same(tmp_path: Path, overrides: str) -> None:
    variant = variants.load(write(tmp_path, f'title = "T"\nquestion = "Q?"\n[overrides]\n{overrides}\n'))
    assert dict(variant.overrides) == {"planner.horizon": 6}


HEAD = 'title = "T"\nquestion = "Q?"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "[overrides]\nplanner.elite = 6\n", "planner.elites"),
        (HEAD + "[override]\nplanner.elites = 6\n", "perhaps overrides"),
        (HEAD + '[overrides]\nplanner.elites = "many"\n', "must be an integer"),
        (HEAD + "[overrides]\nplanner.elites = 5000\n", "must be in 1..planner.candidates"),
        (HEAD + "[overrides]\nseed = 5\n", "command line"),
        (
            HEAD + '[overrides]\nplanner.horizon = "6"\n',
            "must be an integer, got the string '6': write it without quotes",
        ),
        (HEAD + '[overrides]\nplanner.warm_start = "true"\n', "must be true or false, got the string 'true'"),
        (
            HEAD + '[overrides]\n"planner.horizon" = 6\n[overrides.planner]\nhorizon = 7\n',
            "planner.horizon is given twice, 6 and 7",
        ),
        (HEAD, "changes nothing"),
        ('title = "T"\n[overrides]\nplanner.horizon = 6\n', "lacks question"),
        ("title = 3\n", "must be a string"),
        (HEAD + "overrides = 3\n", "must be a table"),
        (HEAD + 'task = "dmc7"\n', "perhaps dmc6"),
        ("title == 3\n", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_is_refused_and_the_file_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        variants.load(path)
    assert path in str(caught.value)


def test_a_file_that_is_not_utf8_is_named_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'title = "caf\xe9"\n')
    with pytest.raises(ValueError, match=f"{path} is not UTF-8: byte 0xe9 at position 12, line 1; save it as UTF-8"):
        variants.load(str(path))


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(KeyError, match="perhaps overshooting"):
        variants.load("overshoting")
    with pytest.raises(FileNotFoundError, match="no ablation file"):
        variants.load("nowhere/mine.toml")


def test_an_own_file_may_not_take_a_shipped_name(tmp_path: Path) -> None:
    for name in ("elu.toml", "base.toml"):
        path = write(tmp_path, HEAD + "[overrides]\nplanner.horizon = 6\n", name)
        with pytest.raises(ValueError, match="choose another"):
            variants.load(path)


def test_a_name_that_is_no_plain_path_part_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "[overrides]\nplanner.horizon = 6\n", "a+b.toml")
    with pytest.raises(ValueError, match="name"):
        variants.load(path)
