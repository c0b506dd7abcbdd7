"""What calls cost does not grow with the tasks that are stored, and a start walks no row more often than it must.

Counted in steps of SQLite's virtual machine: they depend on its release and on nothing else.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from tests.support.model_store.store import MemoryStore
from tests.support.stores import birth, change, group_writer, immediate, record
from tq_node.partition.ready_queue import ReadySet
from tq_node.runtime.tasks.recovery import recover_rows
from tq_node.store.api import Batch, OpenRow, RowDelete, RowQuery, RowWrite, Tombstone
from tq_node.store.sqlite import open_database, paging, queries
from tq_node.types import State

PARTITIONS = 8
SMALL, LARGE = 1_000, 21_000
STEPS_PER_LOOK = 10
"""How finely steps are counted."""
GROWTH_MAX = 1.1
"""An index has a level more, an id another length."""
LATER_US = 10**12


def row(number: int, **fields: object) -> RowWrite:
    """As in the bench: half are pending, half are scheduled; the ids are in the order of time."""
    state = State.SCHEDULED if number % 2 else State.PENDING
    run_at_us = LATER_US + number if number % 2 else number
    known = {"partition": number % PARTITIONS, "state": state, "run_at_us": run_at_us, "created_us": number}
    return birth(f"t{number:08}", **{**known, **fields})  # type: ignore[arg-type]


def changed(number: int, rev: int, state: State, **fields: object) -> RowWrite:
    known = {"partition": number % PARTITIONS, "run_at_us": number}
    return change(f"t{number:08}", rev, state, **{**known, **fields})


class Stored:
    """A store of so many tasks, and the steps that are taken on its connection."""

    def __init__(self, directory: Path, rows: int) -> None:
        self.connection = open_database.connect_writer(directory / f"{rows}.db")
        self.writer = group_writer(self.connection)
        self.rows = rows
        self._sequence = 0
        self._looks = 0
        for first in range(0, rows, 1_000):
            self.write(rows=[row(number) for number in range(first, first + 1_000)])

    def write(self, **what: object) -> None:
        self._sequence += 1
        entries = [record(partition, self._sequence) for partition in range(PARTITIONS)]
        applied = dict.fromkeys(range(PARTITIONS), self._sequence)
        self.writer.write([Batch(entries=entries, applied=applied, **what)])  # type: ignore[arg-type]

    def steps_of(self, call: Callable[[Stored], object]) -> int:
        self._looks = 0
        self.connection.set_progress_handler(self._look, STEPS_PER_LOOK)
        call(self)
        self.connection.set_progress_handler(None, STEPS_PER_LOOK)
        return self._looks * STEPS_PER_LOOK

    def _look(self) -> int:
        self._looks += 1
        return 0


def submit(stored: Stored) -> None:
    stored.write(rows=[row(stored.rows + number) for number in range(100)])


def claim(stored: Stored) -> None:
    stored.write(rows=[changed(n, 2, State.PROCESSING, body=b"claimed") for n in range(0, 200, 2)])


def end(stored: Stored) -> None:
    stored.write(rows=[changed(n, 3, State.COMPLETED, ended_us=n + 1, body=b"done") for n in range(0, 200, 2)])


def purge(stored: Stored) -> None:
    found = queries.ended_before(stored.connection, 90, 2_000, [0, 2])
    assert found
    stored.write(
        deletes=[RowDelete(one.id, one.rev) for one in found],
        tombstones=[Tombstone(one.id, one.partition, b"h", one.ended_us) for one in found],
    )


def forget(stored: Stored) -> None:
    found = queries.tombstones_before(stored.connection, 50, 2_000, [0, 2])
    assert found
    stored.write(forgets=[one.id for one in found])


def page(**what: object) -> Callable[[Stored], None]:
    def ask(stored: Stored) -> None:
        assert len(paging.page(stored.connection, RowQuery(limit=100, **what)).rows) == 100  # type: ignore[arg-type]

    return ask


def asked(query: Callable[[sqlite3.Connection], object]) -> Callable[[Stored], None]:
    def ask(stored: Stored) -> None:
        assert query(stored.connection)

    return ask


CALLS: dict[str, Callable[[Stored], object]] = {
    # The order matters: each finds what those before it have left.
    "100 are submitted": submit,
    "100 are claimed": claim,
    "100 are completed": end,
    "some are purged": purge,
    "some tombstones go": forget,
    "100 are looked up": asked(lambda c: queries.lookup(c, [f"t{n:08}" for n in range(0, 1_000, 10)])),
    "a page": page(),
    "a page from the middle, back": page(after=(0, "t00000500"), descending=True),
    "a page of two states": page(states=frozenset({State.PENDING, State.SCHEDULED})),
    "a page of some partitions": page(partitions=frozenset({1, 3})),
    "a page by birth": page(sort="created_at", descending=True),
    "a page by due time": page(sort="run_at", descending=True),
    "a page by priority": page(sort="priority"),
    "the oldest that waits": asked(queries.oldest_pending),
    "the time that the store has seen": asked(queries.newest_us),
    "the states of partitions": asked(open_database.load_states),
    "the next row's number": asked(open_database.next_task_number),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, Stored]:
    directory = tmp_path_factory.mktemp("stored")
    return Stored(directory, SMALL), Stored(directory, LARGE)


def test_calls_cost_the_same_however_many_tasks_are_stored(pair: tuple[Stored, Stored]) -> None:
    grown = {}
    for name, call in CALLS.items():
        few, many = (stored.steps_of(call) for stored in pair)
        print(f"\n{name}: {few:,} steps among {SMALL:,} tasks, {many:,} among {LARGE:,}")
        if many > few * GROWTH_MAX + STEPS_PER_LOOK:
            grown[name] = many / few
    assert not grown


def test_what_walks_all_rows_costs_so_much_for_each(pair: tuple[Stored, Stored]) -> None:
    """A start counts all rows, and reads those that have not ended of what it leads; a new primary counts what has ended.

    The bounds are what was measured and a tenth.
    """
    walks: dict[str, tuple[float, Callable[[sqlite3.Connection], object]]] = {
        "counting": (47.5, queries.counts),
        "counting what has ended": (0.5, lambda c: [queries.counts(c, from_state=State.COMPLETED)]),
        "reading what has not ended": (33.0, lambda c: queries.open_rows(c, None, LARGE * 2)),
        "passing by what others lead": (18.7, lambda c: [queries.open_rows(c, None, LARGE * 2, [99])]),
    }
    for name, (bound, walk) in walks.items():
        steps = pair[1].steps_of(asked(walk)) / LARGE
        print(f"\n{name}: {steps:.1f} steps a row")
        assert steps < bound, name


class Counting(MemoryStore):
    """Notes how many rows come out of it."""

    rows_read = 0

    def open_rows(
        self, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[OpenRow]]:
        def note(rows: list[OpenRow]) -> list[OpenRow]:
            self.rows_read += len(rows)
            return rows

        return super().open_rows(after, limit, partitions).addCallback(note)


def test_who_takes_partitions_up_reads_the_open_rows_of_these_once() -> None:
    store = Counting(auto=True)
    kinds = itertools.cycle(State)
    rows = [row(number, state=next(kinds), queue=f"q{number % 3}") for number in range(14_400)]
    store.commit(Batch(rows=rows))
    found = immediate(Deferred.fromCoroutine(recover_rows(store, [1, 2, 3], ReadySet())))
    mine = [one for one in rows if one.partition in (1, 2, 3)]
    assert store.rows_read == sum(one.state < State.COMPLETED for one in mine)
    counted = {
        (partition, queue, state): count
        for partition, queues in found.counts.items()
        for queue, states in queues.items()
        for state, count in enumerate(states)
        if count
    }
    assert counted == Counter((one.partition, one.queue, one.state) for one in mine)
    assert len(found.ready) == sum(one.state == State.PENDING for one in mine)
    assert len(found.due) == sum(one.state == State.SCHEDULED for one in mine)
    assert sorted(found.running) == [one.id for one in mine if one.state == State.PROCESSING]
