"""``apply`` as a whole: birth, the cluster's own fields, bytes, digests, sharing and cost."""

from __future__ import annotations

import subprocess
import sys
import time

import msgspec
import pytest

from tests.support.harness import PROJECT
from tests.unit.tq_node.cluster.tables import CLUSTER_ID, Table, later_release, nid, registration, replace
from tq_node import limits
from tq_node.cluster import commands as c
from tq_node.cluster import map as table_of
from tq_node.cluster.map import EMPTY, QueueChanged, UnreadableMap, apply
from tq_node.cluster.map_edit import MapEdit
from tq_node.cluster.records import FEATURE_LEVEL_MAX, ClusterSettings
from tq_node.cluster.refusals import Refusal


class TestBirth:
    @pytest.mark.parametrize(
        "settings",
        [
            ClusterSettings(0, 3, 1, 3),
            ClusterSettings(limits.PARTITIONS_MAX + 1, 3, 1, 3),
            ClusterSettings(64, 0, 1, 3),
            ClusterSettings(64, 8, 1, 3),
            ClusterSettings(64, 3, -1, 3),
            ClusterSettings(64, 3, 2**32, 3),
            ClusterSettings(64, 3, 1, 2),
        ],
    )
    def test_bad_settings(self, settings: ClusterSettings) -> None:
        applied = apply(EMPTY, 1, c.FoundCluster(CLUSTER_ID, "x", settings, registration(1)))
        assert (applied.map, applied.refused[0].code) == (EMPTY, Refusal.BAD_SETTINGS)

    def test_once(self) -> None:
        table = Table()
        again = c.FoundCluster(CLUSTER_ID, "x", table.map.settings, registration(2))
        assert table.refusals(again) == [Refusal.ALREADY_FOUNDED]

    def test_nothing_before(self) -> None:
        applied = apply(EMPTY, 1, c.Rebalance())
        assert (applied.map, applied.refused[0].code) == (EMPTY, Refusal.NOT_FOUNDED)

    def test_everything_is_told(self) -> None:
        applied = apply(EMPTY, 1, c.FoundCluster(CLUSTER_ID, "x", ClusterSettings(4, 3, 1, 3), registration(1)))
        assert len(applied.changes) == 5


def test_an_entry_is_applied_once() -> None:
    table = Table(2)
    with pytest.raises(AssertionError):
        apply(table.map, table.map.map_version, c.Rebalance())


class TestTheCluster:
    def test_queues_are_paused_and_resumed(self) -> None:
        table = Table()
        assert table.do(c.PauseQueue("b")).changes == (QueueChanged("b", is_paused=True),)
        table.do(c.PauseQueue("a"))
        assert table.map.paused_queues == ("a", "b")
        version = table.map.map_version
        assert table.do(c.PauseQueue("a")).changes == ()
        assert table.map.map_version == version
        assert table.do(c.ResumeQueue("b")).changes == (QueueChanged("b", is_paused=False),)
        assert table.do(c.ResumeQueue("b")).changes == ()

    def test_queues_have_bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "QUEUES_MAX", 1)
        table = Table()
        assert table.refusals(c.PauseQueue("")) == [Refusal.TOO_MANY]
        assert table.refusals(c.PauseQueue("x" * (limits.QUEUE_CHARS_MAX + 1))) == [Refusal.TOO_MANY]
        table.do(c.PauseQueue("a"))
        assert table.refusals(c.PauseQueue("b")) == [Refusal.TOO_MANY]

    def test_rebalance_is_a_marker_until_it_is_done(self) -> None:
        table = Table()
        assert table.refusals(c.RebalanceDone(0)) == [Refusal.NOT_NEEDED]
        table.do(c.Rebalance())
        first = table.map.rebalance
        table.do(c.Rebalance())
        assert table.refusals(c.RebalanceDone(first)) == [Refusal.NOT_NEEDED]
        table.do(c.RebalanceDone(table.map.rebalance))
        assert table.map.rebalance == 0

    def test_three_voters_are_noted_once(self) -> None:
        table = Table()
        table.do(c.NoteThreeVoters())
        version = table.map.map_version
        table.do(c.NoteThreeVoters())
        assert (table.map.has_had_three_voters, table.map.map_version) == (True, version)

    def test_f44_the_feature_level_is_raised_when_all_support_it_and_never_lowered(self) -> None:
        table = Table()
        table.register(2, feature_level_max=3)
        assert table.refusals(c.RaiseFeatureLevel(2)) == [Refusal.FEATURE_LEVEL]
        table.register(1, 2, feature_level_max=2)
        assert table.refusals(c.RaiseFeatureLevel(3)) == [Refusal.FEATURE_LEVEL]
        assert not table.refusals(c.RaiseFeatureLevel(2))
        assert table.refusals(c.RaiseFeatureLevel(1)) == [Refusal.NOT_NEEDED]
        table.register(3, feature_level_max=2)
        table.register(4, feature_level_max=3)
        for number in (1, 3):
            table.do(c.DrainNode(nid(number)))
        for number in (1, 3):
            table.down(number)

    def test_f44_a_removed_node_holds_nobody_back(self) -> None:
        table = Table()
        table.register(2, feature_level_max=2)
        table.forge_all(2)
        table.do(c.RemoveNode(nid(1), 1))
        assert not table.refusals(c.RaiseFeatureLevel(2))

    def test_f44_a_level_that_this_code_cannot_apply_stops_it(self) -> None:
        """Its members have raised it: to refuse, or to go on with what cannot be read back, would be divergence."""
        table = Table()
        later = FEATURE_LEVEL_MAX + 1
        table.register(1, 2, feature_level_max=later)
        table.register(2, feature_level_max=later)
        raised = c.RaiseFeatureLevel(later)
        with pytest.raises(UnreadableMap, match=f"feature level {later}"):
            table_of.apply(table.map, table.index + 1, raised)
        refused = table_of.apply(table.map, table.index + 1, c.RaiseFeatureLevel(later + 1))
        assert [r.code for r in refused.refused] == [Refusal.FEATURE_LEVEL], "what all refuse, it refuses too"
        assert not table.refusals(raised), "a later release goes on"
        with later_release():
            assert table_of.decode(table_of.encode(table.map)) == table.map

    def test_f44_nor_is_a_cluster_of_a_later_release_taken_for_one_s_own(self) -> None:
        settings = ClusterSettings(4, 3, 7, 3)
        found = c.FoundCluster(CLUSTER_ID, "later", settings, registration(1, feature_level_max=FEATURE_LEVEL_MAX + 1))
        with pytest.raises(UnreadableMap, match=f"feature level {FEATURE_LEVEL_MAX + 1}"):
            table_of.apply(EMPTY, 1, found)

    def test_f44_a_kind_above_the_feature_level_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(c, "FEATURE_LEVEL_OF", {c.Rebalance: 2})
        assert Table().refusals(c.Rebalance()) == [Refusal.FEATURE_LEVEL]


def a_busy_table() -> Table:
    table = Table(4)
    table.forge(0, 1, 2, 3, adding=(nid(3),), removing=(nid(2),), successor=nid(2))
    table.do(c.PauseQueue("q"))
    table.do(c.RemoveNode(nid(4), table.session(4)))
    table.do(c.UnsafeRecover(table.seen(1).partition, table.entry(1).epoch, table.entry(1).partition_version, nid(2)))
    return table


class TestBytes:
    def test_round_trip(self) -> None:
        table = a_busy_table()
        data = table_of.encode(table.map)
        assert table_of.decode(data) == table.map
        assert table_of.encode(table_of.decode(data)) == data

    def test_equal_tables_equal_digests(self) -> None:
        first, second = a_busy_table(), a_busy_table()
        assert table_of.digest(first.map) == table_of.digest(second.map)
        second.do(c.Rebalance())
        assert table_of.digest(first.map) != table_of.digest(second.map)

    def test_the_digest_is_the_same_in_every_process(self) -> None:
        script = (
            "from tests.unit.tq_node.cluster.test_map import a_busy_table\n"
            "from tq_node.cluster.map import digest\n"
            "print(digest(a_busy_table().map))"
        )
        digests = {
            subprocess.run(
                [sys.executable, "-c", script],
                cwd=PROJECT,
                env={"PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert digests == {table_of.digest(a_busy_table().map) + "\n"}

    @pytest.mark.parametrize("data", [b"", b"\x02", b"\x01", b"\x01\xc1", b"\x01\x90"])
    def test_damage_is_refused(self, data: bytes) -> None:
        with pytest.raises(UnreadableMap):
            table_of.decode(data)

    def test_f44_a_table_of_a_newer_feature_level_is_refused(self) -> None:
        newer = replace(Table().map, feature_level=99)
        with pytest.raises(UnreadableMap, match="feature level 99"):
            table_of.decode(table_of.encode(newer))

    def test_f44_a_field_that_came_without_its_feature_level_is_refused(self) -> None:
        data = table_of.encode(Table().map)
        fields = msgspec.msgpack.decode(data[1:])
        with pytest.raises(UnreadableMap):
            table_of.decode(data[:1] + msgspec.msgpack.encode([*fields, "new"]))

    def test_fields_of_a_later_release_have_defaults(self) -> None:
        table = Table()
        data = table_of.encode(table.map)
        fields = msgspec.msgpack.decode(data[1:])[:-2]
        assert table_of.decode(data[:1] + msgspec.msgpack.encode(fields)) == table.map

    def test_the_empty_table(self) -> None:
        assert table_of.decode(table_of.encode(EMPTY)) == EMPTY


class TestSharing:
    def test_a_change_of_one_partition_copies_nothing_else(self) -> None:
        table = Table(3, partitions=64)
        before = table.map
        table.do(table.begin((2,), partition=5))
        assert table.map.nodes is before.nodes
        assert [p for p in range(64) if table.map.partitions[p] is not before.partitions[p]] == [5]

    def test_what_is_refused_changes_nothing(self) -> None:
        table = Table(3)
        before = table.map
        table.do(table.alter(1, 2))
        assert table.map is before

    def test_what_comes_to_nothing_in_the_end_is_no_change(self) -> None:
        table = Table()
        draft = MapEdit(table.map, 99)
        draft.put(0, replace(table.entry(), min_isr=2))
        draft.put(0, replace(table.entry(), min_isr=1))
        draft.put_node(table.map.nodes[nid(1)])
        assert draft.finish().map is table.map


def big_table(nodes: int, partitions: int) -> Table:
    table = Table(nodes, partitions=partitions, checked=False)
    entries = tuple(
        replace(entry, copies=three, isr=three, primary=three[0], min_isr=2)
        for p, entry in enumerate(table.map.partitions)
        for three in [tuple(nid((p + step) % nodes + 1) for step in range(3))]
    )
    table.map = replace(table.map, partitions=entries)
    return table


def cost_us(table: Table, command: c.AnyCommand, rounds: int = 50) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        applied = apply(table.map, table.index + 1, command)
        best = min(best, time.perf_counter() - start)
        assert not applied.refused
    return best * 1e6


def test_cost_of_an_entry() -> None:
    """Printed; the bound is loose. Three nodes and 64 partitions against 100 and 1,024."""
    costs: dict[str, list[float]] = {}
    for nodes, partitions in ((3, 64), (100, 1024)):
        table = big_table(nodes, partitions)
        primary = table.primary(7) or 0
        isr = [int(node, 16) for node in table.entry(7).isr]
        entries: dict[str, c.AnyCommand] = {
            "AlterIsr of one partition": table.alter(*(n for n in isr if n != isr[2]), sender=primary, partition=7),
            "NodeDown": c.NodeDown(nid(2), table.session(2)),
            "RegisterNode, a new run": c.RegisterNode(CLUSTER_ID, registration(2, 2)),
            "StepDown of one partition": table.step_down(primary, 7),
        }
        for name, command in entries.items():
            costs.setdefault(name, []).append(cost_us(table, command))
        start = time.perf_counter()
        data = table_of.encode(table.map)
        encoded = time.perf_counter()
        table_of.decode(data)
        costs.setdefault("snapshot, encode", []).append((encoded - start) * 1e6)
        costs.setdefault("snapshot, decode", []).append((time.perf_counter() - encoded) * 1e6)
        costs.setdefault("snapshot, KiB", []).append(len(data) / 1024)
    for name, (small, large) in costs.items():
        print(
            f"{name:28} {small:9.1f} us {large:9.1f} us"
            if "KiB" not in name
            else f"{name:28} {small:9.1f} {large:9.1f}"
        )
    assert costs["AlterIsr of one partition"][1] < 1_000
    assert costs["NodeDown"][1] < 20_000
