from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planet.episode_store import CorruptEpisodeError, EpisodeStore
from planet.rollout import Episode


def random_episode(seed: int, steps: int = 6, action_size: int = 2) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        rng.integers(0, 256, (steps + 1, 3, 64, 64), np.uint8),
        rng.normal(size=(steps + 1, action_size)).astype(np.float32),
        rng.normal(size=steps + 1).astype(np.float32),
    )


def assert_equal(one: Episode, other: Episode) -> None:
    np.testing.assert_array_equal(one.obs, other.obs)
    np.testing.assert_array_equal(one.action, other.action)
    np.testing.assert_array_equal(one.reward, other.reward)


EPISODES = [random_episode(seed, steps=3 + seed) for seed in range(5)]
SMALL_SHARDS = 150_000  # two to three of these episodes


def filled(folder: Path) -> tuple[EpisodeStore, list[dict[str, int]]]:
    """A store of five episodes in several shards, and the positions before the first and after each."""
    store = EpisodeStore(folder, shard_bytes=SMALL_SHARDS)
    positions = [store.position()]
    for episode in EPISODES:
        store.append(episode)
        positions.append(store.position())
    return store, positions


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.episodes"))


def test_episodes_come_back_bit_for_bit_and_in_order(tmp_path: Path) -> None:
    store, _ = filled(tmp_path / "episodes")

    assert len(shards(tmp_path / "episodes")) > 1
    for reader in (store, EpisodeStore(tmp_path / "episodes")):
        for written, read in zip(EPISODES, reader.load(), strict=True):
            assert_equal(written, read)


def test_moving_pictures_are_compressed(tmp_path: Path) -> None:
    obs = np.zeros((51, 3, 64, 64), np.uint8)
    obs[:, :, 20:40] = np.random.default_rng(0).integers(0, 256, (3, 20, 64), np.uint8)  # a still, detailed part
    for t in range(51):
        obs[t, :, 50:55, t : t + 5] = 200  # and a moving square
    store = EpisodeStore(tmp_path)
    store.append(Episode(obs, np.zeros((51, 1), np.float32), np.zeros(51, np.float32)))

    assert store.position()["bytes"] < obs.nbytes / 25
    np.testing.assert_array_equal(next(store.load()).obs, obs)


def test_truncate_goes_back_to_any_position_and_appending_goes_on_from_there(tmp_path: Path) -> None:
    for kept in range(6):
        folder = tmp_path / str(kept)
        _, positions = filled(folder)
        position = json.loads(json.dumps(positions[kept]))  # as a checkpoint would keep it

        store = EpisodeStore(folder, shard_bytes=SMALL_SHARDS)
        store.truncate(position)

        assert store.position() == position
        assert sum(path.stat().st_size for path in shards(folder)) == sum(
            path.stat().st_size for path in shards(folder)[: position["shard"]]
        ) + (position["bytes"] if position["episodes"] else 0)
        new = random_episode(99)
        store.append(new)
        for written, read in zip([*EPISODES[:kept], new], EpisodeStore(folder).load(), strict=True):
            assert_equal(written, read)


def test_the_same_episodes_give_the_same_files_whether_or_not_the_run_was_interrupted(tmp_path: Path) -> None:
    filled(tmp_path / "unbroken")
    _, positions = filled(tmp_path / "broken")
    resumed = EpisodeStore(tmp_path / "broken", shard_bytes=SMALL_SHARDS)
    resumed.truncate(positions[2])
    for episode in EPISODES[2:]:
        resumed.append(episode)

    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in shards(folder)}

    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


def test_truncate_to_nothing_starts_over(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    store.truncate(None)

    assert list(store.load()) == []
    assert shards(tmp_path) == []
    assert store.position()["episodes"] == 0


def test_load_can_begin_later(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)

    for written, read in zip(EPISODES[3:], store.load(first=3), strict=True):
        assert_equal(written, read)


@pytest.mark.parametrize("missing_bytes", [1, 1_000, 30_000])
def test_a_torn_tail_is_no_episode_and_is_overwritten(tmp_path: Path, missing_bytes: int) -> None:
    filled(tmp_path)
    last = shards(tmp_path)[-1]
    os.truncate(last, last.stat().st_size - missing_bytes)

    store = EpisodeStore(tmp_path, shard_bytes=SMALL_SHARDS)
    assert store.position()["episodes"] == 4
    store.append(EPISODES[4])

    for written, read in zip(EPISODES, EpisodeStore(tmp_path).load(), strict=True):
        assert_equal(written, read)


def test_rubbish_beyond_the_position_is_dropped_by_truncate(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    position = store.position()
    with shards(tmp_path)[-1].open("ab") as file:
        file.write(bytes(50_000))  # what a power cut may leave
    (tmp_path / "000007.episodes").write_bytes(b"a shard of nobody")

    resumed = EpisodeStore(tmp_path)
    resumed.truncate(position)

    assert len(list(resumed.load())) == 5
    assert len(shards(tmp_path)) == position["shard"] + 1


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("offset", [0, 9, 17, 25, 30, 40, 20_000])
def test_any_flipped_bit_is_found_and_the_message_names_file_and_record(tmp_path: Path, offset: int) -> None:
    _, positions = filled(tmp_path)
    second = positions[1]["bytes"]  # where the second episode's record begins
    flip_byte(shards(tmp_path)[0], second + offset)

    resumed = EpisodeStore(tmp_path)
    resumed.truncate(positions[5])

    episodes = resumed.load()
    assert_equal(next(episodes), EPISODES[0])
    with pytest.raises(CorruptEpisodeError, match=rf"000000\.episodes, record at byte {second} \(episode 1\)"):
        next(episodes)


def test_a_store_shorter_than_the_checkpoint_is_an_error(tmp_path: Path) -> None:
    _, positions = filled(tmp_path)
    last = shards(tmp_path)[-1]
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(CorruptEpisodeError, match=r"but the checkpoint counts on \d+ \(5 episodes\)"):
        EpisodeStore(tmp_path).truncate(positions[5])

    last.unlink()
    with pytest.raises(CorruptEpisodeError, match="has 0 bytes"):
        EpisodeStore(tmp_path).truncate(positions[5])


def test_a_shard_lost_from_the_middle_is_an_error(tmp_path: Path) -> None:
    _, positions = filled(tmp_path)
    shards(tmp_path)[0].unlink()
    resumed = EpisodeStore(tmp_path)
    resumed.truncate(positions[5])

    with pytest.raises(CorruptEpisodeError, match="holds 0 episodes, but 5 were written"):
        list(resumed.load())


def test_a_store_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "000000.episodes").write_bytes(b"x" * 200)
    with pytest.raises(CorruptEpisodeError, match="header is damaged"):
        EpisodeStore(tmp_path).position()


def test_append_forces_the_record_and_a_new_name_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[tuple[int, int]] = []

    def record(handle: int) -> None:
        state = os.fstat(handle)
        forced.append((state.st_ino, state.st_size))

    monkeypatch.setattr(os, "fsync", record)
    store = EpisodeStore(tmp_path, shard_bytes=SMALL_SHARDS)
    for episode in EPISODES:
        store.append(episode)
        position = store.position()
        shard = shards(tmp_path)[position["shard"]].stat()

        assert (shard.st_ino, position["bytes"]) in forced  # all of the record, and nothing of it still in a buffer
    folder_syncs = sum(inode == tmp_path.stat().st_ino for inode, _ in forced)
    assert folder_syncs == len(shards(tmp_path))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from planet.episode_store import EpisodeStore
from planet.rollout import Episode

store = EpisodeStore(Path(sys.argv[1]), shard_bytes=1_000_000)
for number in range(10_000):
    obs = np.random.default_rng(number).integers(0, 256, (21, 3, 64, 64), np.uint8)
    store.append(Episode(obs, np.full((21, 1), number, np.float32), np.zeros(21, np.float32)))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [0, 3, 8])
def test_an_episode_that_append_returned_for_survives_kill_9(tmp_path: Path, after: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == after:
                writer.send_signal(signal.SIGKILL)
                break

    store = EpisodeStore(tmp_path)
    episodes = list(store.load())
    assert len(episodes) > after
    for number, episode in enumerate(episodes):
        assert (episode.action == number).all()
        np.testing.assert_array_equal(
            episode.obs, np.random.default_rng(number).integers(0, 256, (21, 3, 64, 64), np.uint8)
        )
