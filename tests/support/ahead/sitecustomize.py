"""Imported before anything else by every Python whose wall clock is moved: of ``make test-ahead``, of tests of the clock.

libfaketime moves the wall clock and leaves the monotonic one alone, else waits with a timeout never end. But then it turns down
``time.sleep``, which asks the kernel for an absolute moment of the monotonic clock: select does the same by a span.
"""

from __future__ import annotations

import select
import time


def sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        select.select([], [], [], left_s)


time.sleep = sleep  # type: ignore[assignment]
