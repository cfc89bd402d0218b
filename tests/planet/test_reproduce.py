import json
import shlex
import shutil

import pytest

from planet import provenance, reproduce
from planet.presets import resolve
from planet.run_dir import RunDir

CODE = {**provenance.of_code(), "commit": "a" * 40, "dirty": False, "patch": b""}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "of_code", lambda: CODE)
    config = resolve("cheetah_run", preset="quick", changes={"planner.horizon": 5}, seed=3)
    made = RunDir.create(tmp_path / "seed_3", config, preset="quick", variant="base+planner.horizon=5", question="why?")
    made.record_start(device="cpu", precision="bfloat16", threads=2, picture="exact", gl="egl")
    return made


def test_the_commands_name_commit_versions_and_the_run(run):
    lines = reproduce.commands(run)

    again = "again/quick/base+planner.horizon=5/cheetah_run/seed_3"
    assert lines[0] == "# quick/base+planner.horizon=5/cheetah_run/seed_3"
    assert lines[1] == f"python -m planet.reproduce {run.path} --into {again}"  # before its folder may go
    assert lines[2] == "git checkout " + "a" * 40
    assert f"torch=={str(provenance.versions()['torch']).partition('+')[0]} " in lines[3]
    assert lines[4] == f"python -m planet.train {again}   # it ran on {provenance.processor()}"


def test_a_build_that_no_index_has_is_named_and_not_asked_for(tmp_path, monkeypatch):
    versions = {**CODE["versions"], "python": "3.11.7", "torch": "2.13.0+cu130"}
    monkeypatch.setattr(provenance, "of_code", lambda: {**CODE, "versions": versions})
    made = RunDir.create(tmp_path / "seed_3", resolve("cheetah_run"), preset="paper", variant="base")
    made.record_start()
    line = reproduce.commands(made)[3]

    assert "torch==2.13.0 " in line and line.endswith("# Python 3.11.7, torch 2.13.0+cu130")


def test_a_repetition_has_the_same_configuration_and_what_auto_meant(run, tmp_path):
    again = run.repetition(tmp_path / "again", reproduce.KEPT)

    assert again.config() == run.config()
    assert again.resolved() == {"precision": "bfloat16", "threads": 2}
    identity = ("preset", "variant", "task", "seed", "config_hash", "question")
    assert [again.run()[key] for key in identity] == [run.run()[key] for key in identity]
    assert again.status() is None and again.run()["starts"] == []


def test_a_configuration_that_another_state_of_the_code_wrote_is_repeated_as_it_is(run, tmp_path, capsys):
    run.config_toml.write_text('task = "cheetah_run"\nbefore = 1\n')

    assert reproduce.main([str(run.path), "--into", str(tmp_path / "x")]) == 0
    assert (tmp_path / "x/config.toml").read_bytes() == run.config_toml.read_bytes()


def test_another_run_is_not_written_over(run, tmp_path, capsys):
    other = RunDir.create(tmp_path / "other", resolve("walker_walk"), preset="paper", variant="base")

    assert reproduce.main([str(run.path), "--into", str(other.path)]) == 2
    assert "holds another run" in capsys.readouterr().err and other.config().task == "walker_walk"
    assert reproduce.main([str(run.path), "--into", str(tmp_path / "x")]) == 0
    assert reproduce.main([str(run.path), "--into", str(tmp_path / "x")]) == 0  # typed again


def test_a_run_is_not_its_own_repetition(run, tmp_path, capsys):
    (tmp_path / "link").symlink_to(run.path)

    for into in (run.path, tmp_path / "link"):
        assert reproduce.main([str(run.path), "--into", str(into)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and f"{into} is the run itself; choose another folder" in err


@pytest.mark.parametrize(
    ("change", "resolved", "what"),
    [
        ({}, {"precision": "float32"}, "precision 'bfloat16' -> 'float32'"),
        ({}, {"threads": 4}, "threads 2 -> 4"),
        ({"code_hash": "0" * 12}, {}, f"code_hash '{CODE['code_hash']}' -> '{'0' * 12}'"),
        ({"dirty": True, "patch": b"diff\n"}, {}, "patch None -> 'patches/"),
    ],
)
def test_a_run_with_other_settings_or_code_is_not_repeated_in_the_same_folder(
    run, tmp_path, monkeypatch, capsys, change, resolved, what
):
    # Planned with the same code, begun with another.
    other = RunDir.create(tmp_path / "other", run.config(), preset="quick", variant="base+planner.horizon=5")
    monkeypatch.setattr(provenance, "of_code", lambda: {**CODE, **change})
    other.record_start(**{"precision": "bfloat16", "threads": 2, **resolved})
    into = tmp_path / "x"
    assert reproduce.main([str(run.path), "--into", str(into)]) == 0
    before = (into / "run.json").read_bytes()

    for _ in range(2):
        assert reproduce.main([str(other.path), "--into", str(into)]) == 2
        error = capsys.readouterr().err
        assert f"{into} holds another run ({what}" in error and "config.toml" not in error
        assert (into / "run.json").read_bytes() == before
        RunDir(into).record_start(precision="bfloat16", threads=2)
        before = (into / "run.json").read_bytes()


@pytest.mark.parametrize(
    ("identity", "what"),
    [
        ({"seed": 4}, "seed 3 -> 4, its config.toml"),
        ({"variant": "other"}, "variant 'base' -> 'other'"),
        ({"preset": "paper"}, "preset 'quick' -> 'paper'"),
    ],
)
def test_a_run_of_another_identity_is_not_repeated_in_the_same_folder(run, tmp_path, monkeypatch, identity, what):
    asked = {"seed": 3, "variant": "base", "preset": "quick"}
    runs = []
    for name, of in (("a", asked), ("b", {**asked, **identity})):
        config = resolve("cheetah_run", preset="quick", seed=of["seed"])
        runs.append(RunDir.create(tmp_path / name, config, preset=of["preset"], variant=of["variant"]))
    runs[0].repetition(tmp_path / "x", reproduce.KEPT)

    with pytest.raises(FileExistsError) as caught:
        runs[1].repetition(tmp_path / "x", reproduce.KEPT)
    assert f"holds another run ({what}); choose another folder or remove it" in str(caught.value)


def test_a_repetition_that_was_started_is_not_called_new(run, tmp_path, capsys):
    unstarted = RunDir.create(tmp_path / "unstarted", run.config(), preset="quick", variant="base")
    for source in (run, unstarted):
        into = tmp_path / f"again {source.path.name}"
        command = f"python -m planet.train '{into}'\n"
        assert reproduce.main([str(source.path), "--into", str(into)]) == 0
        assert capsys.readouterr().out == command
        for times in ("was", "was 2 times"):
            RunDir(into).record_start(device="cpu", precision="float32", threads=1)
            assert reproduce.main([str(source.path), "--into", str(into)]) == 0
            told = f"# '{into}' is no new run: it {times} started before, and goes on where it stopped\n"
            assert capsys.readouterr().out == told + command


def test_a_repetition_has_the_code_of_the_first_start(run, tmp_path, monkeypatch):
    other = RunDir.create(tmp_path / "other", run.config(), preset="quick", variant="base")
    patched = {**CODE, "code_hash": "0" * 12, "dirty": True, "patch": b"diff\n"}
    monkeypatch.setattr(provenance, "of_code", lambda: patched)
    other.record_start(precision="bfloat16", threads=2)
    again = other.repetition(tmp_path / "again", reproduce.KEPT)

    assert again.run()["code_hash"] == "0" * 12
    assert [line for line in reproduce.commands(again) if "git" in line] == [
        line for line in reproduce.commands(other) if "git" in line
    ]


def test_a_folder_that_cannot_be_written_is_refused(run, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")

    assert reproduce.main([str(run.path), "--into", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == (
        f"planet.reproduce: cannot write into {tmp_path / 'file'} (a file has this name); choose another folder\n"
    )


def test_uncommitted_changes_come_with_their_patch_which_the_checkout_may_take_away(run, monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "of_code", lambda: {**CODE, "dirty": True, "patch": b"diff\n"})
    dirty = RunDir.create(tmp_path / "dirty run", run.config(), preset="quick", variant="base")
    dirty.record_start()
    monkeypatch.chdir(tmp_path)
    copy, checkout, patch = (shlex.split(line) for line in reproduce.commands(dirty)[1:4])

    assert (copy[:3], checkout[:2], patch[:2]) == (
        ["python", "-m", "planet.reproduce"],
        ["git", "checkout"],
        ["git", "apply"],
    )
    assert reproduce.main(copy[3:]) == 0
    shutil.rmtree(dirty.path)
    with open(patch[2], "rb") as file:
        assert file.read() == b"diff\n"


def test_a_run_made_by_two_states_of_the_code_says_so(run, monkeypatch):
    monkeypatch.setattr(provenance, "of_code", lambda: {**CODE, "code_hash": "0" * 12})
    run.record_start(device="cpu", precision="bfloat16", threads=2, picture="exact", gl="egl")
    text = "\n".join(reproduce.commands(run))

    assert "made by 2 states of the code" in text and "a restart changed code" in text


def test_differences_to_this_machine_are_named(run, monkeypatch):
    assert reproduce.differences(run) == []
    other = {**CODE, "code_hash": "0" * 12, "versions": {**CODE["versions"], "torch": "9.9"}}
    monkeypatch.setattr(provenance, "of_code", lambda: other)

    code, torch = reproduce.differences(run)
    assert code == f"code: {CODE['code_hash']} there, {'0' * 12} here"
    assert torch == f"torch: {CODE['versions']['torch']} there, 9.9 here"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"preset": None}, "run.json lacks preset"),
        ({"starts": 5}, "starts of run.json must be list, got 5"),
        ({"starts": [3]}, "start 1 must be an object, got 3"),
        ({"starts": [{}]}, "start 1 lacks host"),
        ({"git": {}}, "git lacks commit"),
        ({"versions": {"python": 3}}, "python of versions must be str, got 3"),
    ],
)
def test_an_incomplete_record_is_damage_that_is_named(run, capsys, tmp_path, changes, what):
    record = {key: value for key, value in {**run.run(), **changes}.items() if value is not None}
    run.run_json.write_text(json.dumps(record))

    for words in ([str(run.path)], [str(run.path), "--into", str(tmp_path / "x")]):
        assert reproduce.main(words) == 2
        error = capsys.readouterr().err
        assert f"{run.run_json} is damaged ({what}" in error and "bring it back from a copy" in error
    assert not (tmp_path / "x").exists()


def test_the_command_line(run, tmp_path, capsys):
    assert reproduce.main([str(run.path)]) == 0
    assert capsys.readouterr().out.splitlines() == reproduce.commands(run)
    assert reproduce.main([str(run.path), "--into", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out == f"python -m planet.train {tmp_path / 'x'}\n"
    assert RunDir.open(tmp_path / "x").config() == run.config()
    assert reproduce.main([str(tmp_path / "none")]) == 2
    assert "is no run directory" in capsys.readouterr().err
