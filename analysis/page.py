"""Parts of a report -> files: figures, tables, and one self-contained index.html through jinja2.

The page needs no network: style, figures (inline SVG), pictures and the figures' CSV files are inside it. Links to the
other files beside it are relative.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from analysis import published, style
from analysis.content import Block, Fold, Part, Table, Tabs
from analysis.figures import Figure
from analysis.inline_svg import VARIABLES
from analysis.render import Rendered, render
from analysis.runs import Mapper, Results

MANIFEST = "report.json"
FIGURE_SUFFIXES = (".csv", ".png", ".svg", ".pdf")
MAX_EMBEDDED = 100_000
"""Characters of CSV up to which a figure carries its data inside the page."""
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Written:
    """A block with what the template needs beyond it."""

    kind: str
    block: Any
    anchor: str
    rendered: Rendered | None = None
    inner: tuple[Written, ...] = ()


def write(parts: Sequence[Part], results: Results, out: Path, *, mapper: Mapper = map) -> Path:
    """Write the whole report into `out` and return the path of its page.

    Files of an earlier report there that this one does not have are removed (report.json lists them).
    """
    out.mkdir(parents=True, exist_ok=True)
    _remove_earlier(out)
    single = len(parts) == 1
    folders = {part.preset: out if single else out / part.preset for part in parts}
    jobs = [
        (figure, folders[part.preset] / "figures", f"{part.preset}-{figure.name}")
        for part in parts for section in part.sections for figure in _figures(section.blocks)
    ]  # fmt: skip
    drawn = {id(figure): result for (figure, *_), result in zip(jobs, mapper(_render, jobs), strict=True)}
    files = [folder / f"{figure.name}{suffix}" for figure, folder, _ in jobs for suffix in FIGURE_SUFFIXES]
    prepared = []
    for part in parts:
        prefix = "" if single else f"{part.preset}-"
        sections = [
            (s, prefix + s.anchor, list(_blocks(s.blocks, folders[part.preset], prefix, drawn, files)))
            for s in part.sections
        ]
        prepared.append({"part": part, "anchor": f"preset-{part.preset}", "sections": sections})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"safe_html": Markup, "variable": lambda colour: f"var({VARIABLES[colour]})"}
    environment.globals |= {"data_uri": data_uri, "escape": html.escape, "max_embedded": MAX_EMBEDDED}
    text = environment.get_template("page.html").render(
        parts=prepared,
        results=results,
        css=Markup(stylesheet()),
        made=datetime.fromtimestamp(results.now, UTC).strftime("%-d %B %Y, %H:%M UTC"),
        summary=summary(results),
        citation=published.CITATION,
    )
    index = out / "index.html"
    index.write_text(text.lstrip())
    listed = [str(path.relative_to(out)) for path in [index, *files]]
    (out / MANIFEST).write_text(json.dumps({"files": listed}, indent=1) + "\n")
    return index


def _remove_earlier(out: Path) -> None:
    try:
        listed = json.loads((out / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return
    for name in listed:
        path = (out / name).resolve()
        if path.is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)


def _figures(blocks: Sequence[Block]) -> Iterator[Figure]:
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Fold):
            yield from _figures(block.blocks)
        elif isinstance(block, Tabs):
            yield from _figures([each for _, each in block.tabs])


def _render(job: tuple[Figure, Path, str]) -> Rendered:
    return render(*job)


def summary(results: Results) -> str:
    """Return the page's first sentence: how many runs of what."""
    runs = results.runs
    variants, tasks = {run.variant for run in runs}, {task for run in runs for task in run.tasks}
    seeds = {run.seed for run in runs}
    counts = [f"{len(runs)} runs", f"{len(variants)} variants", f"{len(tasks)} tasks", f"{len(seeds)} seeds"]
    words = [c if not c.startswith("1 ") else c[:-1] for c in counts]
    return f"{words[0]} of {words[1]} on {words[2]} with {words[3]}, beside the numbers the paper published."


def _blocks(
    blocks: Sequence[Block], folder: Path, prefix: str, drawn: dict[int, Rendered], files: list[Path]
) -> Iterator[Written]:
    for block in blocks:
        kind = type(block).__name__.lower()
        if isinstance(block, Figure):
            yield Written(kind, block, f"{prefix}figure-{block.name}", rendered=drawn[id(block)])
        elif isinstance(block, Table):
            files += write_table(block, folder / "tables")
            yield Written(kind, block, f"{prefix}table-{block.name}")
        elif isinstance(block, Tabs):
            each = [block for _, block in block.tabs]
            yield Written(kind, block, prefix + block.name, inner=tuple(_blocks(each, folder, prefix, drawn, files)))
        elif isinstance(block, Fold):
            yield Written(kind, block, "", inner=tuple(_blocks(block.blocks, folder, prefix, drawn, files)))
        else:
            yield Written(kind, block, "")


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write a table as CSV (full precision), Markdown and LaTeX (as shown) and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        ".csv": table.data.to_csv(index=False, float_format="%.10g"), ".md": table.markdown(), ".tex": table.latex()
    }  # fmt: skip
    for suffix, content in contents.items():
        (folder / f"{table.name}{suffix}").write_text(content)
    return [folder / f"{table.name}{suffix}" for suffix in contents]


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
