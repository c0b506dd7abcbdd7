"""Beats of a reactor: timers that need no exact moment share one, so they wake the process once.

An idle node spends its CPU on waking up, some tenths of a millisecond each time."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from twisted.internet.interfaces import IReactorTime

_SAME = 1e-3
"""Fraction of a beat by which a timer may be early and still be on time."""
_origins: WeakKeyDictionary[IReactorTime, float] = WeakKeyDictionary()
"""Time of the first call for each reactor, so that the nodes of a machine don't beat together."""


def until_beat(reactor: IReactorTime, seconds: float) -> float:
    """Seconds until the next of the beats ``seconds`` apart; never 0 for a beat that is now."""
    now_s = reactor.seconds()
    origin_s = _origins.get(reactor)
    if origin_s is None:
        origin_s = _origins[reactor] = now_s
    passed_s = now_s - origin_s
    beat = int(passed_s / seconds + _SAME) + 1
    return max(0.0, beat * seconds - passed_s)
