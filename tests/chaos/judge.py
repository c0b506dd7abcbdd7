"""After a scenario: everything has healed and every task has ended. Was any promise broken?"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.executions import executions
from tests.chaos.footprint import Size, size_of
from tests.chaos.scenario import Scenario
from tests.chaos.stage import ENDED_S, HEALED_S, WARM_S, Stage
from tests.cluster.clusters import copies_of
from tests.cluster.replicated import every_task, kill_all, partitions_by_primary, wait_ended
from tests.support.at_rest import copies_at_rest
from tests.support.harness import until
from tests.support.history import check

SHOWN_MAX = 5
NOTHING = Size(0, 0)
DESCRIPTORS_LEFT_MAX = 40
"""How many more than before a node may hold when all is over: connections of clients that were there until now."""
_TROUBLE = re.compile(r"Traceback \(most recent call last\)|#critical\]|Unhandled")


@dataclass
class Result:
    """``broken``: empty where every promise was kept. Seconds are those of the whole scenario."""

    name: str
    told: str = ""
    seconds: float = 0.0
    acknowledged: int = 0
    calls: int = 0
    unknown: int = 0
    lost: int = 0
    doubled: int = 0
    starts: int = 0
    extra: int = 0
    peak: Size = NOTHING
    broken: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def line(self) -> str:
        if self.skipped:
            return f"{self.name}: skipped, {self.skipped}"
        verdict = "ok" if not self.broken else "BROKEN"
        told = f"; {self.told}" if self.told else ""
        return (
            f"{self.name}: {verdict} in {self.seconds:.0f} s; {self.acknowledged} acknowledged of {self.calls} calls "
            f"({self.unknown} unknown), {self.lost} lost, {self.doubled} doubled, {self.extra} extra of {self.starts} "
            f"executions; at most {self.peak.rss_mib:.0f} MiB and {self.peak.descriptors} descriptors a node{told}"
        )


def judge(stage: Stage, result: Result) -> None:
    """Fill in the result. :raises AssertionError: it does not heal, or does not end."""
    stage.settle()
    time.sleep(WARM_S)  # the healed cluster takes load for a while
    stage.end_load()
    wait_ended(stage.cluster, deadline_s=ENDED_S)
    _wait_copied(stage)
    names = stage.cluster.running
    record = _led(stage) if stage.one.is_big else every_task(stage.cluster, names[0])
    _judge_history(stage, record, result)
    for name in names[1:] if not stage.one.is_big else ():
        shown = every_task(stage.cluster, name)
        if shown != record:
            result.broken.append(f"{names[0]} and {name} show different tasks: {_difference(record, shown)}")
    ran = executions([stage.cluster.ledger(name) for name in stage.cluster.ports], record)
    result.starts, result.extra = ran.starts, ran.extra
    if ran.repeated:
        result.broken.append(f"attempts that began more than once: {ran.repeated[:SHOWN_MAX]}")
    _judge_sizes(stage, result)
    table = stage.cluster.partitions(names[0])
    kill_all(stage.cluster)
    result.broken += unequal_copies(stage, table)
    _judge_logs(stage, result)


def _led(stage: Stage) -> dict[str, dict[str, Any]]:
    """What each node leads, together: all tasks, for less than one node would take to ask the others for theirs."""
    record: dict[str, dict[str, Any]] = {}
    for name in stage.cluster.running:
        led = every_task(stage.cluster, name, "role=primary")
        assert record.keys().isdisjoint(led), "each task has one primary"
        record |= led
    return record


def _wait_copied(stage: Stage) -> None:
    def quiet() -> bool:
        led = partitions_by_primary(stage.cluster).values()
        return len(led) == stage.one.partitions and all(
            one["last_sequence"] == one["committed_sequence"] and not any(one["lag"].values()) for one in led
        )

    until(quiet, deadline_s=HEALED_S, what="all entries are committed and copied")
    time.sleep(1.0)  # replicas hear of the last commits, and rows are written behind the log


def _judge_history(stage: Stage, record: dict[str, dict[str, Any]], result: Result) -> None:
    history = stage.history
    calls = list(history.calls)
    result.acknowledged = len(history.acknowledged)
    result.calls, result.unknown = len(calls), sum(call.outcome == "unknown" for call in calls)
    if not result.acknowledged:
        result.broken.append("nothing was acknowledged")
    violations = check(history, record)
    result.lost = sum(violation.rule == "lost" for violation in violations)
    result.doubled = sum(violation.rule in ("two births", "double completion") for violation in violations)
    by_task = history.by_task() if violations else {}
    for violation in violations[:SHOWN_MAX]:
        heard = [f"\n      {call}" for call in sorted(by_task.get(violation.task, ()), key=lambda call: call.began_s)]
        result.broken.append(f"{violation}{''.join(heard)}\n      in the record: {record.get(violation.task)}")
    if len(violations) > SHOWN_MAX:
        result.broken.append(f"{len(violations)} violations in all")


def _judge_sizes(stage: Stage, result: Result) -> None:
    result.peak = stage.footprint.peak
    one: Scenario = stage.one
    if result.peak.rss_mib > one.rss_mib_max:
        result.broken.append(f"memory: {result.peak.rss_mib:.0f} MiB, more than {one.rss_mib_max:.0f}")
    if result.peak.descriptors > one.descriptors_max:
        result.broken.append(f"{result.peak.descriptors} descriptors, more than {one.descriptors_max}")
    for name in stage.cluster.running:
        before, after = stage.sizes_before.get(name), size_of(stage.cluster[name].pid)
        if before and after and after.descriptors > before.descriptors + DESCRIPTORS_LEFT_MAX:
            result.broken.append(f"{name} had {before.descriptors} descriptors and now has {after.descriptors}")


def unequal_copies(stage: Stage, table: list[dict[str, Any]]) -> list[str]:
    """Of each partition, the copies that the table names are equal to the byte (I11). All nodes have ended."""
    found = []
    stores = {name: copies_at_rest(stage.cluster.data(name)) for name in stage.cluster.ports}
    for shown in table:
        partition = shown["partition"]
        held = {name: stores[name].get(partition) for name in copies_of(shown)}
        if len({copy and (copy.digest, copy.applied) for copy in held.values()}) != 1:
            found.append(f"the copies of partition {partition} differ: {held}")
    return found


def _judge_logs(stage: Stage, result: Result) -> None:
    allowed = stage.one.log_allows
    for process in stage.cluster.history:
        bad = [line for line in process.log.splitlines() if _TROUBLE.search(line)]
        bad = [line for line in bad if not (allowed and re.search(allowed, line))]
        if bad:
            result.broken.append(f"{process.log_path.name}: {bad[:SHOWN_MAX]}")


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    for task_id in sorted(one.keys() | other.keys()):
        if one.get(task_id) != other.get(task_id):
            return f"{one.get(task_id)}, {other.get(task_id)}"
    return ""
