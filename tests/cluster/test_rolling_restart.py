"""docs/howto/rolling-upgrade.md, with one release on both sides: one node at a time, under load, and nobody loses anything."""

from __future__ import annotations

import time

import pytest

from tests.cluster.replicated import (
    HARM,
    NAMES,
    MakeCluster,
    compare_at_rest,
    every_task,
    kill_all,
    started,
    wait_copies,
    wait_quiet,
)
from tests.support.history import assert_sound
from tests.support.load import Load, loading, summary

pytestmark = pytest.mark.cluster

GAP_S_MAX = 3.0
"""Ten times what is allowed to a failover and more: the machine is shared, and this is about "goes on", not about how fast."""


def gaps(load: Load, since_s: float) -> list[float]:
    """Times without any acknowledged submit, longest first."""
    done = sorted(
        call.ended_s
        for call in list(load.history.calls)
        if call.kind == "submit" and call.outcome == "ok" and call.ended_s >= since_s
    )
    return sorted((later - earlier for earlier, later in zip([since_s, *done], done, strict=False)), reverse=True)


@pytest.mark.long
def test_each_node_in_turn_under_load(make_cluster: MakeCluster) -> None:
    cluster = started(make_cluster)
    began_s = time.monotonic()
    took: dict[str, float] = {}
    with loading(cluster.ports, seed="rolling", clients=3, pause_s=0.02) as load:
        time.sleep(1.0)
        for name in NAMES:
            at_s = time.monotonic()
            assert cluster[name].terminate() == 0
            cluster.start(name)
            cluster[name].wait_ready()
            cluster.wait_whole()
            wait_copies(cluster)  # the page's "wait until in_sync is 3 everywhere"
            took[name] = time.monotonic() - at_s
        time.sleep(1.0)
    longest = gaps(load, began_s)[:3]
    wait_quiet(cluster)
    shown = [every_task(cluster, name) for name in NAMES]
    history = load.history
    assert len(history.acknowledged) > 100
    assert_sound(history, shown[0])
    assert shown[1] == shown[2] == shown[0]
    worst = ", ".join(f"{gap * 1000:.0f} ms" for gap in longest)
    each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items())
    print(f"\nrolling restart: {each}; longest times without an acknowledged submit: {worst}; {summary(history)}")
    assert longest[0] < GAP_S_MAX, f"longest times without an acknowledged submit: {worst}"
    kill_all(cluster)
    compare_at_rest(cluster)
    cluster.assert_logs_are_clean(HARM)
