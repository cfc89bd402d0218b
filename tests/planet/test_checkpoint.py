import pytest
import torch

from planet import checkpoint
from planet.checkpoint import CheckpointError


def content(value: int) -> dict:
    return {
        "weights": {"w": torch.full((3,), float(value))},
        "progress": {"updates": value, "row_due": True, "x": None},
    }


def test_nothing_saved_is_none(tmp_path):
    assert checkpoint.load(tmp_path) is None


def test_a_round_trip_keeps_values_and_the_previous_one(tmp_path):
    checkpoint.save(tmp_path, content(1))
    checkpoint.save(tmp_path, content(2))

    loaded = checkpoint.load(tmp_path)

    assert loaded is not None and loaded["progress"] == {"updates": 2, "row_due": True, "x": None}
    assert torch.equal(loaded["weights"]["w"], torch.full((3,), 2.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.pt", "previous.pt"]


def test_a_damaged_latest_falls_back_to_the_previous(tmp_path):
    checkpoint.save(tmp_path, content(1))
    path = checkpoint.save(tmp_path, content(2))
    path.write_bytes(path.read_bytes()[:100])

    loaded = checkpoint.load(tmp_path)

    assert loaded is not None and loaded["progress"]["updates"] == 1


def test_a_kill_between_the_renames_leaves_the_previous(tmp_path):
    path = checkpoint.save(tmp_path, content(1))
    path.rename(tmp_path / "previous.pt")
    (tmp_path / "partial.pt").write_bytes(b"half")

    loaded = checkpoint.load(tmp_path)

    assert loaded is not None and loaded["progress"]["updates"] == 1


def test_only_damaged_files_is_an_error_that_names_them(tmp_path):
    checkpoint.save(tmp_path, content(1)).write_bytes(b"nonsense")

    with pytest.raises(CheckpointError, match="latest.pt"):
        checkpoint.load(tmp_path)
