"""Disks that are full, slow, broken, wiped, or show an older state."""

from __future__ import annotations

import shutil
import time

from tests.chaos.faults import MIB, injected, lacks_mount, lacks_strace, syncs_in
from tests.chaos.scenario import scenario
from tests.chaos.stage import HEALED_S, Stage
from tests.support.harness import until
from tq_node.limits import DISK_FLOOR_BYTES
from tq_node.node.process import EXIT_DISK_FULL, EXIT_REFUSED, EXIT_STORE_BROKEN

DISK_MIB = 160
RESERVE_MIB = 64
"""``--min-free-disk`` of the nodes with a small disk."""
STORE_BROKEN = r"the store is broken, the node ends|the store failed|the disk is full; the node stops in order"
SMALL = {
    "disk_mib": DISK_MIB,
    "options": ("--min-free-disk", f"{RESERVE_MIB}MiB"),
    "lacks": lacks_mount,
    "log_allows": STORE_BROKEN,
}


def _fill(stage: Stage, victim: str) -> str:
    """Below the reserve: the node takes no new work, and leads nothing. Below the floor: it stops in order, and the others go on.
    With room again it comes back as it was."""
    ballast = stage.ballast(victim)
    ballast.leave((RESERVE_MIB * MIB + DISK_FLOOR_BYTES) // 2)

    def leads_nothing() -> bool:
        return stage.cluster.primaries(stage.others(victim)[0])[victim] == 0

    began_s = time.monotonic()
    until(leads_nothing, deadline_s=HEALED_S, what=f"{victim}, low on disk, leads nothing")
    handed_s = time.monotonic() - began_s
    stage.wait_acknowledged(30)
    ballast.leave(DISK_FLOOR_BYTES // 2)
    stage.wait_exit(victim, EXIT_DISK_FULL)
    stage.wait_acknowledged(30)
    ballast.take_away()
    stage.heal()
    return f"{victim} led nothing {handed_s:.1f} s after it fell below the reserve, and ended with {EXIT_DISK_FULL} at the floor"


@scenario("full-disk-of-a-primary", **SMALL)
def full_disk_of_a_primary(stage: Stage) -> str:
    """The disk (tmpfs) of a node that leads partitions fills up: below the reserve it leads nothing any more, at the floor it
    stops (F11)."""
    return _fill(stage, stage.follower())


@scenario("full-disk-of-the-controller", **SMALL)
def full_disk_of_the_controller(stage: Stage) -> str:
    """The same with the Raft leader."""
    return _fill(stage, stage.leader())


@scenario("full-disk-at-once", partitions=1, **SMALL)
def full_disk_at_once(stage: Stage) -> str:
    """A replica's disk has no byte left from one moment to the next: it ends with 75, or with 74 where a write failed first, and
    the others go on (R18)."""
    victim = stage.replica()
    ballast = stage.ballast(victim)
    ballast.leave(0)
    code = stage.wait_exit(victim, EXIT_DISK_FULL, EXIT_STORE_BROKEN)
    stage.wait_acknowledged(30)
    ballast.take_away()
    if code == EXIT_STORE_BROKEN:
        stage.come_back_as_new(victim, "--readmit")
    else:
        stage.heal()
    return f"it ended with {code}"


# --- fsync fails ---
def _fail_a_sync(stage: Stage, victim: str) -> str:
    began_s = time.monotonic()
    with injected(stage.cluster[victim].pid, "error=EIO:when=1", stage.directory / "syncs"):
        stage.wait_exit(victim, EXIT_STORE_BROKEN)
    ended_s = time.monotonic() - began_s
    waited_s = stage.wait_acknowledged(10)
    assert "has failed" in _refused_start(stage, victim)
    stage.come_back_as_new(victim, "--readmit")
    return (
        f"{victim} ended with {EXIT_STORE_BROKEN} {ended_s:.1f} s after strace was called; ten submits acknowledged "
        f"{waited_s:.1f} s later"
    )


def _refused_start(stage: Stage, victim: str) -> str:
    """It does not start on that store again, however whole it looks; what it says."""
    stage.cluster.start(victim)
    code = stage.wait_exit(victim, EXIT_REFUSED, EXIT_STORE_BROKEN)
    assert code, "it must not start"
    return stage.cluster.log(victim)


FAILED = {"lacks": lacks_strace, "log_allows": STORE_BROKEN}


@scenario("failed-sync-on-a-primary", **FAILED)
def failed_sync_on_a_primary(stage: Stage) -> str:
    """One fsync of a node that leads partitions fails (strace: EIO): it ends with 74 and others lead; it comes back as a new node
    only (R18, F8)."""
    return _fail_a_sync(stage, stage.follower())


@scenario("failed-sync-on-the-controller", **FAILED)
def failed_sync_on_the_controller(stage: Stage) -> str:
    """The same with the Raft leader."""
    return _fail_a_sync(stage, stage.leader())


@scenario("failed-sync-on-a-replica", partitions=1, **FAILED)
def failed_sync_on_a_replica(stage: Stage) -> str:
    """The same with a node that leads nothing."""
    return _fail_a_sync(stage, stage.replica())


# --- slow ---
SLOW_S = 12.0


def _slow(stage: Stage, victim: str, sync_ms: int, for_s: float = SLOW_S) -> tuple[float, int]:
    """Each sync of the victim takes so much longer, for a while. Returns the longest time without an acknowledged submit, and
    how many were acknowledged."""
    trace = stage.directory / "syncs"
    with injected(stage.cluster[victim].pid, f"delay_exit={sync_ms * 1000}", trace):
        until(lambda: syncs_in(trace), deadline_s=HEALED_S, what="a slow sync")
        began_s = time.monotonic()
        time.sleep(for_s)  # the load goes on, the disk being slow
        ended_s = time.monotonic()
    done = sorted(
        call.ended_s
        for call in list(stage.history.calls)
        if call.kind == "submit" and call.outcome == "ok" and began_s <= call.ended_s <= ended_s
    )
    gap_s = max(later - earlier for earlier, later in zip([began_s, *done], [*done, ended_s], strict=True))
    return gap_s, len(done)


@scenario("slow-disk-of-a-replica", partitions=1, lacks=lacks_strace)
def slow_disk_of_a_replica(stage: Stage) -> str:
    """Each fsync of a replica takes 3 s for 12 s: it leaves the in-sync set, and the others go on without it (R4, shrink)."""
    victim = stage.replica()
    gap_s, count = _slow(stage, victim, 3_000)
    assert count > 20, f"{count} submits were acknowledged in {SLOW_S:.0f} s: one slow replica stalls all"
    return f"longest time without an acknowledged submit: {gap_s:.1f} s, {count} in all"


@scenario("sluggish-disk-of-a-replica", partitions=1, lacks=lacks_strace, load={"timeout_s": 5.0})
def sluggish_disk_of_a_replica(stage: Stage) -> str:
    """Each fsync of a replica takes 200 ms for 12 s: it stays in the set, and each submit waits for it, no longer."""
    gap_s, count = _slow(stage, stage.replica(), 200)
    assert count, "nothing was acknowledged"
    return f"longest time without an acknowledged submit: {gap_s:.1f} s, {count} in all"


@scenario("slow-disk-of-a-primary", partitions=1, lacks=lacks_strace)
def slow_disk_of_a_primary(stage: Stage) -> str:
    """Each fsync of the primary takes 2 s for 30 s; its replicas are fast. It says so itself, and another one leads (F12)."""
    victim = stage.primary()
    gap_s, count = _slow(stage, victim, 2_000, 30.0)
    assert count > 20, f"{count} submits were acknowledged: one slow primary stalls all"
    assert stage.primary() != victim, "it leads on"
    return f"longest time without an acknowledged submit: {gap_s:.1f} s, {count} in all"


# --- gone, or older ---
ROLLED_BACK = r"is a copy, or an older state, of one that the cluster has seen"


@scenario("wiped-disk")
def wiped_disk(stage: Stage) -> None:
    """kill -9 of a node, and its directory is gone: under its old name a new node waits until the dead one is removed, and copies
    everything (F13)."""
    victim = stage.follower()
    stage.cluster[victim].kill9()
    shutil.rmtree(stage.cluster.data(victim))
    stage.wait_acknowledged()
    stage.come_back_as_new(victim)


@scenario("rolled-back-disk", log_allows=ROLLED_BACK)
def rolled_back_disk(stage: Stage) -> None:
    """A node that has ended starts from an older state of its disk, twice: it is refused, and comes back as a new node (F14)."""
    victim = stage.follower()
    older = stage.directory / "older"
    stage.cluster[victim].kill9()
    shutil.copytree(stage.cluster.data(victim), older)
    stage.cluster.start(victim)
    stage.whole()
    stage.wait_acknowledged(20)
    stage.cluster[victim].kill9()
    shutil.rmtree(stage.cluster.data(victim))
    shutil.copytree(older, stage.cluster.data(victim))
    for _ in range(2):
        stage.cluster.start(victim)
        stage.wait_exit(victim, EXIT_REFUSED)
        assert "older state" in stage.cluster.log(victim)
    stage.come_back_as_new(victim, "--readmit")


@scenario("rolled-back-while-it-ran", log_allows=rf"{STORE_BROKEN}|consensus has failed|Traceback|StoreBroken")
def rolled_back_while_it_ran(stage: Stage) -> str:
    """The older state was taken while the node ran (asleep for that moment), so its next start looks like a later one, but both
    its partitions' logs and its log of consensus lack what it had acknowledged. The two others are whole all the time."""
    victim = stage.follower()
    older = stage.directory / "older"
    stage.cluster[victim].stop()
    shutil.copytree(stage.cluster.data(victim), older)
    stage.cluster[victim].cont()
    stage.whole()
    for _ in range(10):
        for what in ("pause", "resume"):
            order = f"/tasks/{what}?queue=elsewhere"
            until(lambda order=order: stage.cluster[victim].post(order).status == 200, what=order)  # type: ignore[misc]
    stage.wait_acknowledged(20)
    stage.cluster[victim].kill9()
    stage.cluster.wait_gone(victim)
    shutil.rmtree(stage.cluster.data(victim))
    shutil.copytree(older, stage.cluster.data(victim))
    stage.cluster.start(victim)

    def decided() -> bool:
        view = stage.cluster.view(victim) if stage.cluster[victim].is_running else None
        active = view is not None and view.statuses.get(victim) == "active"
        return active or not stage.cluster[victim].is_running

    until(decided, deadline_s=HEALED_S, what="it is let in, or it ends")
    time.sleep(3.0)  # should it end a moment later
    if stage.cluster[victim].is_running:
        return "it was let in, and caught up"
    code = stage.wait_exit(victim, EXIT_REFUSED, EXIT_STORE_BROKEN)
    stage.come_back_as_new(victim, "--readmit")
    return f"it ended with {code}"
