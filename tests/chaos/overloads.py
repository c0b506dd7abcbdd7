"""More than the cluster can take, and much for a long time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from tests.chaos.flood import Flood
from tests.chaos.footprint import size_of
from tests.chaos.operations import PATIENT_S, quantile_ms, unexpected
from tests.chaos.rush import Heard, Rushing
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
SETTLED_S = 1.0
"""After which the doors of the nodes have found out how much they may let in."""
COMMIT_WAIT_S = 10.0
"""After which a caller hears that the outcome is not known: what is acknowledged is so within it."""
POLITE_RATE, POLITE_CONNECTIONS = 60.0, 60
"""Single small submits a second, whose latency is looked at: a light load. It goes on when refused, like everybody else."""
RUSH_CONNECTIONS = 900


def _flooded(stage: Stage, name: str, seconds: float, **options: Any) -> list[Call]:
    flood = Flood(stage.directory, name, stage.cluster.ports, seconds=seconds, **options)
    try:
        return flood.end(stage.history)
    finally:
        flood.close()


def _polite(stage: Stage, name: str, seconds: float) -> Heard:
    """A light load from a process of its own, alone or beside others."""
    ports = stage.cluster.ports
    rushing = Rushing(stage.directory, name, ports, rate=POLITE_RATE, seconds=seconds, connections=POLITE_CONNECTIONS)
    try:
        return rushing.end(stage.history)
    finally:
        rushing.close()


def _p99_ms(heard: Heard) -> float:
    return quantile_ms([Call("submit", task, began_s, ended_s=ended_s) for task, began_s, ended_s in heard.done], 0.99)


def _times(polite: Heard, alone: Heard) -> str:
    """What the acknowledged ones took, beside what they took alone."""
    usual_ms, now_ms = _p99_ms(alone), _p99_ms(polite)
    times = f"{now_ms / usual_ms:.1f} times" if usual_ms else "nothing to compare with"
    return f"a light load: p99 {usual_ms:.0f} ms alone, {now_ms:.0f} ms beside ({times})"


def _leads(stage: Stage) -> dict[int, tuple[str, int]]:
    return {number: (one["primary"], one["epoch"]) for number, one in enumerate(stage.cluster.partitions())}


def _changed(stage: Stage, before: dict[int, tuple[str, int]]) -> str:
    after = _leads(stage)
    return f"{sum(after[number] != lead for number, lead in before.items())} of {len(before)} primaries changed"


def _rss_mib(stage: Stage) -> float:
    return max(size.rss_mib for process in stage.cluster.processes.values() if (size := size_of(process.pid)))


@scenario("overload-of-calls", load={"timeout_s": PATIENT_S}, descriptors_max=700, is_big=True)
def overload_of_calls(stage: Stage) -> str:
    """Ten times as many submits a second as the cluster did just before are sent at it, whatever becomes of them: nothing but 429
    and 503 with ``Retry-After`` beside what is done, what is done keeps its latency, and memory stays where it was."""
    alone = _polite(stage, "alone", PROBE_S)
    usual = _flooded(stage, "usual", PROBE_S, connections=AT_ONCE)
    rate = sum(call.outcome == "ok" for call in usual) / PROBE_S
    leads, since_s, rss_mib = _leads(stage), time.monotonic(), _rss_mib(stage)
    rushing = Rushing(
        stage.directory,
        "rush",
        stage.cluster.ports,
        rate=rate * TIMES,
        seconds=FLOOD_S,
        connections=RUSH_CONNECTIONS,
    )
    try:
        time.sleep(SETTLED_S)
        polite = _polite(stage, "beside", FLOOD_S - 2 * SETTLED_S)
        rush = rushing.end(stage.history)
    finally:
        rushing.close()
    grown_mib = _rss_mib(stage) - rss_mib
    odd = unexpected(stage, since_s)
    assert not odd, odd
    assert not rush.strange, rush.statuses
    assert rush.done, "some are served"
    assert polite.done, "others are served, too"
    assert rush.refused + rush.unsent, "it was too much"
    worst_s = max(ended_s - began_s for _, began_s, ended_s in rush.done)
    assert worst_s < COMMIT_WAIT_S + PATIENT_S, f"{worst_s:.1f} s for an acknowledged submit"
    offered = (rush.sent + rush.unsent) / FLOOD_S
    return (
        f"{AT_ONCE} at once: {rate:.0f}/s; {offered:.0f}/s due over {RUSH_CONNECTIONS} connections: "
        f"{rush.sent / FLOOD_S:.0f}/s sent, {len(rush.done) / FLOOD_S:.0f}/s done, p99 {_p99_ms(rush):.0f} ms, "
        f"{rush.refused} refused with Retry-After, "
        f"{rush.unsent} found no connection free; {_times(polite, alone)}; {grown_mib:.0f} MiB more; {_changed(stage, leads)}"
    )


BATCH = 100
PAYLOAD_BYTES = 20_000


@scenario("overload-of-bytes", load={"timeout_s": PATIENT_S}, rss_mib_max=500, descriptors_max=500)
def overload_of_bytes(stage: Stage) -> str:
    """Batches of 2 MB from 96 clients at once, far more than the disks can take: nodes refuse what they can't take in in time,
    keep within their memory, and go on serving small submits."""
    alone = _polite(stage, "alone", PROBE_S)
    leads, since_s = _leads(stage), time.monotonic()
    flood = Flood(
        stage.directory,
        "bytes",
        stage.cluster.ports,
        seconds=FLOOD_S,
        connections=96,
        batch=BATCH,
        payload_bytes=PAYLOAD_BYTES,
    )
    try:
        polite = _polite(stage, "beside", FLOOD_S)
        calls = flood.end(stage.history)
    finally:
        flood.close()
    odd = unexpected(stage, since_s)
    assert not odd, odd
    refused = sum(call.http in (429, 503) for call in calls)
    done = sum(call.outcome == "ok" for call in calls)
    assert done
    assert refused
    assert polite.done, "others are served, too"
    assert not polite.strange, polite.statuses
    mb_s = PAYLOAD_BYTES / FLOOD_S / 1e6
    return (
        f"{(done + refused) * mb_s:.0f} MB/s sent, {done * mb_s:.0f} MB/s taken in, "
        f"{refused} tasks refused; {len(polite.done)} of {polite.sent} small ones done, {_times(polite, alone)}; "
        f"{_changed(stage, leads)}"
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
