"""What all nodes answer together says what it lacks: a partition that nobody answers for is named, whoever did answer."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any, cast

import msgspec
import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from tq_node.errors import NotPrimary
from tq_node.facade import ListedTask, ListQuery, Stats, TaskPage
from tq_node.runtime.peer_calls import LIST, EncodedPage
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.routing.scatter import Covered, Entry, all_pages, all_stats, key_of
from tq_node.slices import Slices
from tq_node.types import Backoff, NodeId, Progress, State, TaskId, TaskRow, TaskSpec

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
            Slices(MemoryReactorClock()),
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


# --- one page out of several ---
Pages = list[TaskPage]
SORTS = ("id", "created_at", "run_at", "priority")


def row(number: int, rev: int, rolls: random.Random) -> TaskRow:
    """Task ``number``, which always has the same spec; when it may run differs with ``rev``."""
    spec = TaskSpec(
        TaskId(f"task-{number}"), "a", b"{}", "default", number % 3, 5, None, Backoff(), None, number // 2, b""
    )
    return TaskRow(spec, 0, rev, State.PENDING, rolls.randrange(5), progress=Progress(0.5))


def pages_of(query: ListQuery, rolls: random.Random) -> Pages:
    """What nodes answer, some tasks twice, each page in order and cut where the node stopped."""
    pages = []
    for _ in range(rolls.randrange(1, 5)):
        listed = [ListedTask(row(n, rolls.randrange(3), rolls), "primary", "n") for n in rolls.sample(range(20), 8)]
        listed.sort(key=lambda one: key_of(one, query.sort), reverse=query.descending)
        stop = None
        if rolls.random() < 0.5:
            last = key_of(listed[4], query.sort)
            listed, stop = listed[:5], (last[0] if isinstance(last[0], int) else 0, last[1])
        pages.append(TaskPage(listed, stop))
    return pages


def expected(query: ListQuery, pages: Pages) -> tuple[list[TaskRow], Any]:
    """All at once: the newest of each, in order, up to where all have looked and to the limit."""
    newest: dict[str, ListedTask] = {}
    for listed in (listed for page in pages for listed in page.tasks):
        known = newest.get(listed.row.id)
        if known is None or known.row.rev < listed.row.rev:
            newest[listed.row.id] = listed
    ordered = sorted(newest.values(), key=lambda one: key_of(one, query.sort), reverse=query.descending)
    stops = [("", page.next[1]) if query.sort == "id" else page.next for page in pages if page.next is not None]
    end: Any = (max(stops) if query.descending else min(stops)) if stops else None
    if end is not None:
        ordered = [
            one
            for one in ordered
            if (key_of(one, query.sort) >= end if query.descending else key_of(one, query.sort) <= end)
        ]
    shown = ordered[: query.limit]
    if len(ordered) > query.limit:
        end = key_of(shown[-1], query.sort)
    return [one.row for one in shown], None if end is None else (end[0] or 0, end[1])


class PagesOfNodes:
    """Stands for the wire: each node answers with its page."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def call_alone(self, node: NodeId, kind: Any, value: Any, within_s: float) -> Deferred[Any]:
        return succeed(LIST.reading.decode(LIST.result.encode(self._pages[int(node)])))


def gathered_page(query: ListQuery, pages: Pages, clock: Clock) -> TaskPage:
    """The first page is of the node itself. Each look at the clock moves it, so that all is cut."""
    others = [(NodeId(str(n)), str(n)) for n in range(1, len(pages))]
    client = cast("PeerClient", PagesOfNodes(pages))
    ticks = itertools.count()
    slices = Slices(clock, now_s=lambda: float(next(ticks)))
    found: list[TaskPage] = []
    gathering = all_pages(query, succeed(pages[0]), ME, others, client, Covered(list), slices)
    Deferred.fromCoroutine(gathering).addCallback(found.append)
    while not found:
        clock.advance(0)
    return found[0]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("descending", [False, True])
def test_one_page_out_of_several(sort: str, descending: bool) -> None:
    for seed in range(100):
        rolls = random.Random(seed)
        query = ListQuery(sort=sort, descending=descending, limit=rolls.choice([1, 3, 10, 40]), cluster=True)
        pages = pages_of(query, rolls)
        page = gathered_page(query, pages, Clock())
        assert ([listed.row for listed in page.tasks], page.next, page.missing) == (*expected(query, pages), []), seed


def test_a_node_whose_page_can_not_be_read_is_missing() -> None:
    rolls = random.Random(1)
    bad = msgspec.structs.replace(row(1, 1, rolls), progress=Progress(math.nan))
    pages = [TaskPage([ListedTask(one, "primary", "n")], None) for one in (row(0, 1, rolls), bad, row(2, 1, rolls))]
    page = gathered_page(ListQuery(cluster=True), pages, Clock())
    assert [listed.row.id for listed in page.tasks] == ["task-0", "task-2"]
    assert page.missing == ["1"]


def test_an_encoded_page_is_a_page() -> None:
    assert EncodedPage.__struct_fields__ == TaskPage.__struct_fields__
