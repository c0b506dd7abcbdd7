"""How long an attempt that did not succeed waits for the next one."""

from __future__ import annotations

from tq_node.types import Backoff

_DOUBLINGS_MAX = 60
"""2 ** 60 ms is past every cap; a larger exponent would only make a larger integer."""


def backoff_delay_ms(backoff: Backoff, failures: int, draw: float) -> int:
    """Milliseconds to wait after the ``failures``-th failure of a run.

    :param failures: from 1.
    :param draw: a random number in [0, 1), made by the caller: with jitter the delay is spread over
        its upper half, so that tasks that failed together do not come back together and none comes
        back at once."""
    if backoff.kind == "constant":
        delay = backoff.base_ms
    elif backoff.kind == "linear":
        delay = backoff.base_ms * failures
    else:
        delay = backoff.base_ms << min(failures - 1, _DOUBLINGS_MAX)
    delay = min(delay, backoff.cap_ms)
    if backoff.jitter:
        return int(delay * (0.5 + draw / 2))
    return delay
