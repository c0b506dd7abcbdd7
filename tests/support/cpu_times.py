"""A pytest plugin that adds up what each test costs: wall time, and CPU time of this process and of those it waited for.

``pytest -p tests.support.cpu_times --costliest 25`` prints the tests that cost the most CPU. Beside other load wall times say
nothing, CPU times still do. Setup and teardown count for the test that they are made for.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Generator
from typing import Any

import pytest


def cpu_s() -> float:
    """Seconds of CPU so far: this process and its children that have been waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


class CpuTimes:
    """What each test of this run has cost, by its node id."""

    def __init__(self, shown: int) -> None:
        self._shown = shown
        self._costs: dict[str, tuple[float, float]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        cpu, wall = cpu_s(), time.monotonic()
        try:
            return (yield)
        finally:
            self._costs[item.nodeid] = (cpu_s() - cpu, time.monotonic() - wall)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the costliest first."""
        terminalreporter.section(f"the {self._shown} costliest tests: CPU s, wall s")
        costliest = sorted(self._costs.items(), key=lambda cost: cost[1], reverse=True)[: self._shown]
        for name, (cpu, wall) in costliest:
            terminalreporter.write_line(f"{cpu:8.1f} {wall:8.1f}  {name}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costliest", type=int, default=25, help="how many tests to show by their CPU time")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CpuTimes(config.getoption("costliest")), "cpu-times-of-tests")
