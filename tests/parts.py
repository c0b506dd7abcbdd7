"""The parts of the test suite: what runs in each, what it may cost, and how they run beside one another.

``python -m tests.parts`` runs the parts of ``make test``, ``python -m tests.parts --long`` those of ``make long``, and names
after it only these. Each part prints what it has to say when it has ended; at the end a table says what each took: CPU
seconds, which other load on the machine hardly changes, and seconds by the clock, which it does. Ends with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
LOGS = PROJECT / "build" / "tests"
PYCACHE = PROJECT / "build" / "pycache"
END_S = 10
"""How long a part may take to end after Ctrl-C."""
JOBS = 3
"""Parts at a time: on two cores one more than these, for the first two mostly wait."""
AGAIN_MAX = 30
"""So many tests of a part that failed beside the other parts are run once more, when nothing else runs, and named."""
WALL_S_MAX = 600
"""What ``make test`` may take, on two idle cores."""
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)
SUMMARY = re.compile(r"^=* ?(\d+ \w+.*) in [\d.]+s\b", re.MULTILINE)
PYTEST = (sys.executable, "-m", "pytest", "-p", "tests.support.cpu_times", "--costliest", "15")
TRACED = (sys.executable, "-m", "coverage", "run", "-m", "pytest", *PYTEST[3:])
PURE = tuple(f"tests/{where}" for where in (
    "property", "scenarios", "unit/tq_node/cluster", "unit/tq_node/partition", "unit/tq_node/raft",
))  # fmt: skip
"""Tests whose coverage is measured: those of the pure rooms that aim at something. The tracer costs three times the time of
what it follows, so the seeded worlds of ``tests/simulation`` run without it, and count for no line.
"""
CHAOS = "tests/chaos"
CALM = tuple(f"tests/{where}" for where in ("attacks", "client", "cluster", "upgrade"))
PROCESSES = (CHAOS, *CALM)
CONSOLE = "tests/tui"


def ignoring(*folders: str) -> tuple[str, ...]:
    return tuple(f"--ignore={folder}" for folder in folders)


class Part(NamedTuple):
    """One command. Parts share nothing but the machine."""

    name: str
    command: tuple[str, ...]
    cpu_s_max: int
    """What it may cost on the machine that the budget was measured on (CONTRIBUTING.md)."""
    then: tuple[str, ...] = ()
    """Another command, run after it whatever became of it; both have to succeed."""
    is_alone: bool = False
    """Run when all others have ended: what it measures is a time."""


QUICK = (
    Part("processes", (*PYTEST, *PROCESSES, "--ignore-glob=*/cluster/test_[a-k]*", "-m", "not long"), 215),
    Part("clusters", (*PYTEST, "tests/cluster", "--ignore-glob=*/cluster/test_[l-z]*", "-m", "not long"), 190),
    Part("pure", (*TRACED, *PURE, "-m", "not slow and not long"), 110, (sys.executable, "-m", "coverage", "report")),
    Part("rest", (*PYTEST, "tests", *ignoring(*PURE, *PROCESSES, CONSOLE), "-m", "not slow and not long"), 190),
    Part("slow", (*PYTEST, "tests", *ignoring(*PROCESSES, CONSOLE), "-m", "slow and not long"), 100),
    Part("console", (*PYTEST, "-c", "tests/tui/pytest.ini", CONSOLE, "-m", "not long"), 70),
    Part("lint", ("make", "--no-print-directory", "lint"), 40),
)
LONG = (
    Part("processes", (*PYTEST, *CALM, "-m", "long and not timed"), 1_800),
    Part("chaos", (*PYTEST, CHAOS, "-m", "long"), 1_800),
    Part("rest", (*PYTEST, "tests", *ignoring(*PROCESSES, CONSOLE), "-m", "long"), 1_800),
    Part("laws", (*PYTEST, "tests", "-m", "hypothesis and not long", "--hypothesis-profile=long"), 600),
    Part("console", (*PYTEST, "-c", "tests/tui/pytest.ini", CONSOLE, "-m", "long"), 600),
    Part("timed", (*PYTEST, "tests/cluster", "-m", "long and timed"), 1_800, is_alone=True),
)


class Ran(NamedTuple):
    part: Part
    code: int
    cpu_s: float
    wall_s: float
    summary: str
    """The last line that pytest printed."""
    failed: tuple[str, ...] = ()
    """Tests that failed, where that is all that went wrong."""


def environment() -> dict[str, str]:
    """This process's, but compiled modules are kept, below ``build``: hundreds of nodes are started, each imports them all."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(PYCACHE)}


def run(part: Part, started: Callable[[subprocess.Popen[bytes]], None]) -> Ran:
    """Run a part to its end; what it prints goes to a file below ``build/tests``."""
    codes, cpu_s, began_s = [0], 0.0, time.monotonic()
    log = LOGS / f"{part.name}.log"
    with log.open("wb") as out:
        for command in (part.command, part.then):
            if command:
                process = subprocess.Popen(
                    command, cwd=PROJECT, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
                started(process)
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu_s += used.ru_utime + used.ru_stime
                codes.append(process.returncode)
    said = log.read_text(errors="replace")
    summaries = SUMMARY.findall(said)
    failed = tuple(dict.fromkeys(FAILED.findall(said))) if codes[1] == 1 and not any(codes[2:]) else ()
    code = next((code for code in codes if code), 0)
    return Ran(part, code, cpu_s, time.monotonic() - began_s, summaries[-1] if summaries else "", failed)


def again(ran: Ran) -> Ran:
    """Run the tests that failed beside the other parts alone, once; the part has passed if they do, and the table names it."""
    if not 0 < len(ran.failed) <= AGAIN_MAX:
        return ran
    print(f"--- {ran.part.name}: once more, alone:", *ran.failed, sep="\n    ", flush=True)
    config = ("-c", "tests/tui/pytest.ini") if ran.part.name == "console" else ()
    part = Part(f"{ran.part.name}-again", (sys.executable, "-m", "pytest", *config, *ran.failed), ran.part.cpu_s_max)
    second = run(part, lambda process: None)
    print((LOGS / f"{part.name}.log").read_text(errors="replace"), end="")
    if second.code != 0:
        return ran
    return ran._replace(code=0, summary=f"{ran.summary}; {len(ran.failed)} PASSED ONLY ALONE")


def table(ran: Sequence[Ran], wall_s: float) -> str:
    """One line a part, the costliest first, and the sum."""
    lines = [f"{'part':10} {'CPU s':>7} {'budget':>7} {'wall s':>7}  tests"]
    for one in sorted(ran, key=lambda one: one.cpu_s, reverse=True):
        verdict = "" if one.code == 0 else f"FAILED ({one.code}) "
        over = "" if one.cpu_s <= one.part.cpu_s_max else ", over its budget"
        lines.append(
            f"{one.part.name:10} {one.cpu_s:7.0f} {one.part.cpu_s_max:7} {one.wall_s:7.0f}  {verdict}{one.summary}{over}"
        )
    cpu_s, budget_s = sum(one.cpu_s for one in ran), sum(one.part.cpu_s_max for one in ran)
    lines.append(f"{'all':10} {cpu_s:7.0f} {budget_s:7} {wall_s:7.0f}")
    return "\n".join(lines)


class Suite:
    """Runs parts beside one another, the first ones first."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._waiting = list(parts)
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self.ran: list[Ran] = []

    def run(self, jobs: int) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            with self._lock:
                self._waiting.clear()
                running = [process for process in self._running if process.returncode is None]
            for process in running:
                process.send_signal(signal.SIGINT)  # pytest then ends what its tests have started
            for thread in threads:
                thread.join(END_S)
            for process in running:
                if process.returncode is None:
                    process.kill()
            raise

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                part = self._waiting.pop(0)
                print(f"--- {part.name}: started", flush=True)
            done = run(part, self._running.append)
            with self._lock:
                self.ran.append(done)
                print((LOGS / f"{part.name}.log").read_text(errors="replace"), end="")
                print(
                    f"--- {part.name}: {'passed' if done.code == 0 else 'FAILED'} after {done.wall_s:.0f} s", flush=True
                )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parts", description="Run parts of the test suite.")
    parser.add_argument("names", nargs="*", metavar="PART", help="only these")
    parser.add_argument("--long", action="store_true", help="the parts of make long")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"how many at a time (default: {JOBS})")
    asked = parser.parse_args()
    every = LONG if asked.long else QUICK
    if unknown := set(asked.names) - {part.name for part in every}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in every)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    chosen, began_s = [part for part in every if not asked.names or part.name in asked.names], time.monotonic()
    beside, alone = (Suite([part for part in chosen if part.is_alone is is_alone]) for is_alone in (False, True))
    try:
        beside.run(asked.jobs)
        alone.run(1)
    except KeyboardInterrupt:
        return 130
    ran = [again(one) for one in beside.ran + alone.ran]
    wall_s = time.monotonic() - began_s
    print(table(ran, wall_s))
    if not asked.long and wall_s > WALL_S_MAX:
        print(f"{wall_s:.0f} s is more than the {WALL_S_MAX} s that make test may take on two idle cores.")
    # pytest ends with 5 where nothing was selected: a part without long tests.
    return int(any(one.code not in ((0, 5) if asked.long else (0,)) for one in ran))


if __name__ == "__main__":
    sys.exit(main())
