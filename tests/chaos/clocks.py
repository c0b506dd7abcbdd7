"""The wall clock steps under running nodes (F39, F43)."""

from __future__ import annotations

import time

from tests.chaos.faults import lacks_faketime
from tests.chaos.scenario import scenario
from tests.chaos.stage import Stage
from tests.support.harness import until

STEPS = ("+3600", "-3600", "+0", "-120", "+30")
PART_S = 20
"""How far the clocks of two nodes may be apart: a task that failed at one of them waits at the other for so much longer."""
FAKED = {
    "has_faked_clocks": True,
    "lacks": lacks_faketime,
    # No worker processes: with libfaketime their ``time.sleep`` fails now and then while the clock steps.
    "load": {"kinds": ("noop", "work-async", "flaky-async")},
}


def _delayed(stage: Stage, task_id: str) -> float:
    """How long a delay of one second takes, by a clock that nobody steps."""
    node = stage.cluster[stage.names[0]]
    began_s = time.monotonic()
    stage.adopt(task_id)
    until(
        lambda: node.post("/tasks/submit", {"type": "noop", "id": task_id, "delay": 1}).status in (200, 201),
        what="a delayed task is taken",
    )
    until(lambda: node.get(f"/tasks/status?id={task_id}").json.get("status") == "completed", what="it completes")
    return time.monotonic() - began_s


@scenario("clocks-step-together", **FAKED)
def clocks_step_together(stage: Stage) -> str:
    """The clocks of all nodes step an hour ahead, an hour back, and by less: leases, elections and delays don't notice."""
    took = []
    for number, offset in enumerate(STEPS):
        for clock in stage.cluster.clocks.values():
            clock.step(offset)
        stage.wait_acknowledged(10)
        took.append(_delayed(stage, f"delayed-{number}"))
    leader = stage.leader()
    stage.cluster[leader].kill9()
    stage.wait_acknowledged()
    return f"a delay of 1 s took {min(took):.1f} s to {max(took):.1f} s"


@scenario("clocks-part", **FAKED)
def clocks_part(stage: Stage) -> None:
    """Each node's clock goes its own way, by up to twenty seconds, while nodes are killed: primaries change between clocks."""
    for _ in range(3):
        for clock in stage.cluster.clocks.values():
            clock.step(f"{stage.rolls.randint(-PART_S // 2, PART_S // 2):+d}")
        time.sleep(1.0)  # the load goes on with these clocks
        victim = stage.rolls.choice(stage.names)
        stage.cluster[victim].kill9()
        stage.wait_acknowledged()
        stage.cluster.start(victim)
        stage.whole()
    for clock in stage.cluster.clocks.values():
        clock.step("+0")
