"""N talks to N - 1, on the wire: all that today's nodes said to one another in ``life.py`` is read as the last release would.

At that release's feature level: what comes with a later one is written only where no node of it is a member (F44).
"""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from tests.support.harness import Nodes
from tests.upgrade.frozen import Unreadable
from tests.upgrade.life import OPTIONS, live
from tests.upgrade.taps import Said
from tests.upgrade.versions import HERE, VersionedCluster, last_recorded

pytestmark = [pytest.mark.cluster, pytest.mark.long]


def test_what_todays_nodes_say_can_be_read_by_the_last_release(nodes: Nodes) -> None:
    level = last_recorded().description["features"][1]
    cluster = VersionedCluster(
        nodes, tapped=True, held_s=3600, options=(*OPTIONS, "--handlers", "older_level"),
        environment={"TEST_FEATURE_LEVEL_MAX": str(level)},
    )  # fmt: skip
    shutil.copy(HERE / "older_level.py", cluster.home)
    assert cluster.taps is not None
    try:
        live(cluster)
    finally:
        cluster.close()
    frozen = last_recorded().frozen()
    refused: dict[str, Said] = {}
    read: Counter[str] = Counter()
    levels: set[int] = set()
    for said in cluster.taps.said():
        if said.command not in frozen.commands:
            continue  # new; refused by N - 1 as ``unknown_command``, which the rolling upgrade tries
        try:
            found = list(frozen.read(said.command, said.what, said.box, said.calls))
            read.update(one.name for one in found)
            levels |= {one.value.feature_level for one in found if one.kind == "ClusterMap"}
        except Unreadable as why:
            refused.setdefault(f"{said.command} {said.what}: {why}"[:1_000], said)
        read[said.command] += 1
    assert not refused, "\n".join(refused)
    assert levels == {level}
    assert read.keys() >= frozen.commands.keys(), "each command was said"
    assert read["tq_node.partition.messages.SnapChunk"]
    assert any(times for name, times in read.items() if name.endswith(".Finish")), (
        "under the name that the release had for it"
    )
