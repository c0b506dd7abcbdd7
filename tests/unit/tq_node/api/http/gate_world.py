"""A gate before a server that does so many requests a second, in virtual time: who gets how much of it."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from tq_node.api.http.concurrency_limit import ConcurrencyLimit

SERVED_PER_S = 500.0
TAKES_S = 0.005
"""Beside the wait for the server."""
THINKS_S = 0.0005
"""Between an answer and the next request of a connection."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one caller does: so many connections that each wait for an answer, or so many requests a second whatever comes."""

    connections: int = 0
    comes_again_s: float = 0.1
    """After a refusal."""
    per_s: float = 0.0


class Outcome(msgspec.Struct):
    admitted: Counter[str]
    refused: Counter[str]
    latencies_s: dict[str, list[float]]
    in_progress_max: int

    def shares(self, group: str) -> list[float]:
        """What each caller of a group got of all that was admitted."""
        return [count / self.admitted.total() for caller, count in sorted(self.admitted.items()) if caller[0] == group]

    def p99_ms(self, group: str) -> float:
        found = sorted(one for caller, some in self.latencies_s.items() if caller[0] == group for one in some)
        return found[int(len(found) * 0.99)] * 1_000


def play(
    make: Callable[[Callable[[], float]], ConcurrencyLimit],
    loads: Mapping[str, Load],
    *,
    seconds: float = 8.0,
    warm_s: float = 2.0,
    commit_s: float = 0.0,
    seed: int = 1,
) -> Outcome:
    """What becomes of the loads.

    :param make: the gate, of the clock that it may read.
    :param commit_s: answers leave together, so often; 0: each by itself."""
    rolls = random.Random(seed)
    events: list[tuple[float, int, Callable[[], None]]] = []
    now_s = free_s = 0.0
    gate = make(lambda: now_s)
    out = Outcome(Counter(), Counter(), {}, 0)

    def at(time_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(events, (time_s, rolls.getrandbits(40), call))

    def ask(caller: str, load: Load) -> None:
        nonlocal free_s
        began_s = now_s
        if load.per_s:
            at(now_s + rolls.expovariate(load.per_s), lambda: ask(caller, load))
        ticket = gate.enter(caller)
        if ticket is None:
            out.refused[caller] += now_s > warm_s
            if not load.per_s:
                at(now_s + load.comes_again_s * rolls.uniform(0.8, 1.2), lambda: ask(caller, load))
            return
        out.in_progress_max = max(out.in_progress_max, gate.in_progress)
        free_s = max(free_s, now_s) + 1 / SERVED_PER_S
        end_s = free_s + TAKES_S

        def answer() -> None:
            gate.leave(caller, ticket, now_s - began_s)
            if now_s > warm_s:
                out.admitted[caller] += 1
                out.latencies_s.setdefault(caller, []).append(now_s - began_s)
            if not load.per_s:
                at(now_s + THINKS_S * rolls.uniform(0.5, 1.5), lambda: ask(caller, load))

        at((int(end_s / commit_s) + 1) * commit_s if commit_s else end_s, answer)

    for caller, load in loads.items():
        for _ in range(load.connections or 1):
            at(rolls.uniform(0, 0.1), lambda caller=caller, load=load: ask(caller, load))  # type: ignore[misc]
    while events[0][0] < seconds:
        now_s, _, call = heapq.heappop(events)
        call()
    return out
