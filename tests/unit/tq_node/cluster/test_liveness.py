"""R5, R5a and health (replication.md section 5; F5, F7)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.tq_node.cluster.tables import Table, ids, nid, replace
from tq_node.cluster.liveness import Evidence, Health, Liveness
from tq_node.cluster.settings import DEFAULT_SETTINGS, ControllerSettings
from tq_node.types import NodeId

FINE = Health()


class Watch:
    """Node 1 leads 2 and 3, all vote; time in ms."""

    def __init__(self, nodes: int = 3) -> None:
        self.table = Table(nodes)
        self.liveness = Liveness(0)
        self.liveness.follow(self.table.map, 0)
        self.voters = ids(*range(1, nodes + 1))

    def heard(self, number: int, now_ms: int, health: Health = FINE, table_index: int = 0) -> None:
        self.liveness.record_heartbeat(nid(number), now_ms, table_index, health)

    def report(self, by: int, of: int, **fields: Any) -> None:
        evidence = Evidence(nid(by), self.table.session(by), nid(of), self.table.session(of), True, (1_000, 1_050))
        self.liveness.add_evidence(replace(evidence, **fields))

    def is_proven_dead(self, number: int, me: int = 1) -> bool:
        return self.liveness.is_proven_dead(nid(number), self.table.map.nodes, self.voters, nid(me))


@pytest.fixture
def watch() -> Watch:
    return Watch()


class TestSilence:
    def test_r5_t_session_of_silence_is_death_and_a_second_is_suspect(self, watch: Watch) -> None:
        watch.heard(2, 5_000)
        liveness = watch.liveness
        assert [liveness.is_suspect(nid(2), at) for at in (5_999, 6_000)] == [False, True]
        assert [liveness.is_silent(nid(2), at) for at in (6_999, 7_000)] == [False, True]

    def test_f7_a_new_leader_gives_everybody_a_full_t_session(self, watch: Watch) -> None:
        watch.heard(2, 100)
        watch.liveness.lead(60_000)
        assert not watch.liveness.is_silent(nid(2), 61_999)
        assert watch.liveness.is_silent(nid(2), 62_000)

    def test_a_registration_is_as_good_as_a_word(self, watch: Watch) -> None:
        watch.table.register(4)
        watch.liveness.follow(watch.table.map, 50_000)
        assert not watch.liveness.is_silent(nid(4), 51_999)
        assert watch.liveness.is_silent(nid(4), 52_000)

    def test_f40_who_slept_cannot_say_who_was_silent(self, watch: Watch) -> None:
        for at in range(0, 5_001, 100):
            watch.liveness.tick(at)
        assert watch.liveness.is_silent(nid(2), 5_000)
        watch.liveness.tick(6_001)
        assert not watch.liveness.is_suspect(nid(2), 6_001)
        watch.liveness.tick(6_100)
        assert watch.liveness.is_silent(nid(2), 8_001)

    def test_f40_a_short_pause_of_the_leader_is_nobodys_silence(self, watch: Watch) -> None:
        """It looks before it reads what came meanwhile: a leader that is held up for most of a second would bury the living."""
        for at in range(0, 901, 100):
            watch.liveness.tick(at)
        watch.liveness.tick(1_800)
        assert watch.liveness.silence_ms(nid(2), 1_800) == 1_000, (
            "900 ms of looking, and 100 until the next look was due"
        )
        assert watch.liveness.silence_ms(nid(99), 1_800) == 1_000
        watch.liveness.tick(1_999)
        assert watch.liveness.silence_ms(nid(2), 1_999) == 1_199, "a look that is a little late counts"

    def test_f40_who_looks_late_again_and_again_still_buries_the_dead(self, watch: Watch) -> None:
        at = 0
        while not watch.liveness.is_silent(nid(2), at):
            at += 500
            watch.liveness.tick(at)
        assert at == 500 * DEFAULT_SETTINGS.session_ms // DEFAULT_SETTINGS.decide_ms

    def test_one_that_was_never_heard_of_is_given_time_from_the_start(self, watch: Watch) -> None:
        assert watch.liveness.silence_ms(nid(99), 700) == 700


class TestEvidence:
    def test_r5a_a_majority_with_the_leader_among_them(self, watch: Watch) -> None:
        watch.report(2, 3)
        assert not watch.is_proven_dead(3)
        watch.report(1, 3)
        assert watch.is_proven_dead(3)

    def test_r5a_not_without_the_leader(self) -> None:
        watch = Watch(5)
        for reporter in (2, 3, 4):
            watch.report(reporter, 5)
        assert not watch.is_proven_dead(5)
        assert watch.is_proven_dead(5, me=2)

    def test_f5_what_a_minority_sees_may_be_its_own_network(self) -> None:
        watch = Watch(5)
        watch.report(1, 5)
        watch.report(2, 5)
        assert not watch.is_proven_dead(5)
        watch.report(3, 5)
        assert watch.is_proven_dead(5)

    def test_r5a_only_voters_count(self, watch: Watch) -> None:
        watch.voters = ids(1, 3)
        watch.report(1, 3)
        watch.report(2, 3)
        assert not watch.is_proven_dead(3)

    def test_r5a_alone_a_voter_is_the_majority(self) -> None:
        watch = Watch(2)
        watch.voters = ids(1)
        watch.report(1, 2)
        assert watch.is_proven_dead(2)

    @pytest.mark.parametrize(
        "fields",
        [
            {"is_broken": False},
            {"refused_at_ms": ()},
            {"refused_at_ms": (1_000,)},
            {"refused_at_ms": (1_000, 1_049)},
            {"refused_at_ms": (1_050, 1_050)},
        ],
    )
    def test_r5a_broken_and_refused_twice_50_ms_apart(self, watch: Watch, fields: dict[str, Any]) -> None:
        """A time-out, or one refusal, is never such evidence."""
        watch.report(1, 3)
        watch.report(2, 3, **fields)
        assert not watch.is_proven_dead(3)

    @pytest.mark.parametrize("fields", [{"reporter_session": 0}, {"about_session": 0}, {"reporter": NodeId("f" * 32)}])
    def test_r5a_in_present_sessions(self, watch: Watch, fields: dict[str, Any]) -> None:
        watch.report(1, 3)
        watch.report(2, 3, **fields)
        assert not watch.is_proven_dead(3)

    def test_evidence_ends_with_the_session(self, watch: Watch) -> None:
        watch.report(1, 3)
        watch.report(2, 3)
        watch.table.register(3, 2)
        watch.liveness.follow(watch.table.map, 10)
        assert not watch.is_proven_dead(3)

    def test_who_is_heard_lives(self, watch: Watch) -> None:
        watch.report(1, 3)
        watch.report(2, 3)
        watch.heard(3, 10)
        assert not watch.is_proven_dead(3)

    def test_a_report_can_be_taken_back(self, watch: Watch) -> None:
        watch.liveness.withdraw_evidence(nid(2), nid(3))
        watch.report(1, 3)
        watch.report(2, 3)
        watch.liveness.withdraw_evidence(nid(2), nid(3))
        assert not watch.is_proven_dead(3)

    def test_reports_are_repeated_to_a_new_leader(self, watch: Watch) -> None:
        watch.report(1, 3)
        watch.report(2, 3)
        watch.liveness.lead(10)
        assert not watch.is_proven_dead(3)

    def test_a_removed_node_s_word_about_the_unknown(self, watch: Watch) -> None:
        watch.report(1, 3, about=NodeId("f" * 32))
        assert not watch.is_proven_dead(3)
        assert not watch.liveness.is_proven_dead(NodeId("f" * 32), watch.table.map.nodes, watch.voters, nid(1))


class TestHealth:
    def test_steady_until_a_gap(self, watch: Watch) -> None:
        for at in range(0, 10_000, 500):
            watch.heard(2, at)
        assert watch.liveness.steady_ms(nid(2), 10_000) == 10_000
        assert watch.liveness.steady_ms(nid(2), 10_500) == 0, "suspect"
        watch.heard(2, 10_600)
        assert watch.liveness.steady_ms(nid(2), 10_900) == 300

    def test_steadiness_is_counted_anew_by_a_new_leader_and_in_a_new_session(self, watch: Watch) -> None:
        watch.heard(2, 0)
        watch.liveness.lead(500)
        watch.heard(2, 600)
        assert watch.liveness.steady_ms(nid(2), 900) == 400
        watch.table.register(2, 2)
        watch.liveness.follow(watch.table.map, 1_000)
        assert watch.liveness.steady_ms(nid(2), 1_100) == 100
        assert watch.liveness.steady_ms(nid(99), 100) == 0

    def test_a_stranger_that_is_heard_is_steady_from_then_on(self, watch: Watch) -> None:
        watch.heard(77, 400)
        assert watch.liveness.steady_ms(nid(77), 900) == 500

    def test_down_since(self, watch: Watch) -> None:
        watch.table.down(2)
        watch.liveness.follow(watch.table.map, 3_000)
        watch.table.do(watch.table.begin((3,)))
        watch.liveness.follow(watch.table.map, 4_000)
        assert watch.liveness.down_ms(nid(2), 9_000) == 6_000
        watch.table.register(2, 2)
        watch.liveness.follow(watch.table.map, 9_500)
        assert watch.liveness.down_ms(nid(2), 9_900) == 0

    def test_successors_are_timed_by_epoch(self, watch: Watch) -> None:
        watch.table.forge(0, 1, 2, 3, successor=nid(2))
        watch.liveness.follow(watch.table.map, 100)
        watch.table.do(watch.table.alter(1, 2))
        watch.liveness.follow(watch.table.map, 300)
        assert watch.liveness.successor_ms(0, 600) == 500
        assert watch.liveness.successor_ms(1, 600) == 0
        watch.table.forge(0, 1, 2, 3, successor=nid(2), epoch=9)
        watch.liveness.follow(watch.table.map, 700)
        assert watch.liveness.successor_ms(0, 800) == 100

    def test_sizes_come_from_the_primary(self, watch: Watch) -> None:
        entry = watch.table.entry()
        assert watch.liveness.task_bytes(entry, 0) is None
        assert not watch.liveness.was_empty(nid(1), 0)
        watch.heard(1, 0, Health({0: 17}))
        assert (watch.liveness.task_bytes(entry, 0), watch.liveness.task_bytes(entry, 1)) == (17, 0)
        assert (watch.liveness.was_empty(nid(1), 0), watch.liveness.was_empty(nid(1), 1)) == (False, True)
        assert watch.liveness.task_bytes(replace(entry, primary=None), 0) is None

    def test_what_a_former_run_said_no_longer_counts(self, watch: Watch) -> None:
        watch.heard(2, 0, Health({}, may_lead=False), table_index=5)
        assert (watch.liveness.may_lead(nid(2)), watch.liveness.has_reached(nid(2), 5)) == (False, True)
        watch.table.register(2, 2)
        watch.liveness.follow(watch.table.map, 10)
        assert (watch.liveness.may_lead(nid(2)), watch.liveness.has_reached(nid(2), 5)) == (True, False)

    def test_nothing_new_is_nothing_done(self, watch: Watch) -> None:
        watch.liveness.follow(watch.table.map, 10)
        watch.table.do(watch.table.begin((2,)))
        watch.liveness.follow(watch.table.map, 20)
        assert watch.liveness.silence_ms(nid(2), 20) == 20


def test_the_relations_of_the_pace() -> None:
    assert DEFAULT_SETTINGS.session_ms == 2_000
    with pytest.raises(AssertionError):
        ControllerSettings(suspect_ms=2_000)
    with pytest.raises(AssertionError):
        ControllerSettings(decide_ms=500)
    with pytest.raises(AssertionError):
        ControllerSettings(replace_after_ms=100)
    with pytest.raises(AssertionError):
        ControllerSettings(batch_max=0)
