"""What a report consists of: sections of text, tables, figures and pictures. Plain data; knows no HTML and no files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis.figures import Figure


@dataclass(slots=True)
class Table:
    """`data` with full precision for the CSV; `shown` holds the same rows as the reader sees them, strings only."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    shown: pd.DataFrame
    text_columns: Sequence[str] = ()
    """Columns set flush left; all others are numbers, flush right."""
    emphasis: Sequence[int] = ()
    """Rows (by position) that are ours."""
    classes: dict[tuple[int, str], str] = field(default_factory=dict)
    """(row, column) -> CSS class of a cell, e.g. a verdict."""
    html: dict[tuple[int, str], str] = field(default_factory=dict)
    """(row, column) -> markup in place of the text, on the page only (small drawings)."""
    group: str = ""
    """A column whose repeated values are said once."""
    folded: bool = False
    """Long tables open on demand."""
    stacked: bool = False
    """On narrow screens every row becomes a card: for tables with sentences in them."""

    def markdown(self) -> str:
        """Return a GitHub table with the caption below."""

        def cell(value: object) -> str:
            return str(value).replace("|", "\\|").replace("\n", " ")

        head = "| " + " | ".join(map(cell, self.shown.columns)) + " |"
        rule = "|" + "|".join("---" if c in self.text_columns else "---:" for c in self.shown.columns) + "|"
        rows = ["| " + " | ".join(map(cell, row)) + " |" for row in self.shown.itertuples(index=False)]
        return "\n".join([f"**{self.title}**", "", head, rule, *rows, "", plain(self.caption)]) + "\n"

    def latex(self) -> str:
        """Return a booktabs table."""
        columns = "".join("l" if c in self.text_columns else "r" for c in self.shown.columns)
        lines = [
            "% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering",
            f"\\begin{{tabular}}{{{columns}}}", "\\toprule",
            " & ".join(f"\\textbf{{{_tex(c)}}}" for c in self.shown.columns) + " \\\\", "\\midrule",
        ]  # fmt: skip
        lines += [" & ".join(_tex(v) for v in row) + " \\\\" for row in self.shown.itertuples(index=False)]
        caption = _tex(f"{self.title}. {plain(self.caption)}")
        lines += [
            "\\bottomrule",
            "\\end{tabular}",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{self.name}}}",
            "\\end{table}",
        ]
        return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$",
    "–": "--", "—": "---", "≥": r"$\geq$", "≤": r"$\leq$", "·": r"$\cdot$", "<": r"$<$", ">": r"$>$", "→": r"$\to$",
    "Δ": r"$\Delta$",
}  # fmt: skip


def _tex(value: object) -> str:
    return "".join(_TEX.get(char, char) for char in str(value))


def plain(html: str) -> str:
    """Return the text of a caption without its markup."""
    text = re.sub(r"<[^>]+>", "", html)
    for entity, char in {"&lt;": "<", "&gt;": ">", "&nbsp;": " ", "&amp;": "&"}.items():
        text = text.replace(entity, char)
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph (HTML)."""

    html: str
    kind: str = "text"
    """text, warning or method"""


@dataclass(frozen=True, slots=True)
class Picture:
    path: Path
    alt: str
    caption: str


@dataclass(slots=True)
class Gallery:
    """Pictures that runs wrote (film strips, GIFs): embedded in the page."""

    title: str
    caption: str
    pictures: list[Picture]


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant on one task: the state of every run there should be."""

    seeds: tuple[tuple[int, str], ...]
    """(seed, state); states as in status.json, and `missing`, `stale`, `new`, `short`."""

    @property
    def done(self) -> int:
        return sum(state == "done" for _, state in self.seeds)


@dataclass(slots=True)
class Matrix:
    """Which runs are there: a dot per run."""

    title: str
    caption: str
    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]

    @property
    def states(self) -> list[str]:
        """Return the states that occur, for the legend: the good ones first."""
        order = ("done", "running", "new", "stopped", "short", "stale", "failed", "unusable", "missing")
        there = {state for _, cells in self.rows for cell in cells if cell for _, state in cell.seeds}
        return [state for state in order if state in there]


@dataclass(frozen=True, slots=True)
class Listing:
    """Problems of one kind, the place and what is wrong with it."""

    title: str
    kind: str
    items: list[tuple[str, str]]


@dataclass(slots=True)
class Fold:
    """Blocks shown on demand."""

    title: str
    blocks: list[Block]


@dataclass(slots=True)
class Tabs:
    """Blocks of which one is seen at a time; the first on paper."""

    name: str
    tabs: list[tuple[str, Block]]


Block = Text | Table | Figure | Gallery | Matrix | Listing | Fold | Tabs


@dataclass(slots=True)
class Section:
    anchor: str
    title: str
    blocks: list[Block]
    lead: str = ""
    """One sentence under the heading: what is found here (HTML)."""


@dataclass(slots=True)
class Part:
    """All of one preset: presets are never pooled."""

    preset: str
    sections: list[Section]
    warning: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    """(number, what it is): the part at a glance."""
