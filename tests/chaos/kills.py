"""kill -9, SIGSTOP, and tasks that kill."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any

from tests.chaos.scenario import scenario
from tests.chaos.stage import HEALED_S, Stage
from tests.cluster.replicated import kill_all
from tests.support.harness import until

SESSION_S = 2.0
"""``T_session``: after a longer silence a node is taken for dead."""


def _down_for_a_while(stage: Stage, name: str) -> None:
    stage.cluster[name].kill9()
    time.sleep(stage.rolls.uniform(0.2, 1.0))  # down
    stage.cluster.start(name)


@scenario("kill-primary", is_short=True)
def kill_primary(stage: Stage) -> str:
    """kill -9 of a node that leads partitions, not the Raft group; twice, the second time before all copies are back."""
    waits = []
    for _ in range(2):
        stage.cluster[victim := stage.follower()].kill9()
        waits.append(stage.wait_acknowledged())
        stage.cluster.start(victim)
        stage.cluster.wait_whole(deadline_s=HEALED_S)
    return f"five submits acknowledged {max(waits):.1f} s after the kill, at the latest"


@scenario("kill-controller")
def kill_controller(stage: Stage) -> str:
    """kill -9 of the Raft leader, three times, each time whoever leads then."""
    waits = []
    for _ in range(3):
        stage.cluster[victim := stage.leader()].kill9()
        waits.append(stage.wait_acknowledged())
        stage.cluster.start(victim)
        stage.cluster.wait_whole(deadline_s=HEALED_S)
    return f"five submits acknowledged {max(waits):.1f} s after the kill, at the latest"


@scenario("kill-all")
def kill_every_node(stage: Stage) -> None:
    """kill -9 of all three at one moment, as when the power fails; they start again in another order (F26)."""
    kill_all(stage.cluster)
    stage.cluster.start(*stage.rolls.sample(stage.names, 3))
    stage.whole()


@scenario("kill-one-after-another")
def kill_one_after_another(stage: Stage) -> None:
    """kill -9 of all three, one after another within a second, twice; each starts again while others still die."""
    for _ in range(2):
        order = stage.rolls.sample(stage.names, 3)
        for name in order:
            stage.cluster[name].kill9()
            time.sleep(stage.rolls.choice([0.05, 0.3, 0.6]))  # so that some survivors see it, and act
        for name in stage.rolls.sample(stage.names, 3):
            stage.cluster.start(name)
            time.sleep(stage.rolls.choice([0.0, 0.05, 0.5]))
        stage.whole()


@scenario("kill-two-of-three")
def kill_two_of_three(stage: Stage) -> str:
    """kill -9 of two at once: the last one answers nothing that it can't prove; with the second it goes on."""
    last = stage.rolls.choice(stage.names)
    dead = [name for name in stage.names if name != last]
    for name in dead:
        stage.cluster[name].kill9()
    time.sleep(1.0)  # what was on its way then may still be acknowledged
    since_s = time.monotonic()
    time.sleep(4.0)  # alone
    alone = stage.acknowledged_since(since_s)
    assert not alone, f"{alone} submits were acknowledged by one node of three"
    stage.cluster.start(dead[0])
    waited_s = stage.wait_acknowledged()
    stage.cluster.start(dead[1])
    return f"nothing acknowledged by one alone; five submits {waited_s:.1f} s after the second was started"


@scenario("restart-loop")
def restart_loop(stage: Stage) -> None:
    """One node is killed eight times in a row, 0.1 s to 3 s after each start, at whatever it does then."""
    victim = stage.follower()
    for _ in range(8):
        stage.cluster[victim].kill9()
        stage.cluster.start(victim)
        time.sleep(stage.rolls.uniform(0.1, 3.0))
    stage.whole()


BIG_BYTES = 1_000_000
BIG_TASKS = 80
"""More than the 64 MiB of log that a primary keeps for a copy outside the set: the rest must come as a snapshot."""


@scenario("kill-in-catch-up", partitions=1, options=("--max-body", "32MiB"), rss_mib_max=600)
def kill_in_catch_up(stage: Stage) -> str:
    """A copy that is 80 MB behind gets a snapshot; it is killed in the middle three times, then the primary that sends it."""
    victim = stage.replica()
    stage.cluster[victim].kill9()
    stage.cluster.wait_gone(victim)
    via = stage.others(victim)[0]
    ids = (f"big-{number}" for number in itertools.count())
    for _ in range(0, BIG_TASKS, 10):
        tasks = [{"type": "noop", "id": next(ids), "payload": "x" * BIG_BYTES, "delay": 1} for _ in range(10)]

        def taken(tasks: list[dict[str, object]] = tasks) -> bool:
            results = stage.cluster[via].post("/tasks/batch", {"tasks": tasks}, deadline_s=60).json["results"]
            return all("error" not in result for result in results)

        until(taken, deadline_s=HEALED_S, what="ten big tasks are taken")
        for task in tasks:
            stage.adopt(str(task["id"]), acknowledged=True)
    for _ in range(3):
        stage.cluster.start(victim)
        until(lambda: stage.cluster.view(victim), deadline_s=HEALED_S, what=f"{victim} answers")
        time.sleep(stage.rolls.uniform(0.0, 0.8))  # somewhere in the snapshot
        stage.cluster[victim].kill9()
    stage.cluster.start(victim)
    until(lambda: stage.cluster.view(victim), deadline_s=HEALED_S, what=f"{victim} answers")
    time.sleep(0.3)
    sender = stage.primary()
    stage.cluster[sender].kill9()
    stage.cluster.start(sender)
    began_s = time.monotonic()
    stage.whole()
    return f"in sync {time.monotonic() - began_s:.1f} s after the last kill"


@scenario("poison", load={"clients": 2})
def poison(stage: Stage) -> str:
    """A task whose handler does kill -9 of its node: three nodes die, then it is left alone as a dead letter (F31)."""
    task = {"type": "kill-node", "payload": str(stage.cluster.home / "data"), "id": "poison"}
    with contextlib.suppress(OSError):  # it may kill the node that is about to say that it is in
        stage.cluster[stage.names[0]].post("/tasks/submit", task)
    stage.adopt("poison")
    died: list[str] = []
    began_s = time.monotonic()

    def fallen() -> list[str]:
        return [name for name in stage.names if not stage.cluster[name].is_running]

    while len(died) < 3:
        for name in until(fallen, deadline_s=HEALED_S, what=f"death number {len(died) + 1}"):
            assert stage.cluster[name].process.returncode == -9, stage.cluster[name].log_tail()
            died.append(name)
            stage.cluster.start(name)
    seconds = time.monotonic() - began_s

    def is_dead_letter() -> Any:
        with contextlib.suppress(OSError):
            found = stage.cluster[stage.names[0]].get("/tasks/status?id=poison").json
            return found.get("status") == "failed" and found["error"]["type"] == "attempts_lost"
        return False

    until(is_dead_letter, deadline_s=HEALED_S, what="the dead letter")
    time.sleep(1.0)
    assert not fallen(), "it is left alone"
    return f"{', '.join(died)} died within {seconds:.0f} s"


# --- asleep ---
@scenario("stop-primary")
def stop_primary(stage: Stage) -> str:
    """SIGSTOP of a node that leads partitions, for longer than its session; it wakes with what it believed then (F40)."""
    victim = stage.follower()
    stage.cluster[victim].stop()
    waited_s = stage.wait_acknowledged(30)
    stage.cluster.wait_gone(victim)
    time.sleep(1.0)  # others lead by now
    stage.cluster[victim].cont()
    stage.whole()
    return f"thirty submits acknowledged {waited_s:.1f} s after it fell asleep"


@scenario("stop-controller")
def stop_controller(stage: Stage) -> None:
    """SIGSTOP of the Raft leader for longer than its session, then for less, several times in a row."""
    victim = stage.leader()
    stage.cluster[victim].stop()
    stage.cluster.wait_gone(victim)
    stage.cluster[victim].cont()
    stage.cluster.wait_whole(deadline_s=HEALED_S)
    for _ in range(5):
        victim = stage.leader()
        stage.cluster[victim].stop()
        time.sleep(stage.rolls.uniform(0.3, SESSION_S))  # asleep
        stage.cluster[victim].cont()
        time.sleep(0.3)  # awake
    stage.whole()


@scenario("stop-around-a-crash")
def stop_around_a_crash(stage: Stage) -> None:
    """A node sleeps; another one dies while it does; it wakes, and with it the cluster; then the dead one comes back."""
    for _ in range(2):
        sleeper, dead, _ = stage.rolls.sample(stage.names, 3)
        stage.cluster[sleeper].stop()
        time.sleep(stage.rolls.uniform(0.2, SESSION_S + 1.5))  # taken for dead, or not yet
        stage.cluster[dead].kill9()
        time.sleep(stage.rolls.uniform(0.2, 2.0))  # one alone
        stage.cluster[sleeper].cont()
        stage.wait_acknowledged()
        stage.cluster.start(dead)
        stage.whole()


@scenario("stop-all")
def stop_all(stage: Stage) -> str:
    """SIGSTOP of all three at one moment, for 6 s: each wakes to find everybody silent for longer than a session."""
    for name in stage.names:
        stage.cluster[name].stop()
    time.sleep(6.0)
    for name in stage.rolls.sample(stage.names, 3):
        stage.cluster[name].cont()
    waited_s = stage.wait_acknowledged()
    return f"five submits acknowledged {waited_s:.1f} s after they woke"


@scenario("sleep-beyond-the-lease", load={"kinds": ("work-process", "work-async")})
def sleep_beyond_the_lease(stage: Stage) -> str:
    """A node with running tasks sleeps for 18 s, longer than their lease: they run again elsewhere, and its late word is void
    (F30)."""
    victim = stage.follower()
    stage.cluster[victim].stop()
    time.sleep(18.0)
    stage.cluster[victim].cont()
    stage.whole()
    return f"{victim} slept for 18 s"
