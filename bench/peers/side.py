"""The commands that every queue's side has: produce, pick-up, work. Runs in the peer's environment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.peers.producing import produce

_WARM_UP = 5


def run(
    submits: Callable[[int], Callable[[], object]],
    first_lines: Callable[[int], Callable[[], int]],
    work: Callable[[int, str], None],
    more: dict[str, Callable[[int, dict[str, Any]], object]] | None = None,
) -> None:
    """``COMMAND``, a spec in JSON on stdin, an answer in JSON on stdout; or ``work PORT KIND`` until it is stopped.

    :param submits: given a port, what submits one task when called; asked once in each thread.
    :param first_lines: the same for a task that answers CLOCK_MONOTONIC of its first line, in ns.
    :param more: further commands.
    """
    command = sys.argv[1]
    if command == "work":
        work(int(sys.argv[2]), sys.argv[3])
        return
    spec = json.load(sys.stdin)
    port = spec["port"]
    if command == "produce":
        answer: object = produce(lambda: submits(port), spec["clients"], spec["seconds"], spec["count"])
    elif command == "pick-up":
        answer = pick_up(first_lines(port), spec["count"], spec["gap_s"])
    else:
        answer = (more or {})[command](port, spec)
    json.dump(answer, sys.stdout)


def pick_up(first_line: Callable[[], int], count: int, gap_s: float) -> list[float]:
    """Milliseconds from just before a submit to the first line of its task."""
    taken = []
    for _ in range(count + _WARM_UP):
        time.sleep(gap_s)  # the gap that leaves the worker idle is part of the measurement
        begun = time.monotonic_ns()
        taken.append((first_line() - begun) / 1e6)
    return taken[_WARM_UP:]
