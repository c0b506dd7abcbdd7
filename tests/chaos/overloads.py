"""More than the cluster can take, and much for a long time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from tests.chaos.flood import Flood
from tests.chaos.operations import PATIENT_S, quantile_ms, unexpected
from tests.chaos.scenario import scenario
from tests.chaos.stage import HEALED_S, Stage
from tests.support.harness import until
from tests.support.history import Call
from tests.support.load import Client

AT_ONCE = 32
"""Connections at which three nodes on two cores give what they can; more only wait longer."""
TIMES = 10
PROBE_S = 4.0
FLOOD_S = 12.0
COMMIT_WAIT_S = 10.0
"""After which a caller hears that the outcome is not known: what is acknowledged is so within it."""


def _flooded(stage: Stage, name: str, seconds: float, **options: Any) -> list[Call]:
    flood = Flood(stage.directory, name, stage.cluster.ports, seconds=seconds, **options)
    try:
        return flood.end(stage.history)
    finally:
        flood.close()


def _rate(calls: list[Call], seconds: float) -> str:
    done = [call for call in calls if call.outcome == "ok"]
    return f"{len(done) / seconds:.0f}/s, p99 {quantile_ms(done, 0.99):.0f} ms"


def _polite(stage: Stage, since_s: float) -> list[Call]:
    """Submits of the load, which goes on beside the flood."""
    return [
        call
        for call in list(stage.history.calls)
        if call.kind == "submit" and call.outcome == "ok" and call.began_s >= since_s and call.client.startswith("c")
    ]


@scenario("overload-of-calls", load={"timeout_s": PATIENT_S}, descriptors_max=700)
def overload_of_calls(stage: Stage) -> str:
    """Ten times the clients that the cluster can serve at once send one submit after another: nothing but 429 and 503 with
    ``Retry-After`` beside what is done, and memory stays where it was."""
    alone = _polite(stage, 0)
    usual = _flooded(stage, "usual", PROBE_S, connections=AT_ONCE)
    since_s = time.monotonic()
    flood = _flooded(stage, "flood", FLOOD_S, connections=AT_ONCE * TIMES)
    polite = _polite(stage, since_s)
    odd = unexpected(stage, since_s)
    assert not odd, odd
    assert polite, "others were served, too"
    refused = sum(call.http in (429, 503) for call in flood)
    worst_s = max(call.ended_s - call.began_s for call in flood if call.outcome == "ok")
    assert worst_s < COMMIT_WAIT_S + PATIENT_S, f"{worst_s:.1f} s for an acknowledged submit"
    return (
        f"{AT_ONCE} at once: {_rate(usual, PROBE_S)}; {AT_ONCE * TIMES} at once: {_rate(flood, FLOOD_S)}, {refused} refused "
        f"with Retry-After; four clients beside them: p99 {quantile_ms(alone, 0.99):.0f} ms before, "
        f"{quantile_ms(polite, 0.99):.0f} ms meanwhile"
    )


BATCH = 100
PAYLOAD_BYTES = 20_000


@scenario("overload-of-bytes", load={"timeout_s": PATIENT_S}, rss_mib_max=1_000, descriptors_max=500)
def overload_of_bytes(stage: Stage) -> str:
    """Batches of 2 MB from 96 clients at once, more than what a node may hold that is not yet synced: it refuses what it can't
    hold, and keeps within its memory."""
    since_s = time.monotonic()
    flood = _flooded(stage, "bytes", FLOOD_S, connections=96, batch=BATCH, payload_bytes=PAYLOAD_BYTES)
    odd = unexpected(stage, since_s)
    assert not odd, odd
    refused = sum(call.http in (429, 503) for call in flood)
    polite = _polite(stage, since_s)
    done = sum(call.outcome == "ok" for call in flood)
    assert done
    return (
        f"{done * PAYLOAD_BYTES / FLOOD_S / 1e6:.0f} MB/s taken in, {refused} tasks refused; four clients beside: p99 "
        f"{quantile_ms(polite, 0.99):.0f} ms"
    )


# --- much, for a long time ---
ALL = 200_000
EVERY_S = 20.0
ITEMS = 500
SENDERS = 4
IN_ALL_S = 1_500.0


class _Sender(threading.Thread):
    """Its share of the tasks, a batch after another, each until every item is in."""

    def __init__(self, stage: Stage, number: int, count: int) -> None:
        super().__init__(name=f"sender-{number}", daemon=True)
        self.stage, self.number, self.count = stage, number, count
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for first in range(0, self.count, ITEMS):
                self._batch(range(first, min(self.count, first + ITEMS)))
        except BaseException as why:
            self.error = why

    def _batch(self, numbers: range) -> None:
        left = {
            f"many-{self.number}-{one}": {"type": "fails" if one % 100 == 0 else "noop", "payload": one}
            for one in numbers
        }
        calls = {task_id: Call("submit", task_id, time.monotonic(), self.name) for task_id in left}
        for call in calls.values():
            self.stage.history.add(call)
        client = Client(self.name, self.stage.cluster.ports, self.stage.history, timeout_s=PATIENT_S)
        end_s = time.monotonic() + IN_ALL_S
        while left:
            assert time.monotonic() < end_s, f"{len(left)} tasks of a batch are not taken in"
            tasks = [{"id": task_id, **fields} for task_id, fields in left.items()]
            for result in client.batch(self.stage.rolls.choice(self.stage.names), tasks):
                if "error" not in result:
                    calls[result["task_id"]].ended_s = time.monotonic()
                    calls[result["task_id"]].outcome = "ok"
                    del left[result["task_id"]]
            if left:
                time.sleep(0.1)
        client.close()


@scenario("two-hundred-thousand", load={"clients": 0}, rss_mib_max=500, is_big=True)
def two_hundred_thousand(stage: Stage) -> str:
    """200,000 tasks go in by batches, and a node dies by kill -9 every 20 s until the last one has ended: all are accounted
    for."""
    senders = [_Sender(stage, number, ALL // SENDERS) for number in range(SENDERS)]
    began_s = time.monotonic()
    for sender in senders:
        sender.start()
    kills = 0
    ended: Counter[str] = Counter()
    next_s = began_s + EVERY_S / 2
    while ended.total() < ALL:
        assert time.monotonic() - began_s < IN_ALL_S, f"not all have ended: {ended}"
        time.sleep(0.5)
        for sender in senders:
            if sender.error is not None:
                raise sender.error
        if time.monotonic() > next_s:
            victim = stage.rolls.choice(stage.names)
            stage.cluster[victim].kill9()
            kills += 1
            next_s += EVERY_S
            time.sleep(1.0)  # down
            stage.cluster.start(victim)
        ended = _ended(stage)
    seconds = time.monotonic() - began_s
    for sender in senders:
        sender.join(HEALED_S)
        assert not sender.is_alive()
    asked = len(stage.history.acknowledged)
    assert (asked, ended.total()) == (ALL, ALL), (asked, ended)
    told = ", ".join(f"{count} {state}" for state, count in sorted(ended.items()))
    return f"{asked} asked, {told}, in {seconds:.0f} s with {kills} kills"


def _ended(stage: Stage) -> Counter[str]:
    def stats() -> Any:
        for name in stage.cluster.running:
            try:
                found = stage.cluster[name].get("/tasks/stats?scope=cluster", deadline_s=5).json
            except (OSError, ValueError):
                continue
            if "stats" in found and not found["missing"]:
                return found["stats"]
        return None

    try:
        found = until(stats, deadline_s=10.0, what="statistics of all nodes")
    except AssertionError:
        return Counter()  # the next kill may come before all are back
    return Counter({state: found[state] for state in ("completed", "failed", "cancelled")})
