"""Where the runs come from: code, machine, versions and settings, one row per combination."""

from __future__ import annotations

import pandas as pd

from analysis.content import Block, Section, Table, Text
from analysis.questions import series_label
from analysis.runs import Results, Run

PACKAGES = ("python", "torch", "mujoco", "dm_control", "numpy")


def provenance_section(results: Results) -> Section | None:
    """Return which runs were made by which code on what, or None without runs."""
    if not results.runs:
        return None
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in results.runs:
        groups.setdefault(_origin(run), []).append(run)
    names = ("code", "machine", "precision", "pictures", "threads", "versions")
    rows, data = [], []
    for origin, runs in groups.items():
        series = list(dict.fromkeys(series_label(run.series) for run in runs))
        listed = ", ".join(series[:4]) + (f" and {len(series) - 4} more" if len(series) > 4 else "")
        rows.append({"runs": str(len(runs)), **dict(zip(names, origin, strict=True)), "variants": listed})
        data.append(
            {"runs": len(runs), **dict(zip(names, origin, strict=True)), "paths": " ".join(str(r.path) for r in runs)}
        )
    wrapped = {
        (i, column): "wrap"
        for i in range(len(rows))
        for column in ("code", "machine", "pictures", "versions", "variants")
    }
    caption = (
        "Runs are pooled over clean commits and machines; within a task never over presets, settings, precision, "
        "picture modes or uncommitted changes: such runs of one variant are drawn as separate curves. Tasks of a "
        "variant that differ in precision or length are pooled, and said with what is missing."
    )
    table = Table(
        "provenance", "Code, machines, versions", caption, pd.DataFrame(data), pd.DataFrame(rows), (*names, "variants"),
        classes=wrapped, stacked=True,
    )  # fmt: skip
    blocks: list[Block] = [table]
    clean = sorted({run.commits[-1][0] for run in results.runs if not run.code and run.commits[-1][0]})
    if len(clean) > 1:
        commits = ", ".join(f"<code>{commit[:7]}</code>" for commit in clean)
        blocks.append(Text(f"Runs of {len(clean)} clean commits are drawn together: {commits}.", "warning"))
    machines = sorted({run.device for run in results.runs})
    if len(machines) > 1:
        listed = "; ".join(machines)
        blocks.append(Text(f"Runs of {len(machines)} kinds of machine are drawn together: {listed}.", "warning"))
    renderers = sorted({run.renderer for run in results.runs} - {""})
    if len(renderers) > 1:
        listed = "; ".join(renderers)
        text = f"Runs whose pictures {len(renderers)} renderers drew are drawn together, and theirs differ: {listed}."
        blocks.append(Text(text, "warning"))
    return Section("provenance", "Where these runs come from", blocks)


def _origin(run: Run) -> tuple[str, ...]:
    start = run.starts[-1] if run.starts else run.record
    versions = start.get("versions") or {}
    commits = " → ".join(f"{commit[:7] or 'no commit'}{' + changes' if dirty else ''}" for commit, dirty in run.commits)
    return (
        commits,
        run.device,
        run.precision,
        ", ".join(filter(None, (run.picture, run.renderer))),
        run.resolved("threads", run.config["runtime"].get("threads", "")),
        ", ".join(f"{name} {versions[name]}" for name in PACKAGES if versions.get(name)),
    )
