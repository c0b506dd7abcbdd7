"""What all nodes answer together says what it lacks: a partition that nobody answers for is named, whoever did answer."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from tq_node.errors import NotPrimary
from tq_node.facade import ListQuery, Stats, TaskPage
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.routing.scatter import Covered, Entry, all_pages, all_stats
from tq_node.types import NodeId, State

ME, HER, HIM = NodeId("me"), NodeId("her"), NodeId("him")
TABLE: list[Entry] = [(ME, 1), (HER, 4), (HIM, 2), (HER, 1)]
Led = list[tuple[int, int]] | None


class Answers:
    """Stands for the wire: each node answers with what it leads, or not at all."""

    def __init__(self, led: dict[NodeId, Led]) -> None:
        self._led = led

    def call(self, node: NodeId, kind: Any, value: Any) -> Deferred[Any]:
        if node not in self._led:
            return fail(NotPrimary("it can't be reached"))
        return succeed(self.stats(node))

    def call_alone(self, node: NodeId, kind: Any, value: Any, within_s: float) -> Deferred[Any]:
        return self.call(node, kind, value).addCallback(lambda stats: TaskPage([], None, led=stats.led))

    def stats(self, node: NodeId) -> Stats:
        counts = [0] * len(State)
        counts[State.PENDING] = 10
        return Stats(counts, [], led=self._led[node])


def gathered(
    led: dict[NodeId, Led], table: list[Entry], before: list[Entry] | None = None
) -> tuple[list[str], list[int]]:
    answers = Answers(led)

    def covered() -> Covered:
        tables = [before or table, table]
        return Covered(lambda: tables.pop(0))

    names = [(HER, "her"), (HIM, "him")]
    results: list[Any] = []
    for coroutine in (
        all_stats(succeed(answers.stats(ME)), ME, names, cast("PeerClient", answers), covered()),
        all_pages(
            ListQuery(),
            succeed(TaskPage([], None, led=led[ME])),
            ME,
            names,
            cast("PeerClient", answers),
            covered(),
        ),
    ):
        Deferred.fromCoroutine(cast("Any", coroutine)).addCallback(results.append)
    stats, page = results
    assert stats.primary[State.PENDING] == 10 * len(led)
    assert (stats.missing, stats.partitions_missing) == (page.missing, page.partitions_missing)
    return page.missing, page.partitions_missing


def test_all_answer_for_all() -> None:
    assert gathered({ME: [(0, 1)], HER: [(1, 4), (3, 1)], HIM: [(2, 2)]}, TABLE) == ([], [])


def test_a_node_that_is_silent_is_missing_with_what_it_leads() -> None:
    assert gathered({ME: [(0, 1)], HIM: [(2, 2)]}, TABLE) == (["her"], [1, 3])


def test_a_node_that_is_silent_and_leads_nothing_leaves_nothing_out() -> None:
    assert gathered({ME: [(0, 1), (2, 3)], HER: [(1, 4), (3, 1)]}, [*TABLE[:2], (ME, 3), TABLE[3]]) == (["him"], [])


def test_what_changes_hands_meanwhile_is_missing_though_all_answer() -> None:
    # The old primary has left it, the new one has not begun.
    assert gathered({ME: [(0, 1)], HER: [(3, 1)], HIM: [(2, 2)]}, [TABLE[0], (HIM, 5), *TABLE[2:]]) == ([], [1])
    # There is no primary at all.
    assert gathered({ME: [(0, 1)], HER: [(1, 4), (3, 1)], HIM: []}, [*TABLE[:2], (None, 2), TABLE[3]]) == ([], [2])


def test_who_was_deposed_before_all_had_answered_does_not_count() -> None:
    moved = [TABLE[0], (HIM, 5), *TABLE[2:]]
    led: dict[NodeId, Led] = {ME: [(0, 1)], HER: [(1, 4), (3, 1)], HIM: [(2, 2)]}
    assert gathered(led, moved, before=TABLE) == ([], [1])
    assert gathered({**led, HIM: [(1, 5), (2, 2)]}, moved, before=TABLE) == ([], [])


@pytest.mark.parametrize("her", [None, [(1, 4), (3, 1)]])
def test_a_node_of_the_release_before_is_taken_to_lead_what_the_table_said(her: Led) -> None:
    assert gathered({ME: [(0, 1)], HER: her, HIM: None}, TABLE) == ([], [])
    moved = [TABLE[0], (HIM, 5), *TABLE[2:]]
    assert gathered({ME: [(0, 1)], HER: her, HIM: None}, moved, before=TABLE) == ([], [1])
