"""What people see (docs/reference/http-api.md), and what an operator's call becomes."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.tq_node.cluster.tables import Table, ids, nid
from tq_node.cluster import admin_requests
from tq_node.cluster import commands as c
from tq_node.cluster.liveness import Health, Liveness
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.views import (
    Group,
    Progress,
    count_moves,
    count_short,
    show_cluster,
    show_partitions,
)
from tq_node.types import Epoch, NodeId, PartitionMove, PartitionView

GROUP = Group(nid(1), nid(1), 4, ids(1, 2, 3), ids(4))


def statuses(table: Table, liveness: Liveness, now_ms: int, group: Group = GROUP) -> dict[str, str]:
    return {node.name: node.status for node in show_cluster(table.map, liveness, group, now_ms).nodes}


def test_statuses() -> None:
    table = Table(7)
    liveness = Liveness(0)
    liveness.follow(table.map, 0)
    for number in (2, 4, 5, 6, 7):
        liveness.record_heartbeat(nid(number), 900, 0, Health())
    table.down(4)
    table.do(c.DrainNode(nid(2)))
    table.do(c.RemoveNode(nid(7), table.session(7)))
    assert statuses(table, liveness, 1_500) == {
        "node-1": "active",  # never suspect to itself
        "node-2": "draining",
        "node-3": "suspect",
        "node-4": "down",
        "node-5": "joining",
        "node-6": "joining",
    }


def test_the_cluster() -> None:
    table = Table(2, partitions=8)
    shown = show_cluster(table.map, Liveness(0), Group(nid(2), nid(1), 4, ids(1), ids(2)), 0)
    assert (shown.cluster_name, shown.leader, shown.term) == ("test", "node-1", 4)
    assert (shown.partition_count, shown.replication_factor) == (8, 3)
    assert [(node.id, node.http, node.voter) for node in shown.nodes] == [
        (nid(1), "127.0.0.1:8080", True),
        (nid(2), "127.0.0.1:8081", False),
    ]
    assert show_cluster(table.map, Liveness(0), Group(nid(2), None, 4, ids(1)), 0).leader is None
    stranger = NodeId("f" * 32)
    assert show_cluster(table.map, Liveness(0), Group(nid(2), stranger, 4, ids(1)), 0).leader == stranger


def test_partitions() -> None:
    table = Table(4)
    table.forge(0, 2, 1, 3, isr=(1, 3), adding=(nid(2),), removing=(nid(3),))
    table.forge(1, 4)
    table.down(4)
    known = {0: Progress(True, 9, 8, {nid(3): 1}), 2: Progress(False)}
    first, second, third, fourth = show_partitions(table.map, known, {1: "waiting_for_primary"})
    assert (first.primary, first.replicas, first.in_sync) == ("node-1", ["node-2", "node-3"], ["node-1", "node-3"])
    assert (first.last_sequence, first.committed_sequence, first.lag) == (9, 8, {"node-3": 1})
    assert (first.adding, first.removing, first.state, first.version) == (["node-2"], ["node-3"], "active", 2)
    assert (second.primary, second.state, second.waiting) == (None, "offline", "waiting_for_primary")
    assert (third.state, third.last_sequence) == ("starting", None)
    assert (fourth.state, fourth.waiting) == ("active", msgspec.UNSET)


def test_in_sync_has_the_primary_first() -> None:
    table = Table(3)
    table.forge(0, 1, 2, 3, primary=nid(3))
    assert show_partitions(table.map)[0].in_sync == ["node-3", "node-1", "node-2"]


class TestMoves:
    def moving(self, isr: tuple[int, ...], primary: int = 1) -> PartitionView:
        """1 leaves, 2 stays, 3 comes; by what 1 knows."""
        table = Table(3)
        table.forge(0, 1, 2, 3, isr=isr, adding=(nid(3),), removing=(nid(1),), primary=nid(primary))
        return show_partitions(table.map, {0: Progress(True, copying={nid(3): (250, 750)})})[0]

    @pytest.mark.parametrize(
        ("isr", "primary", "stage", "bytes_left", "percent"),
        [
            ((1, 2), 1, "copying", 750, 25),
            ((1, 2, 3), 1, "handing_over", 0, 100),
            ((1, 2, 3), 2, "shrinking", 0, 100),
            ((2, 3), 2, "finishing", 0, 100),
        ],
    )
    def test_each_stage_by_the_entry_that_comes_next(
        self, isr: tuple[int, ...], primary: int, stage: str, bytes_left: int, percent: int
    ) -> None:
        assert self.moving(isr, primary).move == PartitionMove(stage, bytes_left, percent)

    def test_without_the_primary_s_word_only_the_stage_is_known(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, adding=(nid(2),), isr=(1,))
        first, second, *_ = show_partitions(table.map)
        assert (first.move, second.move) == (PartitionMove("copying", None, None), msgspec.UNSET)
        (first, *_) = show_partitions(table.map, {0: Progress(True)})
        assert first.move == PartitionMove("copying", 0, 0), "nothing is sent yet"

    def test_it_is_not_all_before_it_counts(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, adding=(nid(2),), isr=(1,))
        (first, *_) = show_partitions(table.map, {0: Progress(True, copying={nid(2): (500, 0)})})
        assert first.move == PartitionMove("copying", 0, 99)

    def test_each_is_counted_at_its_primary(self) -> None:
        table = Table(3, partitions=4)
        table.forge(0, 1, 2, 3, isr=(1, 2), adding=(nid(3),), removing=(nid(1),))
        table.forge(1, 2, 3, isr=(2, 3), adding=(nid(3),), removing=())
        table.forge(2, 2, 3)
        table.forge(3, 2, 3)
        none = {"copying": 0, "handing_over": 0, "shrinking": 0, "finishing": 0}
        assert count_moves(table.map, nid(1)) == none | {"copying": 1}
        assert count_moves(table.map, nid(2)) == none | {"finishing": 1}
        assert count_moves(table.map, nid(3)) == none


class TestShort:
    """Under-replicated: fewer copies in sync, on nodes that are up, than there should be. Offline: no primary."""

    def test_counted(self) -> None:
        table = Table(4, partitions=6)
        table.forge(0, 1, 2, 3)
        table.forge(1, 1, 2, 3, isr=(1, 2))
        table.forge(2, 2, 3)
        table.forge(3, 1, 2, 3, isr=(1, 2, 3), removing=(nid(3),))
        table.forge(4, 1, 2, 3, isr=(1, 2), removing=(nid(3),))
        table.forge(5, 1, 2, isr=(1,), adding=(nid(2),))
        assert count_short(table.map) == (2, 0)

    def test_a_dead_copy_does_not_count_though_the_set_keeps_it(self) -> None:
        """F16: the last ``min_isr`` members stay in the set, dead."""
        table = Table(3, partitions=2)
        table.forge(0, 1, 2, 3)
        table.forge(1, 1, 2)
        table.down(3)
        assert count_short(table.map) == (1, 0)
        table.down(2)
        assert count_short(table.map)[0] == 2

    def test_offline(self) -> None:
        table = Table(2, partitions=2)
        table.forge(0, 2)
        table.forge(1, 1, 2)
        table.down(2)
        assert table.primary(0) is None
        assert count_short(table.map) == (2, 1)


class TestRequests:
    @pytest.fixture
    def liveness(self) -> Liveness:
        return Liveness(0)

    def test_drain(self) -> None:
        table = Table(3)
        assert admin_requests.drain(table.map, nid(1)) == c.DrainNode(nid(1))
        assert admin_requests.drain(table.map, nid(9)) == Refusal.NO_SUCH_NODE

    def test_drain_of_the_last(self) -> None:
        assert admin_requests.drain(Table(1).map, nid(1)) == Refusal.LAST_NODE

    def test_undrain(self) -> None:
        table = Table(3)
        table.do(c.RemoveNode(nid(3), table.session(3)))
        assert admin_requests.undrain(table.map, nid(1)) == c.UndrainNode(nid(1))
        assert (
            admin_requests.undrain(table.map, nid(3))
            == admin_requests.undrain(table.map, nid(9))
            == Refusal.NO_SUCH_NODE
        )

    def test_remove_of_the_living_is_a_drain_that_ends_with_it(self, liveness: Liveness) -> None:
        table = Table(3)
        assert admin_requests.remove(table.map, liveness, nid(2)) == c.DrainNode(nid(2), then_remove=True)
        assert admin_requests.remove(table.map, liveness, nid(9)) == Refusal.NO_SUCH_NODE

    def test_remove_of_the_dead_is_at_once_and_knows_what_was_empty(self, liveness: Liveness) -> None:
        table = Table(3)
        table.forge(0, 2)
        table.forge(3, 2)
        liveness.record_heartbeat(nid(2), 0, 0, Health({3: 10}))
        table.down(2)
        command = admin_requests.remove(table.map, liveness, nid(2))
        assert command == c.RemoveNode(nid(2), 2, (table.seen(0).partition,))
        assert table.refusals(command) == [Refusal.LAST_COPY]
        table.do(command)
        assert admin_requests.remove(table.map, liveness, nid(2)) == c.RemoveNode(nid(2), 2, (table.seen(0).partition,))

    def test_unsafe_recover(self) -> None:
        table = Table(2)
        assert admin_requests.unsafe_recover(table.map, 9, nid(2)) == Refusal.NO_SUCH_PARTITION
        assert admin_requests.unsafe_recover(table.map, 1, nid(2)) == c.UnsafeRecover(
            table.seen(1).partition, Epoch(1), 1, nid(2)
        )
