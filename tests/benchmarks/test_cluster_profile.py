import dataclasses
from pathlib import Path

import pytest

from benchmarks.executors import profile
from benchmarks.executors.profile import Profile

SLURM = Path(__file__).parents[2] / "slurm"


def written(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(text)
    return path


def test_without_a_file_a_profile_is_the_defaults():
    assert profile.load(None) == Profile()


def test_a_file_and_then_the_command_line_change_it(tmp_path):
    path = written(
        tmp_path, 'partition = "gpu"\ntime = 90\ngpus = "a100:2"\nsetup = ["module load cuda"]\nmps = true\n'
    )
    loaded = profile.load(path, {"time": "2-12", "runs_per_gpu": "4", "mem_gb_per_run": "7.5", "mps": "false"})

    assert loaded == Profile(
        partition="gpu", time="2-12", gpus="a100:2", setup=("module load cuda",), runs_per_gpu=4, mem_gb_per_run=7.5
    )


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ("module load cuda", ("module load cuda",)),
        ('["module load cuda", "sleep 12"]', ("module load cuda", "sleep 12")),
        ("[ -d /scratch ]", ("[ -d /scratch ]",)),
        ('[[ -d "$DIR" ]]', ('[[ -d "$DIR" ]]',)),
    ],
)
def test_set_up_lines_of_the_command_line_are_one_or_a_list(given, lines):
    assert profile.load(None, {"setup": given}).setup == lines


def test_a_list_of_the_command_line_that_is_not_of_strings_is_refused():
    with pytest.raises(ValueError, match=r"--cluster-set: setup must be a list of strings, got '\[12\]'"):
        profile.load(None, {"setup": "[12]"})


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ('gres = "gpu:a100:1"', {"gpus": "0"}, Profile(gpus="0")),
        ('gres = "gpu:a100:1"', {"gpus": "h100:2"}, Profile(gpus="h100:2")),
        ('gpus = "a100:2"', {"gres": "gpu:h100:1"}, Profile(gres="gpu:h100:1")),
        ('gpus = "a100:2"', {"gres": ""}, Profile(gpus="a100:2")),
        ('gres = "gpu:a100:1"', {"qos": "low"}, Profile(gres="gpu:a100:1", qos="low")),
    ],
)
def test_gpus_and_gres_of_the_command_line_take_the_place_of_each_other_in_the_file(tmp_path, text, changes, expected):
    assert profile.load(written(tmp_path, text), changes) == expected


def test_without_a_gpu_nothing_is_counted_in_gpus(tmp_path):
    path = written(tmp_path, 'gpus = "2"\nmem_per_gpu = "60G"\nmps = true\n')

    found = profile.load(path, {"gpus": "0"})
    assert (found.mem_per_gpu, found.mps) == ("", False)
    assert (profile.load(path).mem_per_gpu, profile.load(path).mps) == ("60G", True)


def test_gpus_and_gres_are_not_both_given_on_the_command_line_either():
    with pytest.raises(ValueError, match="--cluster-set: give gpus or gres, not both"):
        profile.load(None, {"gpus": "1", "gres": "gpu:1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partitio = "x"', r"no profile key 'partitio': known are partition, .*; perhaps partition"),
        ("cpus_per_run = 1.5", "cpus_per_run must be a whole number, got 1.5"),
        ("cpus_per_run = 0", "cpus_per_run must be at least 1, got 0"),
        ("mem_gb_per_run = inf", "mem_gb_per_run must be a number, got inf"),
        ("mem_gb_per_run = nan", "mem_gb_per_run must be a number, got nan"),
        ("cpus_per_run = inf", "cpus_per_run must be a whole number, got inf"),
        ("mps = 1", "mps must be true or false, got 1"),
        ("partition = true", "partition must be a string, got True"),
        ("setup = [1]", "setup must be a list of strings"),
        ("extra = 3", r"extra must be a table, \[extra\], got 3"),
        ('[extra]\noutput = "/dev/null"', "extra cannot have output: the launcher relies on what it sets itself"),
        ("[extra]\njob_name = 3", "extra cannot have job_name"),
        ("[extra.sub]\na = 1", "extra: sub must be a string, a number, or true for a bare flag, got {'a': 1}"),
        (
            "[extra]\nexclusive = false",
            "extra: exclusive must be a string, a number, or true for a bare flag, got False",
        ),
        ('[cpu.extra]\nsignal = "USR1"', r"\[cpu\]: extra cannot have signal"),
        ('time = "1h"', "time must be like '30' .*, got '1h'"),
        ('time = "00:00"', "time must be like"),
        ('gpus = "a100"', "gpus must be like '1' or 'a100:1', got 'a100'"),
        ('gpus = "1"\ngres = "gpu:1"', "give gpus or gres, not both"),
        ('mem_per_cpu = "4G"\nmem_gb_per_run = 4', "only one of mem_gb_per_run"),
        ("time = 1\nsignal_seconds = 60", "told to save before it has begun"),
        ("[cpu]\npartitio = 1", r"\[cpu\]: no profile key 'partitio'"),
        ("a = ", "is not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        profile.load(written(tmp_path, text))
    assert "site.toml" in str(caught.value)


def test_infinity_on_the_command_line_and_a_file_that_is_not_utf8_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--cluster-set: mem_gb_per_run must be a number, got 'inf'"):
        profile.load(None, {"mem_gb_per_run": "inf"})
    path = tmp_path / "site.toml"
    path.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ValueError, match="site.toml is not UTF-8: byte 0xe9 at position 5, line 1"):
        profile.load(path)


def test_a_missing_file_says_where_examples_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="examples are in slurm/"):
        profile.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("30", 30),
        ("30:30", 31),
        ("24:00:00", 1440),
        ("2-12", 3600),
        ("1-00:30", 1470),
        ("0-0:0:1", 1),
        ("1-1:1:1", 1502),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(time, minutes):
    assert profile.minutes(time) == minutes


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 1),
        ({"gpus": "0"}, 0),
        ({"gpus": "h100:4"}, 4),
        ({"gres": "gpu:a100:2"}, 2),
        ({"gres": "gpu"}, 1),
        ({"gres": "shard:3"}, 0),
    ],
)
def test_gpus_are_counted_in_every_spelling(changes, count):
    assert profile.num_gpus(Profile(**changes)) == count


def test_runs_without_a_gpu_ask_for_none_and_take_what_cpu_says():
    site = Profile(partition="gpu", gpus="a100:1", cpus_per_run=8, cpu={"partition": "standard", "cpus_per_run": 2})

    assert profile.for_cpu(site) == dataclasses.replace(site, partition="standard", gpus="0", cpus_per_run=2)


@pytest.mark.parametrize("path", sorted(SLURM.glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_profile_is_valid(path):
    assert profile.load(path) != Profile()


def test_the_readme_explains_every_key():
    text = (SLURM / "README.md").read_text()

    assert [f.name for f in dataclasses.fields(Profile) if f"`{f.name}`" not in text] == []
