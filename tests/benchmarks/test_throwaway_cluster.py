"""The throw-away cluster's own rules, without starting it; test_slurm_cluster.py starts it."""

import importlib.util
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = Path(__file__).parent / "test_slurm_cluster.py"


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:  # tmp_path is too long for sockets
        yield Path(name)


@pytest.fixture
def module():
    spec = importlib.util.spec_from_file_location("throwaway_cluster_alone", ROOT / "slurm" / "throwaway_cluster.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    yield found
    del sys.modules[spec.name]


def test_missing_programs_are_named(module, monkeypatch, folder):
    monkeypatch.setattr(module, "PATH", str(folder))

    assert module.missing_programs()[: len(module.PROGRAMS)] == list(module.PROGRAMS)
    with pytest.raises(RuntimeError, match=r"no cluster without munged, .*install_system_packages\.sh"):
        module.Cluster(folder).start()


def test_a_folder_too_deep_for_sockets_is_refused(module):
    with pytest.raises(ValueError, match="at most 60 characters"):
        module.Cluster(Path("/tmp") / ("x" * 60))


def test_ports_in_use_are_left_alone(module):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        assert not module._is_free(taken.getsockname()[1])


def test_stopping_what_never_ran_is_no_error(module, folder):
    module.Cluster(folder).stop()


@pytest.mark.parametrize(("states", "up"), [("idle mixed allocated", True), ("idle idle down", False)])
def test_a_cluster_with_jobs_is_up(module, monkeypatch, folder, states, up):
    asked = []
    cluster = module.Cluster(folder)
    monkeypatch.setattr(module, "missing_programs", list)
    for name in ("_start_munged", "start_node"):
        monkeypatch.setattr(module.Cluster, name, lambda *_: None)
    monkeypatch.setattr(module.Cluster, "_pid", lambda *_: 1)
    monkeypatch.setattr(module.Cluster, "configure", lambda *_: None)
    monkeypatch.setattr(module.Cluster, "states", lambda *_: states.split())
    monkeypatch.setattr(module.Cluster, "_wait", lambda _, what, ready: asked.append(ready()))
    cluster.start()

    assert asked == [up]


NO_SLURM = """
import importlib.util, pathlib, sys
import pytest
spec = importlib.util.spec_from_file_location("suite", {suite!r})
suite = importlib.util.module_from_spec(spec)
spec.loader.exec_module(suite)
original = suite.load_cluster

def without_slurm():
    module = original()
    module.PATH = "/nowhere"
    return module

suite.load_cluster = without_slurm
cluster = suite.cluster

def test_something(cluster):
    raise AssertionError("must not be reached")
"""


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_without_slurm_the_suite_skips_loudly_and_fails_where_it_is_required(tmp_path, required, outcome):
    (tmp_path / "test_probe.py").write_text(NO_SLURM.format(suite=str(SUITE)))
    words = ["-q", "-ra", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    env = {"PATH": "/usr/bin:/bin", "REQUIRE_SLURM": required}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], capture_output=True, text=True, timeout=120, check=False, env=env
    )

    assert outcome in done.stdout, done.stdout + done.stderr
    assert "THE CLUSTER TESTS DID NOT RUN: missing munged" in done.stdout
