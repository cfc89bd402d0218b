"""Prints what each benchmark noted beside its times, under pytest-benchmark's own table."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    noted = [b for b in config._benchmarksession.benchmarks if b.extra_info]
    if noted:
        terminalreporter.section("ratios")
    for benchmark in noted:
        facts = ", ".join(f"{name} {value}" for name, value in benchmark.extra_info.items())
        terminalreporter.write_line(f"{benchmark.name}: {facts}")
