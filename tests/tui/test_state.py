"""The view: folded from observations, on a clock that the test holds."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from tq_tui.addresses import natural
from tq_tui.client.models import (
    ClusterConfig,
    ClusterInfo,
    Counts,
    Member,
    Metrics,
    Partition,
    Readiness,
    Reason,
    Stats,
)
from tq_tui.state import health
from tq_tui.state.cluster_view import (
    HISTORY_MAX,
    STALE_S,
    Added,
    ClusterView,
    Dropped,
    Failed,
    Health,
    Observation,
    Phase,
    Polled,
    Ticked,
    reduce,
)
from tq_tui.state.discovery import leavers, newcomers

NAMES = ("node-1", "node-2", "node-3")


def address(name: str) -> str:
    return f"127.0.0.1:808{name[-1]}"


def cluster(
    leader: str | None = "node-1", term: int = 3, names: tuple[str, ...] = NAMES, **statuses: str
) -> ClusterInfo:
    members = tuple(
        Member(name, address(name), statuses.get(name.replace("-", "_"), "active"), True, {"http": address(name)})
        for name in names
    )
    return ClusterInfo("c", "taskqueue", members, leader, term, ClusterConfig(4, 3))


def partitions(
    primary: str | None = "node-1", in_sync: tuple[str, ...] = NAMES, epoch: int = 1
) -> tuple[Partition, ...]:
    return tuple(
        Partition(n, primary, tuple(name for name in NAMES if name != primary), in_sync, epoch) for n in range(4)
    )


def polled(name: str, at_s: float, **changes: object) -> Polled:
    counts = Counts(total=3, pending=1, completed=2)
    metrics = Metrics(idle=16, started_at_s=1.0)
    seen = Polled(address(name), at_s, Stats(name, counts, counts), cluster(), Readiness(True), metrics, partitions())
    return replace(seen, **changes)  # type: ignore[arg-type]


NOTHING = ClusterView()


def fold(*seen: Observation, view: ClusterView = NOTHING) -> ClusterView:
    for one in seen:
        view = reduce(view, one)
    return view


def whole(at_s: float = 10.0) -> ClusterView:
    return fold(*(Added(address(name), 9.0) for name in NAMES), *(polled(name, at_s) for name in NAMES))


def test_nothing_is_known_at_first() -> None:
    view = fold(Added("localhost:8081", 1.0))
    assert [(node.label, node.phase, node.since_s) for node in view.nodes] == [
        ("localhost:8081", Phase.CONNECTING, 1.0)
    ]
    assert health.judge(view).health is Health.CONNECTING
    assert (view.leader, view.cluster, view.oldest, view.counts.total) == (None, None, None, 0)


def test_a_whole_cluster_is_healthy() -> None:
    view = whole()
    assert [node.name for node in view.nodes] == list(NAMES)
    assert health.judge(view) == health.Verdict(Health.HEALTHY, "HEALTHY")
    assert (view.leader, view.voters_living, view.counts.total) == ("node-1", 3, 9)
    assert view.counts_are_whole
    assert (view.held("node-1"), view.held("node-2")) == ((4, 4), (0, 4))


def test_the_same_observation_twice_changes_nothing() -> None:
    view = whole()
    assert fold(polled("node-1", 10.0), view=view) == view


def test_a_node_that_goes_stays_with_what_it_said_and_since_when() -> None:
    view = fold(Failed(address("node-2"), 12.0, "connection refused", 12.25), view=whole())
    view = fold(Failed(address("node-2"), 13.0, "connection refused", 14.0), view=view)
    node = view.named("node-2")
    assert node is not None
    assert (node.phase, node.since_s, node.seen_s, node.retry_at_s) == (Phase.DOWN, 12.0, 10.0, 14.0)
    assert node.primary.total == 3
    assert health.judge(view).health is Health.DEGRADED
    assert "node-2 down for 1.0s (connection refused)" in health.judge(view).sentence
    assert view.counts.total == 6
    back = fold(polled("node-2", 20.0), view=view).named("node-2")
    assert back is not None
    assert (back.phase, back.since_s, back.error) == (Phase.UP, 20.0, "")


def test_one_that_is_silent_is_down_after_two_seconds() -> None:
    view = fold(Ticked(10.0 + STALE_S), view=whole())
    assert len(view.living) == 3
    view = fold(polled("node-1", 12.5), polled("node-2", 12.5), Ticked(12.5), view=view)
    node = view.named("node-3")
    assert node is not None
    assert (node.phase, node.error) == (Phase.DOWN, "no answer")


def test_no_quorum_is_a_state_of_its_own() -> None:
    gone = [Failed(address(name), 12.0, "connection refused") for name in NAMES[1:]]
    view = fold(*gone, polled("node-1", 12.0, cluster=cluster(leader=None)), view=whole())
    verdict = health.judge(view)
    assert (verdict.health, verdict.title, verdict.health.exit_code) == (Health.NO_QUORUM, "NO QUORUM", 2)
    assert verdict.sentence.startswith("1 of 3 voters answers, 2 must: nothing is decided until then")


def test_a_minority_that_still_believes_in_its_leader_is_no_quorum_either() -> None:
    gone = [Failed(address(name), 12.0, "connection refused") for name in NAMES[1:]]
    believes = polled("node-1", 12.0, cluster=cluster(node_2="down", node_3="down"))
    assert health.judge(fold(*gone, believes, view=whole())).health is Health.NO_QUORUM


def test_an_election_is_said_in_words() -> None:
    view = fold(*(polled(name, 12.0, cluster=cluster(leader=None)) for name in NAMES), view=whole())
    assert health.judge(view).title == "NO LEADER"


def test_the_node_with_the_highest_term_is_believed() -> None:
    view = fold(polled("node-2", 12.0, cluster=cluster(leader="node-3", term=9)), view=whole())
    assert view.leader == "node-3"


def test_unreachable_is_two_for_scripts() -> None:
    view = fold(Added("localhost:1", 1.0), Failed("localhost:1", 2.0, "connection refused"))
    verdict = health.judge(view)
    assert (verdict.health, verdict.health.exit_code) == (Health.UNREACHABLE, 2)
    assert "connection refused" in verdict.sentence


def test_not_ready_says_why() -> None:
    waiting = Readiness(False, (Reason("not_active", "…"),))
    view = fold(polled("node-1", 12.0, readiness=waiting), view=whole())
    assert health.judge(view).sentence == "node-1 not ready (not_active)"


def test_a_node_that_only_the_cluster_reaches_is_distinguished() -> None:
    view = fold(Failed(address("node-2"), 12.0, "no answer in time"), view=whole())
    assert "not reached from here" in health.judge(view).sentence
    assert view.voters_living == 3


def test_partitions_take_their_lag_from_their_primary() -> None:
    told = tuple(msgspec.structs.replace(entry, lag={"node-2": 7}, committed_sequence=9) for entry in partitions())
    view = fold(polled("node-1", 12.0, partitions=told), view=whole())
    assert view.partitions[0].lag == {"node-2": 7}
    assert view.lag("node-2") == (28, 0)
    newer = partitions(primary="node-2", in_sync=("node-2",), epoch=2)
    view = fold(polled("node-3", 13.0, partitions=newer), view=view)
    assert view.partitions[0].primary == "node-2"
    assert view.lag("node-1") == (0, 4)
    assert "4 partitions with a copy out of sync" in health.judge(view).sentence


def test_partitions_without_a_primary_come_first() -> None:
    offline = tuple(msgspec.structs.replace(entry, primary=None, state="offline", epoch=5) for entry in partitions())
    view = fold(polled("node-1", 12.0, partitions=offline), view=whole())
    assert health.judge(view).reasons[0] == "4 partitions without a primary"
    assert not view.counts_are_whole


def test_too_few_copies_are_reported_only_where_more_could_be() -> None:
    alone = tuple(
        msgspec.structs.replace(entry, replicas=("node-2",), in_sync=("node-1", "node-2"), epoch=7)
        for entry in partitions()
    )
    view = fold(*(polled(name, 12.0, partitions=alone) for name in NAMES), view=whole())
    assert health.judge(view).sentence == "4 partitions with too few copies"
    drained = [polled(name, 13.0, cluster=cluster(term=4, node_3="draining")) for name in NAMES]
    assert health.judge(fold(*drained, view=view)).sentence == "node-3 draining"


def test_rates_are_since_the_last_look_and_begin_anew_with_a_node() -> None:
    before, after = (
        Metrics(submitted=10, completed=5, started_at_s=1.0),
        Metrics(submitted=30, completed=9, cpu_s=1, started_at_s=1.0),
    )
    view = fold(polled("node-1", 11.0, metrics=before), polled("node-1", 13.0, metrics=after), view=whole())
    node = view.named("node-1")
    assert node is not None
    assert (node.rates.submitted, node.rates.completed, node.cpu) == (10.0, 2.0, 0.5)
    view = fold(polled("node-1", 14.0, metrics=Metrics(submitted=2, started_at_s=9.0)), view=view)
    assert view.rates.submitted == 0


def test_history_is_bounded_and_a_second_apart() -> None:
    view = whole()
    for tick in range(HISTORY_MAX + 50):
        view = fold(*(polled(name, 11.0 + tick) for name in NAMES), Ticked(11.0 + tick), Ticked(11.2 + tick), view=view)
    assert len(view.history) == HISTORY_MAX
    assert view.history[-1].pending == 3


def test_members_are_learnt_once_and_forgotten_when_they_leave() -> None:
    view = fold(Added("localhost:8081", 1.0), replace(polled("node-1", 2.0), address="localhost:8081"))
    assert newcomers(view) == (address("node-2"), address("node-3"))
    for learnt in newcomers(view):
        view = fold(Added(learnt, 2.0, given=False), view=view)
    assert newcomers(view) == ()
    assert [node.label for node in view.nodes] == list(NAMES), "named by the cluster before they answer"
    smaller = replace(polled("node-1", 3.0), address="localhost:8081", cluster=cluster(names=NAMES[:2]))
    view = fold(smaller, Failed(address("node-3"), 3.0, "connection refused"), view=view)
    assert leavers(view) == (address("node-3"),)
    assert [node.label for node in fold(Dropped(address("node-3"), 4.0), view=view).nodes] == ["node-1", "node-2"]


def test_a_second_name_of_a_node_is_dropped_and_the_given_one_stays() -> None:
    view = fold(Added("10.0.0.7:8081", 1.0, given=False), Added("box:8081", 1.0))
    view = fold(
        replace(polled("node-1", 2.0), address="10.0.0.7:8081"),
        replace(polled("node-1", 2.0), address="box:8081"),
        view=view,
    )
    assert leavers(view) == ("10.0.0.7:8081",)


def test_what_is_not_watched_is_not_taken_in() -> None:
    view = whole()
    assert fold(Failed("nowhere:1", 10.0, "x"), view=view).nodes == view.nodes


def test_names_are_sorted_as_people_count() -> None:
    assert sorted(["node-10", "node-9", "a", "node-1"], key=natural) == ["a", "node-1", "node-9", "node-10"]


def test_the_oldest_and_the_paused_are_of_all_nodes() -> None:
    view = fold(
        polled("node-1", 11.0, metrics=Metrics(oldest_age_s={"a": 3.0}, paused=("b",))),
        polled("node-2", 11.0, metrics=Metrics(oldest_age_s={"a": 9.0}, busy=2, idle=1)),
        view=whole(),
    )
    assert (view.oldest, view.paused, view.slots) == (("a", 9.0), ("b",), (2, 19))
