"""Parts of a report -> files: figures, tables, and one self-contained index.html through jinja2.

The page needs no network: style, figures (inline SVG), pictures and the figures' CSV files are inside it. Links to the
other files beside it are relative.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from analysis import published, style
from analysis.content import Block, Fold, Part, Table
from analysis.figures import Figure
from analysis.inline_svg import VARIABLES
from analysis.render import Rendered, render
from analysis.runs import Results

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Written:
    """A block with what the template needs beyond it."""

    kind: str
    block: Any
    anchor: str
    rendered: Rendered | None = None
    inner: tuple[Written, ...] = ()


def write(parts: Sequence[Part], results: Results, out: Path) -> Path:
    """Write the whole report into `out` and return the path of its page."""
    out.mkdir(parents=True, exist_ok=True)
    single = len(parts) == 1
    prepared = []
    for part in parts:
        folder = out if single else out / part.preset
        prefix = "" if single else f"{part.preset}-"
        sections = [(s, prefix + s.anchor, list(_blocks(s.blocks, folder, out, prefix))) for s in part.sections]
        prepared.append({"part": part, "anchor": f"preset-{part.preset}", "sections": sections})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"safe_html": Markup, "variable": lambda colour: f"var({VARIABLES[colour]})"}
    environment.globals |= {"data_uri": data_uri, "escape": html.escape}
    text = environment.get_template("page.html").render(
        parts=prepared,
        results=results,
        css=Markup(stylesheet()),
        made=datetime.fromtimestamp(results.now, UTC).strftime("%-d %B %Y, %H:%M UTC"),
        summary=summary(results),
        citation=published.CITATION,
    )
    index = out / "index.html"
    index.write_text(text)
    return index


def summary(results: Results) -> str:
    """Return the page's first sentence: how many runs of what."""
    runs = results.runs
    variants, tasks = {run.variant for run in runs}, {task for run in runs for task in run.tasks}
    seeds = {run.seed for run in runs}
    counts = [f"{len(runs)} runs", f"{len(variants)} variants", f"{len(tasks)} tasks", f"{len(seeds)} seeds"]
    words = [c if not c.startswith("1 ") else c[:-1] for c in counts]
    return f"{words[0]} of {words[1]} on {words[2]} with {words[3]}, beside the numbers the paper published."


def _blocks(blocks: Sequence[Block], folder: Path, out: Path, prefix: str) -> Iterator[Written]:
    for block in blocks:
        kind = type(block).__name__.lower()
        if isinstance(block, Figure):
            yield Written(kind, block, prefix + block.name, rendered=render(block, folder / "figures"))
        elif isinstance(block, Table):
            write_table(block, folder / "tables")
            yield Written(kind, block, prefix + block.name)
        elif isinstance(block, Fold):
            yield Written(kind, block, "", inner=tuple(_blocks(block.blocks, folder, out, prefix)))
        else:
            yield Written(kind, block, "")


def write_table(table: Table, folder: Path) -> None:
    """Write a table as CSV (full precision), Markdown and LaTeX (as shown)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table.name}.csv").write_text(table.data.to_csv(index=False, float_format="%.10g"))
    (folder / f"{table.name}.md").write_text(table.markdown())
    (folder / f"{table.name}.tex").write_text(table.latex())


def stylesheet() -> str:
    """Return the page's CSS with the figures' palette as variables for light and dark."""
    colours = {**style.PALETTE, **style.NEUTRALS}
    light = "".join(f"--{name}:{on_light};" for name, (on_light, _) in colours.items())
    both = "".join(f"--{name}:light-dark({on_light},{on_dark});" for name, (on_light, on_dark) in colours.items())
    return (TEMPLATES / "page.css").read_text().replace("/*PALETTE*/", light).replace("/*PALETTE-BOTH*/", both)


_TYPES = {".csv": "text/csv", ".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}


def data_uri(content: bytes | str | Path, suffix: str) -> str:
    """Return content, or a file's content, as a data: URI."""
    raw = (
        content.read_bytes() if isinstance(content, Path) else content.encode() if isinstance(content, str) else content
    )
    return f"data:{_TYPES[suffix]};base64,{base64.b64encode(raw).decode()}"
