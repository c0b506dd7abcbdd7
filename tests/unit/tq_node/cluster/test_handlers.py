"""The table keeps that somebody had handlers of his own; where nobody ever had, simulated ones may stand in."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.tq_node.cluster.tables import CLUSTER_ID, Table, nid, registration, replace
from tests.upgrade.versions import every_recorded
from tq_node.cluster import commands as c
from tq_node.cluster import map as table_of
from tq_node.cluster.handlers import is_note_due, may_simulate
from tq_node.cluster.liveness import Liveness
from tq_node.cluster.map import EMPTY, UnreadableMap, apply
from tq_node.cluster.records import HANDLERS_LEVEL, ClusterSettings
from tq_node.cluster.refusals import Refusal
from tq_node.types import Announced, HandlerKind

NONE, SIMULATED, OWN = HandlerKind.NONE, HandlerKind.SIMULATED, HandlerKind.OWN
SETTINGS = ClusterSettings(4, 3, 7, 3)


def founded(handlers: HandlerKind, level: int = HANDLERS_LEVEL) -> Table:
    table = Table()
    founder = registration(1, feature_level_max=level, handlers=handlers)
    table.map = apply(EMPTY, 1, c.FoundCluster(CLUSTER_ID, "test", SETTINGS, founder)).map
    return table


def joined(table: Table, number: int, handlers: HandlerKind, incarnation: int = 1) -> None:
    assert not table.register(number, incarnation, feature_level_max=HANDLERS_LEVEL, handlers=handlers).refused


class TestTheTable:
    def test_a_founder_with_handlers_of_its_own_is_kept(self) -> None:
        assert founded(OWN).map.handlers_seen
        assert not founded(SIMULATED).map.handlers_seen
        assert not founded(NONE).map.handlers_seen

    def test_so_is_one_that_joins_and_it_is_never_forgotten(self) -> None:
        table = founded(SIMULATED)
        joined(table, 2, OWN)
        assert table.map.handlers_seen
        joined(table, 2, NONE, 2)
        table.do(c.DrainNode(nid(2), then_remove=True))
        table.do(c.RemoveNode(nid(2), table.session(2)))
        assert table.map.handlers_seen

    def test_the_same_run_may_say_it_later(self) -> None:
        table = founded(SIMULATED)
        joined(table, 2, NONE)
        version = table.map.nodes[nid(2)].session
        joined(table, 2, OWN)
        assert (table.map.handlers_seen, table.map.nodes[nid(2)].session) == (True, version)

    def test_one_that_is_refused_changes_nothing(self) -> None:
        table = founded(SIMULATED)
        stranger = registration(2, feature_level_max=HANDLERS_LEVEL, handlers=OWN)
        assert table.refusals(c.RegisterNode("d" * 32, stranger)) == [Refusal.WRONG_CLUSTER]
        assert not table.map.handlers_seen

    def test_a_word_between_registrations_is_kept_too(self) -> None:
        table = founded(SIMULATED)
        table.do(c.NoteHandlers())
        version = table.map.map_version
        table.do(c.NoteHandlers())
        assert (table.map.handlers_seen, table.map.map_version) == (True, version)

    def test_f44_below_the_level_nothing_is_kept_and_the_command_is_refused(self) -> None:
        table = founded(OWN, level=1)
        joined(table, 1, OWN, 2)
        joined(table, 2, OWN)
        assert table.refusals(c.NoteHandlers()) == [Refusal.FEATURE_LEVEL]
        assert not table.map.handlers_seen
        assert not table.refusals(c.RaiseFeatureLevel(HANDLERS_LEVEL))
        assert (table.map.handlers_seen, table.map.handlers_since) == (False, table.index)

    def test_f44_below_the_level_the_table_is_as_the_release_before_wrote_it(self) -> None:
        table = founded(SIMULATED, level=1)
        data = table_of.encode(table.map)
        (old, *_) = (recorded for recorded in every_recorded() if recorded.description["features"] == [1, 1])
        old.frozen().decode("table", data)
        assert table_of.decode(data) == table.map
        fields = msgspec.msgpack.decode(data[1:])
        with pytest.raises(UnreadableMap, match="handlers_seen"):
            table_of.decode(data[:1] + msgspec.msgpack.encode([*fields, True, 0]))

    @pytest.mark.parametrize("handlers", [OWN, SIMULATED])
    def test_it_comes_back_from_its_bytes(self, handlers: HandlerKind) -> None:
        table = founded(handlers)
        assert table_of.decode(table_of.encode(table.map)) == table.map

    def test_f44_the_older_release_reads_a_registration_that_says_more(self) -> None:
        command = c.RegisterNode(CLUSTER_ID, registration(2, handlers=OWN))
        for recorded in every_recorded():
            recorded.frozen().decode("command", c.encode(command))


class TestStandingIn:
    def test_where_nobody_ever_had_handlers(self) -> None:
        table = founded(SIMULATED)
        assert may_simulate(table.map, nid(1), {})
        joined(table, 2, NONE)
        assert may_simulate(table.map, nid(1), {})
        assert may_simulate(table.map, nid(2), {nid(1): Announced(SIMULATED)})

    def test_not_once_the_table_knows_better(self) -> None:
        table = founded(SIMULATED)
        joined(table, 2, OWN)
        assert not may_simulate(table.map, nid(1), {nid(2): Announced(NONE)})

    def test_nor_once_a_node_has_said_so_before_the_table_knows(self) -> None:
        table = founded(SIMULATED)
        joined(table, 2, NONE)
        assert not may_simulate(table.map, nid(1), {nid(2): Announced(OWN)})
        assert is_note_due(table.map, {nid(2): Announced(OWN)})
        assert not is_note_due(table.map, {nid(2): Announced(SIMULATED)})

    def test_its_own_earlier_word_does_not_count(self) -> None:
        """It is asked for a run that has none: what it had in an earlier one the table would know."""
        table = founded(SIMULATED)
        assert may_simulate(table.map, nid(1), {nid(1): Announced(NONE)})

    def test_not_while_there_may_be_nodes_that_do_not_say(self) -> None:
        table = founded(SIMULATED, level=1)
        assert not may_simulate(table.map, nid(1), {})
        joined(table, 1, SIMULATED, 2)
        joined(table, 2, SIMULATED)
        table.do(c.RaiseFeatureLevel(HANDLERS_LEVEL))
        assert not may_simulate(table.map, nid(1), {}), "node 2 registered before it was asked"
        assert not may_simulate(table.map, nid(1), {nid(2): Announced(HandlerKind.UNKNOWN)})
        assert may_simulate(table.map, nid(1), {nid(2): Announced(SIMULATED)})
        joined(table, 2, NONE, 2)
        assert may_simulate(table.map, nid(1), {})

    def test_a_note_is_due_only_above_the_level_and_of_members(self) -> None:
        table = founded(SIMULATED, level=1)
        assert not is_note_due(table.map, {nid(1): Announced(OWN)})
        table = founded(SIMULATED)
        assert not is_note_due(table.map, {nid(9): Announced(OWN)})
        assert not is_note_due(replace(table.map, handlers_seen=True), {nid(1): Announced(OWN)})


class TestWhatIsHeard:
    def test_the_newest_word_of_the_present_session_counts(self) -> None:
        table = founded(SIMULATED)
        joined(table, 2, NONE)
        liveness = Liveness(0)
        liveness.follow(table.map, 0)
        assert liveness.lacks_handlers(nid(2), 1)
        liveness.record_handlers(nid(2), 1, Announced(NONE))
        assert not liveness.lacks_handlers(nid(2), 1)
        assert liveness.lacks_handlers(nid(2), 2)
        liveness.record_handlers(nid(2), 2, Announced(OWN))
        liveness.record_handlers(nid(2), 1, Announced(NONE))
        assert liveness.handlers == {nid(2): Announced(OWN)}
        joined(table, 2, NONE, 2)
        liveness.follow(table.map, 0)
        assert liveness.handlers == {}
        assert liveness.lacks_handlers(nid(2), 1)
