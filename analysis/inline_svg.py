"""Matplotlib's SVG -> markup that can stand inside a page many times, in light and in dark.

Drops what a page does not need (XML header, metadata, unused ids), keeps ids unique, and turns the palette's colours
into CSS variables, text into the page's own font.
"""

from __future__ import annotations

import re

from analysis.style import NEUTRALS, PALETTE

VARIABLES = {light: f"--{name}" for name, (light, _) in {**PALETTE, **NEUTRALS}.items()}


def inline(svg: str, prefix: str, label: str) -> str:
    """Return the `<svg>` element with ids under `prefix` and `label` read out to those who cannot see it."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'xlink:href="#', f'href="#{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    for hex_colour, variable in VARIABLES.items():
        body = body.replace(hex_colour, f"var({variable})")
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", body)
    body = re.sub(r"<g>\s*</g>", "", body)
    # Coordinates to a hundredth of a point: inside tags only, the numbers between them are what readers read.
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(-?\d+\.\d{2})\d+", r"\1", tag[0]), body)
    body = re.sub(r"\s*\n\s*", " ", body)
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None, "matplotlib writes a viewBox"
    start = body.index(">") + 1
    escaped = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{escaped}">{body[start:].strip()}'
