"""Run directories -> one self-contained page, with every figure and table as files beside it.

`python analysis/report.py [runs/paper ...] [--suite fig8] [--out report/]`; without a folder: all of runs/. Works while
a suite is still running. Prints the path of the page. Exit code 2 where something could not be used, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd

# This checkout's code, whichever one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis import page, published
from analysis.ablation_tables import ablation_section
from analysis.content import Part, Section, Text
from analysis.curves import X_AXES
from analysis.diagnostics import diagnostics_section
from analysis.exchange import EXPORTS, overlay_section, read_overlay
from analysis.gaps import gaps_section
from analysis.multitask import multitask_section
from analysis.overall import overall_section
from analysis.planner_sweep import belongs, sweep_section
from analysis.predictions import predictions_section
from analysis.provenance_table import provenance_section
from analysis.questions import split
from analysis.runs import BadInput, Mapper, Plan, Results, load, variant_of, walk
from analysis.scores import curve_section, glance, table1_section, warning_of

MANY = 60
"""Runs from which a report is made by several processes."""
MAX_PROCESSES = 4
SUITE_VARIANTS = {
    "table1": {"base", "true_simulator"},
    "fig6": {"base", "multitask"},
    "fig10": {"base", "overshooting", "deterministic_official", "stochastic"},
    "fig11": {"base"},
}
DESCRIPTION = "Write one self-contained page, with every figure and table as files beside it, from run directories."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python analysis/report.py", description=DESCRIPTION)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of run directories (default: runs/)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where the report goes (default: report/)")
    parser.add_argument("--suite", help="only this suite's figure or variants, e.g. fig8")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these variants, e.g. base stochastic")
    parser.add_argument("--x", choices=list(X_AXES), default="episode", help="x axis of the curves (default: episode)")
    parser.add_argument(
        "--overlay", action="append", default=[], metavar="[LABEL:]PATH",
        help="draw other agents' scores: Dreamer's json(.gz), TD-MPC2's TASK.csv or a folder of them; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--export",
        action="append",
        default=[],
        choices=list(EXPORTS),
        help="also write our scores in this format; repeatable",
    )
    arguments = parser.parse_args(argv)
    try:
        index, unusable = make_report(
            arguments.runs or [Path("runs")], arguments.out, suite=arguments.suite,
            variants=arguments.variants, x=arguments.x, overlays=arguments.overlay, exports=arguments.export,
        )  # fmt: skip
    except BadInput as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(index)
    for text in unusable:
        print(f"report: left out: {text}", file=sys.stderr)
    return 2 if unusable else 0


def make_report(
    folders: Sequence[Path],
    out: Path,
    *,
    suite: str | None = None,
    variants: Sequence[str] | None = None,
    x: str = "episode",
    overlays: Sequence[str] = (),
    exports: Sequence[str] = (),
    now: float | None = None,
) -> tuple[Path, list[str]]:
    """Write the report and return the path of its page, and what had to be left out.

    Raises:
        BadInput: there is nothing to report on, nowhere to write it, a suite or variant is not known, or an overlay
            cannot be read.
    """
    _check_out(out)
    others = [read_overlay(text) for text in overlays]
    with spread(folders) as mapper:
        results = load(folders, suite=suite, now=now, mapper=mapper)
        if suite is not None:
            _check_suite(suite, results)
            results = _only(results, variants_of(suite, results))
        if variants is not None:
            _check_variants(variants, results)
            results = _only(results, set(variants))
        if not results.runs and not any(plan.runs for plan in results.plans):
            raise BadInput("no run can be used: " + ("; ".join(_unusable(results)) or "none is of what was asked for"))
        by_preset = [results.of(preset) for preset in results.presets]
        parts = [part_of(own, suite=suite, x=x, overlays=others) for own in by_preset]
        index = page.write(parts, results, out, mapper=mapper)
    for name in exports:
        folder = out / "export" / name
        folder.mkdir(parents=True, exist_ok=True)
        EXPORTS[name](results, folder)
    return index, list(dict.fromkeys(text for own in by_preset for text in _unusable(own)))


def _check_out(out: Path) -> None:
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"{there} is a file, so the report cannot go to {out}; name a folder with --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{there} cannot be written, so the report cannot go to {out}; name another folder with --out")


def _unusable(results: Results) -> list[str]:
    return [problem.text for problem in results.problems if problem.kind == "unusable"]


@contextlib.contextmanager
def spread(folders: Sequence[Path]) -> Iterator[Mapper]:
    """Give a `map` over two processes where there is much to do, the plain one otherwise (processes cost seconds)."""
    many = sum(1 for folder in folders for _ in itertools.islice(walk(folder), MANY)) >= MANY
    if not many or (os.cpu_count() or 1) < 2:
        yield map
        return
    workers = min(os.cpu_count() or 1, MAX_PROCESSES)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield functools.partial(pool.map, chunksize=4)


def _check_suite(suite: str, results: Results) -> None:
    known = sorted({*published.FIGURES, *SUITE_VARIANTS, "fig12", *(plan.suite for plan in results.plans)})
    if suite not in known:
        close = difflib.get_close_matches(suite, known, n=1)
        hint = f"; perhaps {close[0]}" if close else ""
        raise BadInput(f"no suite {suite!r}: known here are {', '.join(known)}{hint}")


def _check_variants(variants: Sequence[str], results: Results) -> None:
    recorded = {run.recorded for run in results.runs} | {v for plan in results.plans for v, _, _ in plan.runs}
    there = recorded | {variant_of(name) for name in recorded}
    for variant in variants:
        if variant not in there:
            close = difflib.get_close_matches(variant, sorted(there), n=1)
            hint = f"; perhaps {close[0]}" if close else ""
            known = ", ".join(sorted({split(name)[0] for name in there}))
            raise BadInput(f"no runs of a variant {variant!r} here: there are {known}{hint}")


def variants_of(suite: str, results: Results) -> set[str]:
    """Return the variants a suite is about: those of the paper's figure, or what its plan lists."""
    if suite == "fig12":
        return {run.variant for run in results.runs if belongs(run)}
    if suite in published.FIGURES:
        return set(published.FIGURES[suite].curves)
    return SUITE_VARIANTS.get(suite) or {v for plan in results.plans if plan.suite == suite for v, _, _ in plan.runs}


def _only(results: Results, variants: set[str]) -> Results:
    """Return the runs, plans and problems of some variants."""

    def meant(recorded: str) -> bool:
        return recorded in variants or variant_of(recorded) in variants

    return Results(
        results.folders,
        [run for run in results.runs if meant(run.recorded)],
        [Plan(p.suite, p.preset, [entry for entry in p.runs if meant(entry[0])]) for p in results.plans],
        # what could not be read may belong to any variant
        [problem for problem in results.problems if meant(problem.where.split("/")[0]) or problem.kind == "unusable"],
        results.now,
        [key for key in results.unusable if meant(key[1])],
    )


def part_of(results: Results, *, suite: str | None, x: str, overlays: Sequence[pd.DataFrame] = ()) -> Part:
    """Return the sections of one preset; with a suite, those it is about."""

    def wanted(*names: str) -> bool:
        return suite is None or suite in names

    figures = published.FIGURES
    general = suite not in (*figures, "fig6", "fig10", "fig11", "fig12", "table1")
    sections: list[Section | None] = []
    sections.append(curve_section(results, figures["fig4"], x=x) if general or wanted("fig4", "table1") else None)
    sections.append(table1_section(results) if general or wanted("table1") else None)
    sections.append(curve_section(results, figures["fig5"], x=x) if general or wanted("fig5") else None)
    sections.append(multitask_section(results) if general or wanted("fig6", "fig7") else None)
    for name in ("fig7", "fig8", "fig9"):
        sections.append(curve_section(results, figures[name], x=x) if general or wanted(name) else None)
    sections.append(overlay_section(results, overlays))
    if general or wanted(*figures, "fig6"):
        sections += [ablation_section(results), overall_section(results)]
    sections.append(sweep_section(results) if general or wanted("fig12") else None)
    sections.append(predictions_section(results) if general or wanted(*figures, "fig6", "fig10", "fig11") else None)
    sections += [diagnostics_section(results), provenance_section(results)]
    if suite in figures and not any(section and section.anchor == suite for section in sections):
        sections.insert(0, _nothing_for(suite))
    # What is missing is read first and written last: reading predictions may find more that is wrong.
    sections.insert(0, gaps_section(results))
    return Part(
        results.presets[0],
        [section for section in sections if section is not None],
        warning_of(results),
        glance(results),
    )


def _nothing_for(suite: str) -> Section:
    """Return the section of a figure that was asked for and has no runs of its own."""
    figure = published.FIGURES[suite]
    text = (
        f"No run of {', '.join(f'<code>{name}</code>' for name in sorted(figure.own))} is here, and these are what the "
        f"figure is about. <code>python benchmarks/launch.py --suite {suite}</code> makes them."
    )
    return Section(suite, f"{figure.number}: {figure.title.lower()}", [Text(text, "warning")])


if __name__ == "__main__":
    sys.exit(main())
