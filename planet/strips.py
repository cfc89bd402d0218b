"""Pictures of what the model sees: film strips and short videos. Knows uint8 frames, nothing of models or runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

GAP = 2  # pixels between frames


def film_strip(
    rows: Sequence[UInt8[np.ndarray, "time 3 64 64"]], *, columns: Sequence[int], marks: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Return one picture: a row per video, a column per time in `columns`; a line is drawn before time `marks`."""
    size, background = 64, 255
    height = len(rows) * (size + GAP) - GAP
    width = len(columns) * (size + GAP) - GAP
    picture = np.full((height, width, 3), background, np.uint8)
    for i, video in enumerate(rows):
        for j, t in enumerate(columns):
            top, left = i * (size + GAP), j * (size + GAP)
            picture[top : top + size, left : left + size] = video[t].transpose(1, 2, 0)
    if marks is not None:
        later = [j for j, t in enumerate(columns) if t >= marks]
        if later and later[0] > 0:
            left = later[0] * (size + GAP) - GAP
            picture[:, left : left + GAP] = (213, 94, 0)  # vermilion: from here on the model sees no frames
    return picture


def difference(
    truth: UInt8[np.ndarray, "time 3 64 64"], prediction: UInt8[np.ndarray, "time 3 64 64"]
) -> UInt8[np.ndarray, "time 3 64 64"]:
    """Return the signed error around middle grey (half of it, so that it fits)."""
    return (128 + (prediction.astype(np.int16) - truth.astype(np.int16)) // 2).clip(0, 255).astype(np.uint8)


def write_png(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, optimize=True)


def write_gif(path: Path, video: UInt8[np.ndarray, "time 3 height width"], *, frames_per_second: float) -> None:
    """Write a looping GIF, enlarged to at least 128 pixels; rates above 50 drop frames (viewers cannot show more)."""
    stride = max(1, round(frames_per_second / 50))
    frames = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in video[::stride]]
    scale = max(1, round(128 / frames[0].height))
    frames = [f.resize((f.width * scale, f.height * scale), Image.Resampling.NEAREST) for f in frames]
    palette = [f.convert("P", palette=Image.Palette.ADAPTIVE, colors=128) for f in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    palette[0].save(
        path, save_all=True, append_images=palette[1:], duration=round(1000 * stride / frames_per_second), loop=0
    )
