"""Run directories -> one self-contained page, with every figure and table as files beside it.

`python analysis/report.py [runs/paper ...] [--suite fig8] [--out report/]`; without a folder: all of runs/. Works while
a suite is still running. Prints the path of the page. Exit code 2 where something could not be used, with the reason.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import page, published
from analysis.content import Part, Section
from analysis.curves import X_AXES
from analysis.gaps import gaps_section
from analysis.runs import BadInput, Results, load
from analysis.scores import curve_section, note_of, table1_section

DESCRIPTION = "Write one self-contained page, with every figure and table as files beside it, from run directories."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python analysis/report.py", description=DESCRIPTION)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of run directories (default: runs/)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where the report goes (default: report/)")
    parser.add_argument("--suite", help="only this suite's figure or variants, e.g. fig8")
    parser.add_argument("--x", choices=list(X_AXES), default="episode", help="x axis of the curves (default: episode)")
    arguments = parser.parse_args(argv)
    try:
        index, unusable = make_report(
            arguments.runs or [Path("runs")], arguments.out, suite=arguments.suite, x=arguments.x
        )
    except BadInput as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(index)
    for text in unusable:
        print(f"report: left out: {text}", file=sys.stderr)
    return 2 if unusable else 0


def make_report(
    folders: Sequence[Path], out: Path, *, suite: str | None = None, x: str = "episode", now: float | None = None
) -> tuple[Path, list[str]]:
    """Write the report and return the path of its page, and what had to be left out.

    Raises:
        BadInput: there is nothing to report on, or the suite is not known.
    """
    results = load(folders, suite=suite, now=now)
    if suite is not None:
        _check_suite(suite, results)
    unusable = [problem.text for problem in results.problems if problem.kind == "unusable"]
    if not results.runs and not results.plans:
        raise BadInput("no run can be used: " + "; ".join(unusable))
    parts = [part_of(results.of(preset), suite=suite, x=x) for preset in results.presets]
    return page.write(parts, results, out), unusable


def _check_suite(suite: str, results: Results) -> None:
    known = sorted({*published.FIGURES, "fig6", "fig12", "table1", *(plan.suite for plan in results.plans)})
    if suite not in known:
        close = difflib.get_close_matches(suite, known, n=1)
        hint = f"; perhaps {close[0]}" if close else ""
        raise BadInput(f"no suite {suite!r}: known here are {', '.join(known)}{hint}")


def part_of(results: Results, *, suite: str | None, x: str) -> Part:
    """Return the sections of one preset."""
    sections: list[Section | None] = [gaps_section(results)]
    figures = [f for f in published.FIGURES.values() if suite in (None, f.name, "table1", "dmc6")]
    for figure in figures:
        sections.append(curve_section(results, figure, x=x))
        if figure.name == "fig4" and suite in (None, "table1", "dmc6"):
            sections.append(table1_section(results))
    preset = results.presets[0]
    return Part(preset, [section for section in sections if section is not None], note_of(results))


if __name__ == "__main__":
    sys.exit(main())
