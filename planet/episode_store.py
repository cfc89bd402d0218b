"""The replay's durable form: a folder of a few append-only files (shards) of compressed episodes.

Knows episodes and files. An episode is on disk when `append` returns; a kill at any moment can at most leave a torn
record behind the last complete one. A checkpoint keeps `position()`; a resumed run calls `truncate(position)` and reads
exactly the episodes of that checkpoint with `load()`.

A record is a header (magic, frames, action size, bytes and checksum of the body, checksum of the header) and a body:
action, reward, and the frames as zlib-compressed differences to the frame before (up to a third of the size of the
plain frames, and faster).
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from planet.rollout import Episode

_HEADER = struct.Struct("<8sIIQI")
_HEADER_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _HEADER_CHECKSUM.size
_MAGIC = b"planet\x00\x01"
_SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _Position:
    """Where the next record begins."""

    shard: int = 0
    bytes: int = 0
    episodes: int = 0


class CorruptEpisodeError(ValueError):
    """A record that is not what was written; the message names file and record."""


class EpisodeStore:
    """Append-only episodes in `folder`, which is made if need be. One writer at a time; readers may look on."""

    def __init__(self, folder: Path, *, shard_bytes: int = _SHARD_BYTES) -> None:
        """`shard_bytes`: a shard that has grown to this size is followed by a new one."""
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._end: _Position | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, episode: Episode) -> None:
        """Write an episode behind the last one and return when it is on disk (fsync)."""
        end = self._require_end()
        if end.bytes >= self._shard_bytes:
            end = _Position(end.shard + 1, 0, end.episodes)
        record = _encode(episode)
        path = self._shard(end.shard)
        with path.open("r+b" if path.exists() else "xb") as file:
            file.truncate(end.bytes)  # a torn record that a killed writer left
            file.seek(end.bytes)
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
        if end.bytes == 0:
            _sync_folder(self._folder)
        self._end = _Position(end.shard, end.bytes + len(record), end.episodes + 1)

    def position(self) -> dict[str, int]:
        """Return the end of the last complete episode: `{"shard", "bytes", "episodes"}`, fit for JSON.

        Raises:
            CorruptEpisodeError: no position is known yet and a header on the way is damaged.
        """
        return asdict(self._require_end())

    def truncate(self, position: Mapping[str, int] | None) -> None:
        """Drop everything beyond a position (None: everything), torn or whole.

        Raises:
            CorruptEpisodeError: the files end before the position: episodes of the checkpoint are gone.
        """
        end = _Position(**position) if position else _Position()
        path = self._shard(end.shard)
        size = path.stat().st_size if path.exists() else 0
        if size < end.bytes:
            raise CorruptEpisodeError(
                f"{path} has {size} bytes, but the checkpoint counts on {end.bytes} ({end.episodes} episodes); the "
                f"file was cut or lost: restore it, or remove the run directory and start the run again"
            )
        for later in self._folder.glob("*.episodes"):
            if int(later.stem) > end.shard or (int(later.stem) == end.shard and end.bytes == 0):
                later.unlink()
        if path.exists() and path.stat().st_size > end.bytes:
            with path.open("r+b") as file:
                file.truncate(end.bytes)
                os.fsync(file.fileno())
        _sync_folder(self._folder)
        self._end = end

    def load(self, first: int = 0) -> Iterator[Episode]:
        """Yield the episodes up to the position, in order, from number `first` on (earlier ones are not unpacked).

        Raises:
            CorruptEpisodeError: a record whose checksum is wrong, or that is cut short.
        """
        end = self._require_end()
        for number, path, offset, header in self._headers(end):
            if number >= first:
                with path.open("rb") as file:
                    file.seek(offset + _HEADER_BYTES)
                    yield _decode(
                        header, file.read(header.body_bytes), f"{path}, record at byte {offset} (episode {number})"
                    )

    def _require_end(self) -> _Position:
        if self._end is None:
            self._end = _Position()
            for number, path, offset, header in self._headers(None):
                self._end = _Position(int(path.stem), offset + _HEADER_BYTES + header.body_bytes, number + 1)
        return self._end

    def _headers(self, end: _Position | None) -> Iterator[tuple[int, Path, int, _Header]]:
        """Yield (episode number, file, byte offset, header) of each record up to `end`, or of each complete one."""
        number, shard = 0, 0
        while (path := self._shard(shard)).exists() and (end is None or shard <= end.shard):
            size = path.stat().st_size
            stop = end.bytes if end is not None and shard == end.shard else size
            offset = 0
            with path.open("rb") as file:
                while offset < stop:
                    torn = end is None and not self._shard(shard + 1).exists()
                    where = f"{path}, record at byte {offset} (episode {number})"
                    header = _read_header(file, offset, where, size, may_be_torn=torn)
                    if header is None:
                        return
                    yield number, path, offset, header
                    offset += _HEADER_BYTES + header.body_bytes
                    number += 1
            shard += 1
        if end is not None and number != end.episodes:
            raise CorruptEpisodeError(f"{self._folder} holds {number} episodes, but {end.episodes} were written")

    def _shard(self, number: int) -> Path:
        return self._folder / f"{number:06d}.episodes"


@dataclass(frozen=True, slots=True)
class _Header:
    frames: int
    action_size: int
    body_bytes: int
    body_checksum: int


def _read_header(file: BinaryIO, offset: int, where: str, size: int, *, may_be_torn: bool) -> _Header | None:
    """Return the header at `offset`; None if the file ends before its record does and that may be."""
    file.seek(offset)
    raw = file.read(_HEADER_BYTES)
    complete = len(raw) == _HEADER_BYTES
    if complete:
        if _HEADER_CHECKSUM.unpack(raw[_HEADER.size :])[0] != zlib.crc32(raw[: _HEADER.size]):
            raise CorruptEpisodeError(f"{where}: the header is damaged; restore the file, or start the run again")
        magic, frames, action_size, body_bytes, checksum = _HEADER.unpack(raw[: _HEADER.size])
        if magic != _MAGIC:
            raise CorruptEpisodeError(f"{where}: not a record of this version (magic {magic!r}, expected {_MAGIC!r})")
        if offset + _HEADER_BYTES + body_bytes <= size:
            return _Header(frames, action_size, body_bytes, checksum)
    if may_be_torn:
        return None
    raise CorruptEpisodeError(f"{where}: the file ends at byte {size}, before the record does")


def _encode(episode: Episode) -> bytes:
    difference = episode.obs.copy()
    difference[1:] -= episode.obs[:-1]  # modulo 256
    pictures = zlib.compress(difference.tobytes(), level=1)
    body = episode.action.astype("<f4").tobytes() + episode.reward.astype("<f4").tobytes() + pictures
    frames, action_size = episode.action.shape
    header = _HEADER.pack(_MAGIC, frames, action_size, len(body), zlib.crc32(body))
    return header + _HEADER_CHECKSUM.pack(zlib.crc32(header)) + body


def _decode(header: _Header, body: bytes, where: str) -> Episode:
    if zlib.crc32(body) != header.body_checksum:
        raise CorruptEpisodeError(f"{where}: the checksum is wrong; restore the file, or start the run again")
    frames, size = header.frames, header.action_size
    action = np.frombuffer(body, "<f4", frames * size).reshape(frames, size)
    reward = np.frombuffer(body, "<f4", frames, offset=action.nbytes)
    pictures = zlib.decompress(memoryview(body)[action.nbytes + reward.nbytes :])
    obs = np.frombuffer(bytearray(pictures), np.uint8).reshape(frames, 3, 64, 64)
    for before, picture in itertools.pairwise(obs):
        picture += before  # modulo 256 undoes the difference; row by row, many times faster than np.cumsum
    return Episode(obs, action.astype(np.float32), reward.astype(np.float32))


def _sync_folder(folder: Path) -> None:
    """Make new and removed names durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
