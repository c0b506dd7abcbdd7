"""One failure again and again: load, hurt, wait until every writer is acknowledged, heal."""

from __future__ import annotations

import http.client
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.failover.failures import Failure
from bench.failover.writers import Gap, Writer, wait_acknowledged, writing
from tests.cluster.clusters import Cluster
from tests.cluster.replicated import NAMES, ids_in, led_by, seed_of

WRITERS = 6
"""Each with a partition of its own, of those that are hit."""
BEFORE_S = 0.4
AFTER_S = 0.2
GIVE_UP_S = 20.0


class Unanswered(AssertionError):
    """Nothing was acknowledged for ``GIVE_UP_S``; the message names the partitions."""


class Table(NamedTuple):
    """What all writers of all rounds of one failure saw, in seconds."""

    rounds: int
    p50: float
    p99: float
    longest: float
    worst_p50: float
    """Median over the rounds of the worst writer of each."""
    tries_p50: float


def one_round(cluster: Cluster, failure: Failure, seed: int, label: str, rolls: random.Random) -> list[Gap]:
    """:raises Unanswered:"""
    hurt = failure.draw(cluster, rolls)
    partitions = rolls.sample([p for victim in hurt.victims for p in led_by(cluster, victim)], WRITERS)
    writers = [
        # Half of them begin at a node that is hit, as clients do that know one address.
        Writer(n, cluster.ports, ids_in(seed, p, f"{label}-{n}"), rolls.choice(hurt.victims if n % 2 else NAMES))
        for n, p in enumerate(partitions)
    ]
    with writing(writers):
        time.sleep(BEFORE_S + rolls.uniform(0, 0.1))  # writes go on undisturbed
        hurt_s = time.monotonic()
        failure.hurt(cluster, hurt)
        silent = wait_acknowledged(writers, hurt_s, GIVE_UP_S)
        if failure.heals_under_load and not silent:
            failure.heal(cluster, hurt)
        time.sleep(AFTER_S)  # and again after the gap
        shown = _shown(cluster, partitions) if silent else ""
    gaps = [writer.gap(hurt_s) for writer in writers]
    if lost := [(p, len(w.acks)) for p, gap, w in zip(partitions, gaps, writers, strict=True) if gap is None]:
        raise Unanswered(
            f"{failure.title}: no acknowledgement for {GIVE_UP_S:g} s, or none before, on (partition, acknowledged) {lost} of "
            f"{'and '.join(hurt.victims)}, leader was {hurt.leader}{shown}"
        )
    if not failure.heals_under_load:
        failure.heal(cluster, hurt)
    return [gap for gap in gaps if gap is not None]


def _shown(cluster: Cluster, partitions: Sequence[int]) -> str:
    """What each node says of them, for whoever looks into it."""
    lines = []
    for name in cluster.running:
        try:
            view, found = (
                cluster.view(name),
                cluster[name].get("/cluster/partitions", deadline_s=2.0).json["partitions"],
            )
        except (OSError, http.client.HTTPException) as why:
            lines.append(f"{name}: {why}")
            continue
        lines += [f"{name}: {view}", *(f"  {one}" for one in found if one["partition"] in partitions)]
    return "\n" + "\n".join(lines)


def rounds(
    cluster: Cluster, failure: Failure, count: int, *, may_go_on: Callable[[int], bool] = lambda number: True
) -> list[list[Gap]]:
    """:param may_go_on: asked before each round, with how many there were."""
    rolls = random.Random(f"failover {failure.name}")
    seed = seed_of(cluster)
    found: list[list[Gap]] = []
    while len(found) < count and may_go_on(len(found)):
        found.append(one_round(cluster, failure, seed, f"{failure.name}-{len(found)}", rolls))
    return found


def table_of(found: Sequence[Sequence[Gap]]) -> Table:
    gaps = sorted(gap.seconds for one in found for gap in one)
    return Table(
        len(found),
        statistics.median(gaps),
        gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))],
        gaps[-1],
        statistics.median(max(gap.seconds for gap in one) for one in found),
        statistics.median(gap.calls for one in found for gap in one),
    )
