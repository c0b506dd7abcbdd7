"""What clients asked of a cluster, what they heard, and what is in the record at the end: is that one queue's history?

Clients write down each call with its monotonic times. ``check`` names every promise that the whole breaks (``RULES``):

- ``lost``: a submit was acknowledged, and the task is not there.
- ``phantom``: a task is there that nobody submitted, or whose every submit was refused for good.
- ``two births``: more than one 201 for one id.
- ``double completion``: the record shows more than one completion, or one that does not belong to the state.
- ``revert``: a final state was left, and nobody had asked for a retry.
- ``unfinished``: a task has not ended, though everything is whole again.
- ``stale read``: a strong read shows less than what another one had shown before it began.
- ``not linearizable``: calls of one task that fit no order at all.
- ``internal error``: a 500.

Workers are not asked: what they do shows in states and versions (+1 with each change). Steps that a task makes by itself may
happen between any two calls; cancel and retry only where a client asked.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

RULES = (
    "lost",
    "phantom",
    "two births",
    "double completion",
    "revert",
    "unfinished",
    "stale read",
    "not linearizable",
    "internal error",
)
FINAL = frozenset({"completed", "failed", "cancelled"})
NEVER = math.inf
BY_ITSELF: Mapping[str, tuple[str, ...]] = {
    "scheduled": ("pending",),
    "pending": ("processing",),
    "processing": ("processing", "pending", "scheduled", "completed", "failed"),
    "completed": (),
    "failed": (),
    "cancelled": (),
}
"""What a task may become without a client; each step is one version."""
UNKNOWN_MAX = 12
"""Of one task's calls whose outcome is unknown, so many are tried in every place; the rest are taken as never done."""


@dataclass(slots=True)
class Call:
    """One call. ``outcome``: ``ok``; ``refused``: not done, and never will be; ``unknown``."""

    kind: str
    """submit, cancel, retry, status, local (a read without proof)"""
    task: str
    began_s: float
    client: str = ""
    node: str = ""
    ended_s: float = NEVER
    outcome: str = "unknown"
    http: int = 0
    code: str = ""
    status: str | None = None
    version: int | None = None
    retry_after: bool = False
    """The answer had that header."""

    def __str__(self) -> str:
        seen = "" if self.status is None else f" {self.status}" + ("" if self.version is None else f" v{self.version}")
        return (
            f"{self.began_s:.4f} to {self.ended_s:.4f} {self.client} at {self.node}: {self.kind} {self.outcome} "
            f"{self.http or ''} {self.code}{seen}"
        )


class Violation(NamedTuple):
    rule: str
    task: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: task {self.task}: {self.detail}"


@dataclass
class History:
    """Safe to write to from many threads."""

    calls: list[Call] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, call: Call) -> Call:
        with self._lock:
            self.calls.append(call)
        return call

    def by_task(self) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = defaultdict(list)
        for call in list(self.calls):
            found[call.task].append(call)
        return found

    @property
    def acknowledged(self) -> set[str]:
        return {call.task for call in list(self.calls) if call.kind == "submit" and call.outcome == "ok"}


def outcome_of(kind: str, http: int, code: str) -> str:
    """What an answer says about the call, by the contract (replication.md section 9)."""
    if http in (200, 201):
        return "ok"
    if http in (500, 504) or (kind == "submit" and code == "not_confirmed"):
        return "unknown"
    return "refused"


def check(
    history: History | Iterable[Call], final: Mapping[str, Mapping[str, Any]], *, read_s: float | None = None
) -> list[Violation]:
    """:param final: every task of the cluster as ``/tasks/status`` shows it, after healing and when all had time to end.

    :param read_s: when that was read, at the earliest; by default after everything else.
    """
    if not isinstance(history, History):
        history = History(list(history))
    by_task = history.by_task()
    if read_s is None:
        read_s = max(
            (max(call.began_s, call.ended_s if call.ended_s < NEVER else 0) for call in history.calls), default=0
        )
        read_s = math.nextafter(read_s, NEVER)
    found: list[Violation] = []
    for task in sorted(by_task.keys() | final.keys()):
        calls = sorted(by_task.get(task, ()), key=lambda call: call.began_s)
        found += _check_task(task, calls, final.get(task), read_s)
    return found


def assert_sound(history: History, final: Mapping[str, Mapping[str, Any]], *, shown: int = 10) -> None:
    """Nothing is broken, or the first violations with all that was heard about their tasks."""
    violations = check(history, final)
    if not violations:
        return
    by_task = history.by_task()
    lines = [f"{len(violations)} violations"]
    for violation in violations[:shown]:
        lines.append(str(violation))
        lines += [f"    {call}" for call in sorted(by_task.get(violation.task, ()), key=lambda call: call.began_s)]
        lines.append(f"    in the record: {final.get(violation.task)}")
    raise AssertionError("\n".join(lines))


def _check_task(task: str, calls: list[Call], last: Mapping[str, Any] | None, read_s: float) -> list[Violation]:
    found: list[Violation] = []

    def broken(rule: str, detail: str) -> None:
        assert rule in RULES
        found.append(Violation(rule, task, detail))

    submits = [call for call in calls if call.kind == "submit"]
    acknowledged = [call for call in submits if call.outcome == "ok"]
    if acknowledged and last is None:
        broken("lost", f"acknowledged at {acknowledged[0].ended_s:.4f} by {acknowledged[0].node}")
    if last is not None and all(call.outcome == "refused" for call in submits):
        broken("phantom", "its every submit was refused" if submits else "nobody submitted it")
    if sum(call.http == 201 for call in acknowledged) > 1:
        broken("two births", f"201 at {[round(call.ended_s, 4) for call in acknowledged if call.http == 201]}")
    for call in calls:
        if call.http == 500:
            broken("internal error", str(call))
    if last is not None:
        completions = [attempt for attempt in last.get("attempts", ()) if attempt["outcome"] == "completed"]
        if len(completions) > 1 or bool(completions) is not (last["status"] == "completed"):
            broken("double completion", f"{len(completions)} completions in the record of a task {last['status']}")
        if last["status"] not in FINAL:
            broken("unfinished", f"{last['status']}, version {last['version']}")
    reads = [call for call in calls if call.kind == "status" and call.outcome == "ok"]
    if last is not None:
        seen = last["status"], last["version"]
        reads.append(Call("status", task, read_s, "the end", "", read_s, "ok", 200, "", *seen))
    found += _check_reads(task, calls, reads)
    if not found:
        checked = [call for call in calls if call.kind != "status" or call.outcome == "ok" or call.http == 404]
        why = _linearize([call for call in checked if call.kind != "local"] + reads[-1:] * (last is not None))
        if why:
            broken("not linearizable", why)
    return found


def _check_reads(task: str, calls: list[Call], reads: list[Call]) -> list[Violation]:
    """Each against the highest that had been shown before it began."""
    found: list[Violation] = []
    ended = sorted(reads, key=lambda read: read.ended_s)
    begun = sorted(reads, key=lambda read: read.began_s)
    retries = [call.began_s for call in calls if call.kind == "retry" and call.outcome != "refused"]
    highest: Call | None = None
    next_ended = 0
    for read in begun:
        while next_ended < len(ended) and ended[next_ended].ended_s < read.began_s:
            one = ended[next_ended]
            next_ended += 1
            if highest is None or (one.version or 0) > (highest.version or 0):
                highest = one
        if highest is None or read.version is None or highest.version is None:
            continue
        if read.version < highest.version:
            found.append(Violation("stale read", task, f"{read}, after {highest}"))
        elif highest.status in FINAL and read.status != highest.status:
            asked = any(began_s < read.ended_s for began_s in retries)
            if read.version == highest.version or not asked:
                found.append(Violation("revert", task, f"{read}, after {highest}"))
    return found


# --- one order for all (Wing and Gong, with the states of a set of done calls remembered together) ---
State = tuple[str, int] | None
"""(state, version); None: it does not exist."""


def _linearize(calls: list[Call]) -> str:
    """Empty if some order of the calls, each between its begin and its end, is that of a single task."""
    unknown = [call for call in calls if call.outcome == "unknown" and call.kind != "status"]
    left_out = {id(call) for call in unknown[UNKNOWN_MAX:]}
    calls = [call for call in calls if call.outcome != "unknown" or call.kind != "status"]
    calls = [call for call in calls if id(call) not in left_out and not _says_nothing(call)]
    calls.sort(key=lambda call: call.began_s)
    must = sum(1 << number for number, call in enumerate(calls) if call.outcome != "unknown")
    cap = max((call.version or 0 for call in calls), default=0) + 1
    reached: dict[int, frozenset[State]] = {0: frozenset({None})}
    best = 0
    layer = [0]
    while layer:
        following: dict[int, set[State]] = defaultdict(set)
        for done in layer:
            if done & must == must:
                return ""
            if (done & must).bit_count() > (best & must).bit_count():
                best = done
            left = [number for number in range(len(calls)) if not done >> number & 1]
            first_end = min(_end(calls[number]) for number in left)
            for number in left:
                if calls[number].began_s > first_end:
                    break
                states = {after for before in reached[done] for after in _after(before, calls[number], cap)}
                if states:
                    following[done | 1 << number] |= states
        reached = {done: frozenset(states) for done, states in following.items()}
        layer = list(reached)
    stuck = [call for number, call in enumerate(calls) if not best >> number & 1 and call.outcome != "unknown"]
    return f"no order explains {stuck[0] if stuck else 'it'}"


def _says_nothing(call: Call) -> bool:
    """Refused for a reason that has nothing to do with the task."""
    return call.outcome == "refused" and call.code not in ("already_final", "not_retryable", "not_found")


def _end(call: Call) -> float:
    return NEVER if call.outcome == "unknown" else call.ended_s


@functools.cache
def _by_itself(status: str, version: int, cap: int) -> frozenset[tuple[str, int]]:
    """Itself, and what it may become by itself. All versions past what anybody has seen are one: ``cap``."""
    found = {(status, version)}
    waiting = [(status, version)]
    while waiting:
        one, at = waiting.pop()
        for after in BY_ITSELF[one]:
            step = after, min(at + 1, cap)
            if step not in found:
                found.add(step)
                waiting.append(step)
    return frozenset(found)


def _after(state: State, call: Call, cap: int) -> set[State]:
    """What the task may be once the call has happened; empty where it can't have, here."""
    if state is None:
        if call.kind == "submit" and call.http == 200:
            # A repeat, though the client has sent nothing before: the node that took it sent it on twice, for the first primary
            # died without a word. The status is of the second time.
            births = {one for born in ("pending", "scheduled") for one in _by_itself(born, 1, cap)}
            return {one for one in births if call.status in (None, one[0])}
        if call.kind == "submit":
            born = (call.status,) if call.status is not None else ("pending", "scheduled")
            return {(status, 1) for status in born}
        return {None} if call.code == "not_found" else set()
    before = _by_itself(*state, cap)
    if call.kind == "status":
        return {one for one in before if one == (call.status, call.version)}
    if call.outcome == "refused":
        if call.code == "already_final":
            return {one for one in before if one[0] in FINAL}
        if call.code == "not_retryable":
            return {one for one in before if one[0] not in ("failed", "cancelled")}
        return set()
    if call.kind == "submit":
        # 201: it was not there. 200: it was, in this state. Unknown: nothing happens to it.
        if call.http == 201:
            return set()
        return {one for one in before if call.status in (None, one[0])}
    if call.kind == "cancel":
        return {("cancelled", min(version + 1, cap)) for status, version in before if status not in FINAL}
    if call.kind == "retry":
        return {("pending", min(version + 1, cap)) for status, version in before if status in ("failed", "cancelled")}
    raise AssertionError(f"what is {call.kind}?")
