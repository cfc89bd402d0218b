"""Notes torch's version and the processor with every benchmark, and prints what each noted beside its times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from planet import hardware

hardware.keep_freed_memory()  # as every run does; the plain references gain by it, too

MACHINE = {"torch": torch.__version__, "processor": hardware.describe(torch.device("cpu"))["cpu"]}


@pytest.fixture(autouse=True)
def machine_is_noted(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "benchmark" in request.node.funcargs:  # not where the test was skipped before
        request.node.funcargs["benchmark"].extra_info.update(MACHINE)


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    noted = [b for b in config._benchmarksession.benchmarks if b.extra_info]
    if noted:
        terminalreporter.section(", ".join(f"{name} {value}" for name, value in MACHINE.items()))
    for benchmark in noted:
        facts = ", ".join(f"{name} {value}" for name, value in benchmark.extra_info.items() if name not in MACHINE)
        terminalreporter.write_line(f"{benchmark.name}: {facts}")
