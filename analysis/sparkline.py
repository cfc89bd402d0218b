"""Word-sized drawings for table cells: a line over a run, a bar of shares. Inline SVG by hand: hundreds on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

WIDTH, HEIGHT = 96, 20


def sparkline(
    x: Sequence[float],
    y: Sequence[float],
    *,
    x_max: float,
    low: float | None = None,
    high: float | None = None,
    rule: float | None = None,
    marks: Sequence[float] = (),
    title: str = "",
) -> str:
    """Return a line of y over 0..x_max; `rule` is a reference level, `marks` are ticks on the x axis (restarts)."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(a) and np.isfinite(b)]
    if not pairs:
        return ""
    values = [b for _, b in pairs] + ([rule] if rule is not None else [])
    bottom = min(values) if low is None else low
    top = max(values) if high is None else high
    span, reach = (top - bottom) or 1.0, x_max or 1.0

    def place(a: float, b: float) -> str:
        return f"{a / reach * WIDTH:.1f},{HEIGHT - 2 - (min(max(b, bottom), top) - bottom) / span * (HEIGHT - 4):.1f}"

    parts = [f'<polyline points="{" ".join(place(a, b) for a, b in pairs)}"/>']
    if rule is not None:
        height = place(0, rule).split(",")[1]
        parts.insert(0, f'<path class="rule" d="M0 {height}H{WIDTH}"/>')
    parts += [f'<path class="mark" d="M{mark / reach * WIDTH:.1f} {HEIGHT - 5}V{HEIGHT}"/>' for mark in marks]
    return _svg("".join(parts), title)


def thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `points` points: means of equally many neighbours."""
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def shares(parts: Mapping[str, float], colours: Mapping[str, str], title: str) -> str:
    """Return one bar cut into the parts' shares; `colours` are CSS values."""
    total = sum(parts.values())
    if total <= 0:
        return ""
    pieces, left = [], 0.0
    for name, value in parts.items():
        width = value / total * WIDTH
        pieces.append(f'<rect x="{left:.1f}" y="5" width="{width:.1f}" height="10" fill="{colours[name]}"/>')
        left += width
    return _svg("".join(pieces), title)


def _svg(drawn: str, title: str) -> str:
    label = f"<title>{title}</title>" if title else ""
    return f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">{label}{drawn}</svg>'
