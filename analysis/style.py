"""How figures look: one palette, one set of matplotlib settings. A variant has the same colour in every figure.

Colours are chosen for colour-blind readers (Okabe and Ito's set, darkened where it was too pale for lines on white).
The page replaces them by CSS variables (`analysis/inline_svg.py`), so each has a second value for dark backgrounds.
"""

from __future__ import annotations

import zlib
from typing import Any

INK, MUTED, GRID, PAPER = "#20242a", "#68707a", "#dfe3e8", "#8a929c"
"""Text and axes; secondary text; grid lines; the paper's own curves."""

PALETTE: dict[str, tuple[str, str]] = {
    "blue": ("#0a6bb0", "#5ab4f0"),
    "vermilion": ("#cf5200", "#ff8a4c"),
    "green": ("#00886a", "#3cc9a5"),
    "purple": ("#a8518f", "#e08fc8"),
    "amber": ("#b98200", "#f0b93a"),
    "sky": ("#3d93b8", "#8fd3f0"),
    "brown": ("#7d5a38", "#c9a27c"),
    "slate": ("#55607a", "#a5b1cf"),
}
"""Name -> (on light, on dark)."""

NEUTRALS: dict[str, tuple[str, str]] = {
    "ink": (INK, "#e4e7ea"),
    "muted": (MUTED, "#9aa3ad"),
    "grid": (GRID, "#343a41"),
    "paper": (PAPER, "#88919b"),
}

VARIANTS: dict[str, str] = {
    "base": "blue",
    "stochastic": "vermilion",
    "deterministic": "green",
    "deterministic_official": "brown",
    "random_collection": "amber",
    "random_shooting": "purple",
    "multitask": "vermilion",
    "overshooting": "sky",
    "drnn": "amber",
    "drnn_overshooting": "purple",
    "elu": "green",
    "stochastic_elu": "amber",
    "true_simulator": "slate",
}
"""Fixed colours, different wherever the paper draws variants in one figure."""

TASK_COLOURS: dict[str, str] = {
    "cartpole_swingup": "blue",
    "reacher_easy": "vermilion",
    "cheetah_run": "green",
    "finger_spin": "purple",
    "cup_catch": "amber",
    "walker_walk": "slate",
}

DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1.2, 1.2), (5, 1.5, 1.2, 1.5))

MATPLOTLIB: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "xtick.major.width": 0.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "planet",
    "pdf.fonttype": 42,
    "legend.frameon": False,
}


def colour(variant: str) -> str:
    """Return a variant's (or task's) colour on light ground: fixed, or derived from the name, never the order."""
    name = VARIANTS.get(variant) or TASK_COLOURS.get(variant)
    if name is None:
        family = variant.split("+")[0]
        names = [n for n in PALETTE if n != "blue"]
        name = VARIANTS.get(family) if variant != family else None
        name = name or names[zlib.crc32(variant.encode()) % len(names)]
    return PALETTE[name][0]


def dashes(series: str, variant: str) -> tuple[float, ...]:
    """Return the dash pattern: solid for a variant's only series; those split off differ in dashes, not in colour."""
    return () if series == variant else DASHES[1 + zlib.crc32(series.encode()) % (len(DASHES) - 1)]
