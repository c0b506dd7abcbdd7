"""The Store contract: the only way anything reaches the disk.

One suite (``tests/contract/test_store.py``) runs over every implementation. Calls come from the reactor thread; Deferreds
fire there. What a crash may lose: any batch whose Deferred has not fired, wholly; never part of one, never an earlier
one while a later one stays.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred

from tq_node.partition.entries import Entry


class RowWrite(msgspec.Struct, gc=False):
    """A row as it shall be, several effects on one task already folded together.

    ``expected_rev`` is the revision stored before (0: not there). ``spec`` and the four columns behind it are given where the
    row is born, and only there.
    """

    id: str
    partition: int
    expected_rev: int
    rev: int
    state: int
    run_at_us: int
    ended_us: int
    body: bytes
    spec: bytes | None = None
    type: str = ""
    queue: str = ""
    priority: int = 0
    created_us: int = 0


class RowDelete(msgspec.Struct, frozen=True, gc=False):
    id: str
    expected_rev: int


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """``at_us``: the tombstone may go once its partition's horizon has passed this."""

    id: str
    partition: int
    content_hash: bytes
    at_us: int


class ConsensusRecord(msgspec.Struct, frozen=True, gc=False):
    """One entry of the Raft log; what it means is known to ``raft`` alone."""

    log_index: int
    term: int
    kind: int
    data: bytes


class ConsensusWrite(msgspec.Struct, frozen=True):
    """A change of the Raft log. Order inside: ``replace_all``, ``records``, ``cut_below``.

    ``replace_all``: everything goes first (a snapshot has come). ``records`` replace everything from the first one's index on.
    ``cut_below``: entries of lower index go (a snapshot was taken here).
    """

    records: list[ConsensusRecord] = []
    replace_all: bool = False
    cut_below: int = 0


class Batch(msgspec.Struct):
    """What one commit makes durable, all or nothing. Order inside: promises, records, rows, tombstones, trims.

    ``applied`` must name every partition whose rows, tombstones or horizon the batch changes. ``trim`` drops the records of a
    partition up to and with a sequence; the store keeps more where that is cheaper. ``epochs`` appends (epoch, first sequence).
    """

    entries: list[Entry] = []
    promises: dict[int, int] = {}
    epochs: list[tuple[int, int, int]] = []
    """(partition, epoch, first_sequence)"""
    rows: list[RowWrite] = []
    deletes: list[RowDelete] = []
    tombstones: list[Tombstone] = []
    forgets: list[str] = []
    horizons: dict[int, int] = {}
    applied: dict[int, int] = {}
    trim: dict[int, int] = {}
    consensus: list[ConsensusWrite] = []
    meta: dict[str, bytes | None] = {}
    """Small named values of the node itself; None deletes."""


class StoredRow(msgspec.Struct, frozen=True, gc=False):
    """A row as read, its checksum verified."""

    id: str
    partition: int
    rev: int
    state: int
    run_at_us: int
    ended_us: int
    spec: bytes
    body: bytes


class OpenRow(msgspec.Struct, frozen=True, gc=False):
    """What rebuilding the heaps needs of a task that has not ended."""

    id: str
    partition: int
    state: int
    queue: str
    priority: int
    run_at_us: int


class PartitionLog(msgspec.Struct, frozen=True):
    """The durable state of one partition at start. ``epochs`` ascends: (epoch, first_sequence)."""

    partition: int
    promised: int
    epochs: list[tuple[int, int]]
    log_start: int
    last_sequence: int
    applied: int
    horizon_us: int


class RowQuery(msgspec.Struct, frozen=True):
    """A page of rows. ``None`` means no condition; the ``_not`` fields turn their set into its complement.

    ``sort``: id, created_at, run_at or priority; ties are broken by id, in the same direction. ``after`` is the (sort
    value, id) of the last row that the previous page looked at; for sort by id the first is unused. A page looks at
    ``scan_rows_max`` rows at most.
    """

    states: frozenset[int] | None = None
    states_not: bool = False
    types: frozenset[str] | None = None
    types_not: bool = False
    queues: frozenset[str] | None = None
    queues_not: bool = False
    partitions: frozenset[int] | None = None
    text: str | None = None
    """Case-insensitive, in id or type."""
    sort: str = "id"
    descending: bool = False
    after: tuple[int, str] | None = None
    limit: int = 1000
    scan_rows_max: int = 50_000
    bytes_max: int = 4 * 1024 * 1024
    """Stop after the row that passes this many bytes of spec + body."""


class RowPage(msgspec.Struct, frozen=True):
    rows: list[StoredRow]
    next: tuple[int, str] | None
    """Hand in as ``after`` for the next page; None at the end."""


class Store(Protocol):
    """See the module's docstring. Every Deferred may fail with StoreBroken, after which no call succeeds."""

    def commit(self, batch: Batch) -> Deferred[None]:
        """Make the batch durable. Batches become durable in the order given. :raises Divergence: a revision did not match."""

    def meta(self) -> dict[str, bytes]:
        """The named values as of opening plus what has been committed since. Synchronous: they are few and small."""

    def partitions(self) -> Deferred[list[PartitionLog]]:
        """Every partition that has ever been written to, by number."""

    def consensus_log(self) -> Deferred[list[ConsensusRecord]]:
        """The whole Raft log, by index, checksums verified. It is short: snapshots cut it."""

    def read_log(self, partition: int, first: int, *, bytes_max: int) -> Deferred[list[Entry]]:
        """Entries from ``first`` on, at least one where there is one, about ``bytes_max`` in all; checksums verified."""

    def lookup(self, ids: Seq[str]) -> Deferred[dict[str, StoredRow | Tombstone]]:
        """Rows and tombstones by id as of some moment after the call; ids that are neither are left out."""

    def page(self, query: RowQuery) -> Deferred[RowPage]: ...

    def counts(self) -> Deferred[list[tuple[int, str, int, int]]]:
        """(partition, queue, state, rows) for every combination that occurs. Costs a pass over an index."""

    def open_rows(self, after: tuple[int, str] | None, limit: int) -> Deferred[list[OpenRow]]:
        """Rows not final, ordered by (state, id), behind ``after``."""

    def ended_before(self, us: int, limit: int) -> Deferred[list[StoredRow]]:
        """Final rows whose ``ended_us`` is below ``us``, oldest first."""

    def tombstones_before(self, us: int, limit: int) -> Deferred[list[Tombstone]]: ...

    def oldest_pending(self) -> Deferred[dict[str, int]]:
        """For each queue with a pending row, the least ``run_at_us`` among them."""

    def newest_us(self) -> Deferred[int]:
        """The greatest time in the rows, of a birth or an end; 0 where there is none."""

    def backup(self, path: str) -> Deferred[None]:
        """An online copy of the whole store at one moment, durable, that opens as a store of its own."""

    def disk_free_bytes(self) -> int: ...

    def bytes_on_disk(self) -> int: ...

    def close(self) -> Deferred[None]:
        """Finish what was accepted, then let go of files and locks."""
