"""The replay on a device holds and gives what the one in the machine's memory does."""

from typing import Any

import numpy as np
import pytest
import torch

from planet.device_replay import WORKING_MEMORY, DeviceReplay, make_replay
from planet.replay import Replay, memory_bytes
from planet.rollout import Episode

CPU = torch.device("cpu")
ROOM: dict[str, Any] = {"frames": 60, "episodes": 4, "action_size": 2}


def episode(seed: int, length: int) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        rng.integers(256, size=(length, 3, 64, 64), dtype=np.uint8),
        rng.random((length, 2), np.float32),
        rng.random(length, np.float32),
    )


def assert_same_chunks(device: torch.device) -> None:
    host, other = Replay(**ROOM), DeviceReplay(device, **ROOM)
    for seed, length in enumerate((12, 30, 18)):
        host.add(episode(seed, length))
        other.add(episode(seed, length))

    expected = host.sample(5, 7, np.random.default_rng(3))
    batch = other.sample(5, 7, np.random.default_rng(3))

    assert (other.num_episodes, other.num_frames) == (3, 60)
    assert batch.obs.device.type == device.type
    for name in ("obs", "action", "reward"):
        np.testing.assert_array_equal(getattr(batch, name).cpu().numpy(), getattr(expected, name))


def test_the_same_numbers_draw_the_same_chunks() -> None:
    assert_same_chunks(CPU)


@pytest.mark.gpu
def test_the_same_numbers_draw_the_same_chunks_on_a_gpu() -> None:
    assert_same_chunks(torch.device("cuda"))


def test_a_full_one_says_so() -> None:
    replay = DeviceReplay(CPU, **ROOM)
    replay.add(episode(0, 60))

    with pytest.raises(ValueError, match="the replay is full"):
        replay.add(episode(1, 2))


def test_it_is_used_where_a_gpu_has_room_for_it_and_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceReplay, "__init__", lambda self, device, **room: setattr(self, "given", str(device)))
    free = memory_bytes(ROOM["frames"], ROOM["action_size"]) + WORKING_MEMORY
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 60))

    fits = make_replay(torch.device("cuda:1"), **ROOM)

    assert isinstance(fits, DeviceReplay) and vars(fits) == {"given": "cuda:1"}
    assert isinstance(make_replay(CPU, **ROOM), Replay)
    free -= 1
    with pytest.warns(UserWarning, match="cuda:1 has 8.0 GiB free .* stays in the machine's memory"):
        assert isinstance(make_replay(torch.device("cuda:1"), **ROOM), Replay)
