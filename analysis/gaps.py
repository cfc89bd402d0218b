"""The first section of a report: which runs are there, and everything that is missing or wrong."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportIndexIssue=false
# (pandas' own annotations lose the type of every selection)

from __future__ import annotations

from collections import defaultdict

from analysis.content import Block, Cell, Listing, Matrix, Section, Text
from analysis.questions import series_label, split, task_label
from analysis.runs import PROBLEMS, Problem, Results, Run, sort_tasks


def gaps_section(results: Results) -> Section:
    """Return the section for one preset; it is there, and first, also when nothing is missing."""
    expected, planned = results.expected()
    runs = {(run.recorded, run.task, run.seed): run for run in results.runs}
    short = {problem.where for problem in results.problems if problem.kind == "short"}
    unusable = {(variant, task, seed) for _, variant, task, seed in results.unusable}
    states = {
        key: "unusable" if key in unusable else _state(runs.get(key), results.now, short) for key in sorted(expected)
    }
    done = sum(state == "done" for state in states.values())
    suites = sorted({plan.suite for plan in results.plans})
    basis = (
        f"expected by the plan{'s' * (len(suites) > 1)} of {', '.join(suites)}"
        if planned
        else "no plan file is there: expected is every seed of a variant on every task it was run on"
    )
    lead = f"<strong>{done} of {len(expected)}</strong> runs are done ({basis})."
    blocks: list[Block] = [_matrix(states)]
    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in results.problems:
        by_kind[problem.kind].append(problem)
    for kind in PROBLEMS:
        if problems := by_kind.get(kind):
            items = (
                _merged(problems)
                if kind in ("missing", "running", "stopped")
                else [(p.where, p.text) for p in problems]
            )
            blocks.append(Listing(f"{PROBLEMS[kind][0].upper()}{PROBLEMS[kind][1:]} ({len(problems)})", kind, items))
    if not by_kind:
        blocks.append(Text("Nothing is missing, failed, short, stale or run twice.", "good"))
    return Section("gaps", "What is here, and what is missing", blocks, lead)


def _state(run: Run | None, now: float, short: set[str]) -> str:
    if run is None:
        return "missing"
    return "short" if run.name in short else run.state(now)


def _matrix(states: dict[tuple[str, str, int], str]) -> Matrix:
    tasks = sort_tasks(task for _, task, _ in states)
    cells: dict[str, dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
    families: dict[str, set[str]] = defaultdict(set)
    for (variant, task, seed), state in states.items():
        name, changes = split(variant)
        # A grid of settings is one row: 320 rows of one dot would hide everything else.
        row = (
            f"{series_label(name)} + {', '.join(k.split('.')[-1] for k in changes)}"
            if len(changes) > 2
            else series_label(variant)
        )
        cells[row][task].append((seed, state))
        families[row].add(variant)
    order = sorted(cells, key=lambda row: ("base" not in families[row], min(families[row])))
    rows: list[tuple[str, list[Cell | None]]] = []
    for row in order:
        label = row if len(families[row]) == 1 else f"{row} ({len(families[row])} settings)"
        found = [Cell(tuple(sorted(cells[row][task]))) if cells[row].get(task) else None for task in tasks]
        rows.append((label, found))
    caption = (
        "One dot per run, by seed; a dot tells its seed and state when pointed at. Curves and tables use what is there "
        "and say how many seeds that is."
    )
    return Matrix("Runs", caption, [task_label(task) for task in tasks], rows)


def _merged(problems: list[Problem]) -> list[tuple[str, str]]:
    """Return one line per variant and task, the seeds listed together with what is said of them."""
    merged: dict[tuple[str, str], list[str]] = defaultdict(list)
    for problem in problems:
        place, seed = problem.where.rsplit("/seed_", 1)
        merged[(place, problem.text)].append(seed)
    return [(f"{place}/seed_{','.join(seeds)}", text) for (place, text), seeds in merged.items()]
