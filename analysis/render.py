"""Figures -> files and markup. The only module that holds a matplotlib figure open.

Every figure becomes NAME.png, .svg, .pdf and .csv, and one inline SVG per panel for the page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import style
from analysis.figures import Figure, Key
from analysis.inline_svg import inline

PNG_DPI = 150
MIN_WIDTH = 4.8
"""Inches that a legend has at least."""
TITLE_LINE = 0.17
"""Inches of a panel's title for each line after the first."""
PNG: dict[str, Any] = {"compress_level": 4}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A figure as the page needs it."""

    figure: Figure
    panels: list[str]
    """Inline SVG, in order."""
    csv: str


def render(figure: Figure, folder: Path, prefix: str) -> Rendered:
    """Write the figure's four files into `folder` and return it for the page, its ids under `prefix`."""
    folder.mkdir(parents=True, exist_ok=True)
    csv = figure.data.to_csv(index=False, float_format="%.10g")
    (folder / f"{figure.name}.csv").write_text(csv)
    with plt.rc_context(style.MATPLOTLIB):
        canvas = _combined(figure)
        _save_png(canvas, folder / f"{figure.name}.png")
        canvas.savefig(folder / f"{figure.name}.svg", facecolor="white", metadata={"Date": None})
        canvas.savefig(folder / f"{figure.name}.pdf", facecolor="white", metadata={"CreationDate": None})
        plt.close(canvas)
        panels = [_panel(figure, i, prefix) for i in range(len(figure.panels))]
    return Rendered(figure, panels, csv)


def picture(figure: Figure, path: Path) -> None:
    """Write a figure's panels and legend as one PNG, nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(style.MATPLOTLIB):
        canvas = _combined(figure)
        _save_png(canvas, path)
        plt.close(canvas)


def _save_png(canvas: MatplotlibFigure, path: Path) -> None:
    canvas.savefig(path, dpi=PNG_DPI, facecolor="white", metadata={"Software": None}, pil_kwargs=PNG)


def _panel(figure: Figure, index: int, prefix: str) -> str:
    panel = figure.panels[index]
    width, height = figure.panel_size
    canvas = plt.figure(figsize=(width, height))
    left, bottom = figure.left / width, 0.44 / height
    axes = canvas.add_axes((left, bottom, 1 - left - 0.1 / width, 1 - bottom - 0.12 / height))
    panel.draw(axes)
    file = io.StringIO()
    canvas.savefig(file, format="svg", metadata={"Date": None})
    plt.close(canvas)
    return inline(file.getvalue(), f"{prefix}-{index}", panel.label or panel.title)


def _combined(figure: Figure) -> MatplotlibFigure:
    columns = min(figure.columns, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    width, height = figure.panel_size
    width = max(width, MIN_WIDTH / columns) if figure.keys else width
    canvas = plt.figure(figsize=(width * columns, height), facecolor="white")
    key_columns = _key_columns(canvas, figure.keys, columns)
    foot = 0.22 * -(-len(figure.keys) // key_columns) + (0.25 if figure.note else 0) + 0.12
    more = TITLE_LINE * max(panel.title.count("\n") for panel in figure.panels)
    total = (width * columns, (height + 0.3 + more) * rows + foot)
    canvas.set_size_inches(total)
    grid = canvas.add_gridspec(
        rows, columns, left=(figure.left + 0.07) / total[0], right=1 - 0.15 / total[0],
        top=1 - (0.32 + more) / total[1], bottom=(foot + 0.5) / total[1],
        wspace=(figure.left + 0.1) / (width - figure.left), hspace=0.78 / height + more / (height - 0.48),
    )  # fmt: skip
    for i, panel in enumerate(figure.panels):
        axes = canvas.add_subplot(grid[i // columns, i % columns])
        panel.draw(axes)
        axes.set_title(panel.title)
    if figure.keys:
        _legend(canvas, figure.keys, key_columns, (0.45 / total[0], (0.3 if figure.note else 0.05) / total[1]))
    if figure.note:
        canvas.text(0.55 / total[0], 0.1 / total[1], figure.note, color="#b3261e", fontsize=8.5, weight="bold")
    return canvas


def _legend(canvas: MatplotlibFigure, keys: Sequence[Key], columns: int, place: tuple[float, float]) -> Legend:
    return canvas.legend(
        handles=[_handle(key) for key in keys], loc="lower left", ncols=columns, bbox_to_anchor=place, fontsize=8.5,
        borderpad=0,
    )  # fmt: skip


def _key_columns(canvas: MatplotlibFigure, keys: Sequence[Key], most: int) -> int:
    """Return how many columns of the legend, at most `most`, fit the canvas' width."""
    for columns in range(most, 1, -1):
        legend = _legend(canvas, keys, columns, (0, 0))
        width = legend.get_window_extent().width
        legend.remove()
        if width <= canvas.bbox.width - 0.5 * canvas.dpi:
            return columns
    return 1


def _handle(key: Key) -> Line2D | Patch:
    if key.kind in ("band", "bar"):
        return Patch(facecolor=key.colour, alpha=0.8 if key.kind == "bar" else 0.3, label=key.label)
    if key.kind == "marker":
        return Line2D([], [], color=key.colour, marker="o", linestyle="", markersize=4, label=key.label)
    if key.kind == "diamond":
        return Line2D(
            [], [], markeredgecolor=key.colour, markerfacecolor="none", marker="D", linestyle="", label=key.label
        )
    if key.kind == "upright":
        return Line2D(
            [], [], color=key.colour, marker="|", linestyle="", markersize=9, markeredgewidth=1.6, label=key.label
        )
    width = {"step": 5, "thin": 1}.get(key.kind, 1.8)
    dashes: Any = {"dashed": "--", "dotted": ":"}.get(key.kind, "-")
    alpha = 0.5 if key.kind == "step" else 1
    return Line2D([], [], color=key.colour, linewidth=width, linestyle=dashes, alpha=alpha, label=key.label)
