"""What operators do, under load: restarts, drains, more nodes, fewer nodes."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter

from tests.chaos.scenario import scenario
from tests.chaos.stage import HEALED_S, Stage
from tests.cluster.clusters import copies_of
from tests.support.harness import until
from tests.support.history import NEVER, Call

PATIENT_S = 30.0
"""Of a client that waits for what the node has to say: it gives up after 10 s itself."""
FINAL_REFUSALS = (404, 409)


def quantile_ms(calls: list[Call], part: float) -> float:
    took = sorted(call.ended_s - call.began_s for call in calls if call.ended_s < NEVER)
    return took[min(len(took) - 1, math.ceil(len(took) * part) - 1)] * 1000 if took else 0.0


def gap_s(stage: Stage, since_s: float) -> float:
    """The longest time without an acknowledged submit."""
    done = sorted(
        call.ended_s
        for call in list(stage.history.calls)
        if call.kind == "submit" and call.outcome == "ok" and call.ended_s >= since_s
    )
    return max((later - earlier for earlier, later in zip([since_s, *done], done, strict=False)), default=0.0)


def unexpected(stage: Stage, since_s: float) -> Counter[tuple[str, int, str]]:
    """What clients heard besides: done; nothing to be done (404, 409); and 503 or 429 with ``Retry-After``."""
    found: Counter[tuple[str, int, str]] = Counter()
    for call in list(stage.history.calls):
        is_under_way = not call.http and not call.code
        fine = (
            is_under_way or call.http in (200, 201, *FINAL_REFUSALS) or (call.http in (429, 503) and call.retry_after)
        )
        if call.began_s >= since_s and not fine:
            found[call.kind, call.http, call.code] += 1
    return found


def order(stage: Stage, via: str, what: str, node: str) -> None:
    def taken() -> bool:
        return stage.cluster[via].post(f"/cluster/{what}?node={node}").status == 202

    until(taken, deadline_s=HEALED_S, what=f"{what} of {node} is taken")


def wait_emptied(stage: Stage, name: str) -> None:
    """No partition has a copy there, or its primary, and none is about to."""
    via = stage.others(name)[0]

    def emptied() -> bool:
        shown = stage.cluster.partitions(via)
        return not any(name in copies_of(one) or one["adding"] or one["removing"] for one in shown)

    until(emptied, deadline_s=HEALED_S, what=f"{name} holds nothing")


def remove(stage: Stage, name: str) -> None:
    """Its clients leave it first, then it is drained and removed; it ends by itself, with 1."""
    stage.load.ports = {other: port for other, port in stage.load.ports.items() if other != name}
    time.sleep(0.5)  # what was on its way is answered
    via = stage.others(name)[0]
    order(stage, via, "drain", name)
    wait_emptied(stage, name)
    order(stage, via, "remove", name)
    stage.wait_exit(name, 1)
    del stage.cluster.processes[name]


@scenario("rolling-restart", load={"timeout_s": PATIENT_S})
def rolling_restart(stage: Stage) -> str:
    """docs/howto/rolling-upgrade.md: SIGTERM to one node after another, each waited for until all copies are in sync again."""
    since_s = time.monotonic()
    for name in stage.names:
        assert stage.cluster[name].terminate() == 0, stage.cluster[name].log_tail()
        stage.cluster.start(name)
        stage.whole()
    return f"longest time without an acknowledged submit: {gap_s(stage, since_s):.2f} s"


@scenario("drain", load={"timeout_s": PATIENT_S}, log_allows=r"was removed from its cluster")
def drain(stage: Stage) -> str:
    """A node is drained, removed, wiped, and joins again: no client that is not at that node hears anything but 503 with
    ``Retry-After``."""
    victim = stage.follower()
    since_s = time.monotonic()
    port = stage.load.ports[victim]
    remove(stage, victim)
    shutil.rmtree(stage.cluster.data(victim))
    via = stage.cluster.running[0]
    stage.cluster.start(victim, extra=["--join", f"localhost:{stage.cluster.ports[via]}"])
    stage.cluster[victim].wait_ready(HEALED_S)
    stage.load.ports = {**stage.load.ports, victim: port}
    stage.whole()
    odd = unexpected(stage, since_s)
    assert not odd, odd
    return f"{victim} left and came back; longest time without an acknowledged submit: {gap_s(stage, since_s):.2f} s"


@scenario(
    "grow-and-shrink",
    load={"timeout_s": PATIENT_S, "clients": 6},
    log_allows=r"was removed from its cluster",
)
def grow_and_shrink(stage: Stage) -> str:
    """Three nodes become five, then three again, under load: clients hear no error but 503 with ``Retry-After``."""
    since_s = time.monotonic()
    for name in ("node-4", "node-5"):
        stage.cluster.port(name)
        stage.cluster.start(name)
        stage.cluster[name].wait_ready(HEALED_S)
        stage.load.ports = {**stage.load.ports, name: stage.cluster.ports[name]}
    stage.settle()
    grown_s = time.monotonic() - since_s
    time.sleep(3.0)  # five at work
    leader = stage.leader()
    for name in [name for name in ("node-2", "node-5", "node-3") if name != leader][:2]:
        remove(stage, name)
    stage.settle()
    seconds = time.monotonic() - since_s
    odd = unexpected(stage, since_s)
    assert not odd, odd
    submits = [call for call in list(stage.history.calls) if call.kind == "submit" and call.began_s >= since_s]
    done = [call for call in submits if call.outcome == "ok"]
    refused = sum(call.http in (429, 503) for call in submits)
    return (
        f"five after {grown_s:.0f} s, three again after {seconds:.0f} s; {len(done)} submits acknowledged, p50 "
        f"{quantile_ms(done, 0.5):.1f} ms, p99 {quantile_ms(done, 0.99):.0f} ms; {refused} answered 503 with Retry-After, "
        "no other error"
    )
