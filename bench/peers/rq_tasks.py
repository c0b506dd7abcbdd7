"""What RQ's workers run."""

from __future__ import annotations

import time


def noop(payload: str) -> int:
    """Nothing."""
    return 1


def first_line(payload: str) -> int:
    """CLOCK_MONOTONIC of its first line, in nanoseconds."""
    return time.monotonic_ns()
