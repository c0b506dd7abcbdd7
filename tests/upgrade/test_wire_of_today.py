"""N talks to N - 1, on the wire: all that today's nodes said to one another in ``life.py`` is read as the last release would."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.harness import Nodes
from tests.upgrade.frozen import Unreadable
from tests.upgrade.life import OPTIONS, live
from tests.upgrade.taps import Said
from tests.upgrade.versions import VersionedCluster, last_recorded

pytestmark = [pytest.mark.cluster, pytest.mark.long]


def test_what_todays_nodes_say_can_be_read_by_the_last_release(nodes: Nodes) -> None:
    cluster = VersionedCluster(nodes, tapped=True, held_s=3600, options=OPTIONS)
    assert cluster.taps is not None
    try:
        live(cluster)
    finally:
        cluster.close()
    frozen = last_recorded().frozen()
    refused: dict[str, Said] = {}
    read: Counter[str] = Counter()
    for said in cluster.taps.said():
        if said.command not in frozen.commands:
            continue  # new; refused by N - 1 as ``unknown_command``, which the rolling upgrade tries
        try:
            read.update(found.name for found in frozen.read(said.command, said.what, said.box, said.calls))
        except Unreadable as why:
            refused.setdefault(f"{said.command} {said.what}: {why}"[:1_000], said)
        read[said.command] += 1
    assert not refused, "\n".join(refused)
    assert read.keys() >= frozen.commands.keys(), "each command was said"
    assert read["tq_node.partition.messages.SnapChunk"]
    assert read["tq_node.runtime.forwarding.Finish"]
