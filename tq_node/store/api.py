"""The Store contract: the only way anything reaches the disk.

Calls come from the reactor thread; Deferreds fire there. A crash may lose whole batches whose
Deferred has not fired; never part of one, never an earlier one while a later one stays. One suite,
``tests/contract/test_store.py``, runs over every implementation."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred

from tq_node.partition.entries import Entry


class RowWrite(msgspec.Struct, gc=False):
    """The new content of a row, several effects on one task folded together.

    ``expected_rev``: the stored revision, 0 where there is no row yet. ``spec`` and the columns
    behind it are given only where the row is born."""

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
    """The mark of a purged task, which may go once its partition's horizon has passed ``at_us``."""

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
    """A change of the Raft log. In this order: ``replace_all`` removes everything (a snapshot has
    come); ``records`` replace what is there from the first one's index on; ``cut_below`` removes
    lower indices (a snapshot was taken)."""

    records: list[ConsensusRecord] = []
    replace_all: bool = False
    cut_below: int = 0


class StagedChunk(msgspec.Struct, frozen=True, gc=False):
    """One chunk of an incoming snapshot, as read by ``PartitionSnapshot.read``, checked by
    ``SnapshotCheck``. ``number`` counts from 0; chunk 0 discards what its partition has staged."""

    partition: int
    number: int
    data: bytes


class Install(msgspec.Struct, frozen=True):
    """Replace a partition's content by what is staged (replication.md, section 6, catch-up).

    ``epochs``: the snapshot's (epoch, first_sequence), ascending, none past ``applied``.
    ``digest``: that of the chunks, or empty."""

    partition: int
    applied: int
    epochs: list[tuple[int, int]]
    horizon_us: int
    chunks: int
    digest: bytes = b""


class Batch(msgspec.Struct):
    """What one commit makes durable, all or nothing, in any number of partitions.

    Order: promises, drops, unstage, stage, installs, cuts, epochs, entries, rows, deletes,
    tombstones, forgets, horizons, applied, trim; then consensus and meta. So one batch may promise,
    cut and append (R15, R16), or install a snapshot and append what follows it.

    ``applied`` names every partition whose rows, tombstones or horizon change. An id belongs to one
    partition for ever, and is a row or a tombstone; the store does not check that."""

    entries: list[Entry] = []
    promises: dict[int, int] = {}
    drops: list[int] = []
    """Partitions to forget, with log, rows and what is staged; ``promised`` stays (R13)."""
    unstage: list[int] = []
    """Partitions whose staged chunks are discarded."""
    stage: list[StagedChunk] = []
    """Chunks kept apart until installed, seen by no read; opening the store discards them."""
    installs: list[Install] = []
    """Rows, tombstones, epochs, ``applied`` become the snapshot's; no log; ``promised`` stays."""
    cuts: dict[int, int] = {}
    """Partition -> highest sequence kept, at least ``applied`` (I5); later epochs are cut too."""
    epochs: list[tuple[int, int, int]] = []
    """(partition, epoch, first_sequence), both greater than those before."""
    rows: list[RowWrite] = []
    deletes: list[RowDelete] = []
    tombstones: list[Tombstone] = []
    forgets: list[str] = []
    horizons: dict[int, int] = {}
    applied: dict[int, int] = {}
    trim: dict[int, int] = {}
    """Partition -> highest sequence whose record is not needed any more; never past ``applied``."""
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
    """What the heaps hold of a task that has not ended."""

    id: str
    partition: int
    state: int
    queue: str
    priority: int
    run_at_us: int
    type: str


class MadeRow(msgspec.Struct, frozen=True, gc=False):
    """Who submitted a task that has not ended: the name of a token, empty where it was none."""

    id: str
    partition: int
    state: int
    queue: str
    made_by: str


class PartitionLog(msgspec.Struct, frozen=True):
    """The durable state of one partition. ``epochs``: (epoch, first_sequence), ascending; the
    first covers ``log_start`` - 1: a replica's last record from which it can follow (R15)."""

    partition: int
    promised: int
    epochs: list[tuple[int, int]]
    log_start: int
    last_sequence: int
    applied: int
    horizon_us: int


class PartitionSize(msgspec.Struct, frozen=True):
    """The size of a partition. ``bytes``: about what it costs to send a copy of it."""

    rows: int
    tombstones: int
    bytes: int


class RowQuery(msgspec.Struct, frozen=True):
    """A page of rows. None: no condition; a ``_not`` flag turns its set into the complement.

    ``sort``: id, created_at, run_at or priority, ties by id in the same direction. ``after``: (sort
    value, id) of the last row that the previous page looked at; sort by id needs only the id."""

    states: frozenset[int] | None = None
    states_not: bool = False
    types: frozenset[str] | None = None
    types_not: bool = False
    queues: frozenset[str] | None = None
    queues_not: bool = False
    partitions: frozenset[int] | None = None
    text: str | None = None
    """Text in id or type, case-insensitive."""
    sort: str = "id"
    descending: bool = False
    after: tuple[int, str] | None = None
    limit: int = 1000
    scan_rows_max: int = 50_000
    """Rows that the page looks at, at most."""
    bytes_max: int = 4 * 1024 * 1024
    """The page ends with the row that passes this many bytes of spec + body."""


class RowPage(msgspec.Struct, frozen=True):
    rows: list[StoredRow]
    next: tuple[int, str] | None
    """``RowQuery.after`` for the next page; None at the end."""


class SnapshotLost(Exception):
    """A snapshot was given up: the store's write-ahead log outgrew its bound. The store is well."""


SNAPSHOT_CHUNK_BYTES = 48 * 1024
"""A chunk fits well into a box between peers (replication.md, section 6)."""
SNAPSHOTS_MAX = 4
"""Snapshots open at once; others wait. Each is a connection, and holds back the write-ahead log."""
SNAPSHOTS_WAITING_MAX = 4_096


class PartitionSnapshot(Protocol):
    """One partition at one applied sequence; commits go on and don't wait for its reader."""

    @property
    def partition(self) -> int: ...

    @property
    def applied(self) -> int: ...

    @property
    def epochs(self) -> list[tuple[int, int]]:
        """(epoch, first_sequence), ascending, none past ``applied``."""

    @property
    def horizon_us(self) -> int: ...

    def read(self, bytes_max: int = SNAPSHOT_CHUNK_BYTES) -> Deferred[bytes | None]:
        """The next chunk: ``bytes_max``, or one longer row; None at the end. One read at a time.

        Rows come first, then tombstones, each in order of ids. A damaged one breaks the store.

        :raises SnapshotLost: (through the Deferred) also after ``close``."""

    def digest(self) -> bytes:
        """Digest of the chunks read so far; after the last one equal to ``Store.digest``."""

    def close(self) -> None:
        """Release the snapshot and let the next ``open_snapshot`` go on. May be called again."""


class Store(Protocol):
    """A node's store. After a Deferred failed with ``StoreBroken`` no call succeeds.

    ``partitions`` as an argument: these alone; None: all."""

    def commit(self, batch: Batch) -> Deferred[None]:
        """Make the batch durable; batches become so in the order given.

        :raises Divergence: (through the Deferred) it does not follow from what is stored: revision,
            gap in a log, cut or install below ``applied``, chunk out of turn. The store breaks."""

    def meta(self) -> dict[str, bytes]:
        """The named values as committed. Synchronous: they are few and small."""

    def partitions(self) -> Deferred[list[PartitionLog]]:
        """Every partition ever written to, by number; a dropped one has an empty log from 1 on."""

    def consensus_log(self) -> Deferred[list[ConsensusRecord]]:
        """The whole Raft log by index, checksums verified; snapshots keep it short."""

    def read_log(self, partition: int, first: int, *, bytes_max: int) -> Deferred[list[Entry]]:
        """Durable entries from ``first`` on, ``bytes_max`` but at least one, checksums verified.

        Empty past the end of the log, and where ``first`` has been trimmed (``log_start`` is above
        it). As of some moment after the call: a later cut may have removed what is returned."""

    def open_snapshot(self, partition: int) -> Deferred[PartitionSnapshot]:
        """The partition as of some moment after the call; waits while ``SNAPSHOTS_MAX`` are open,
        may be cancelled. From before the call on, no ``trim`` may pass ``applied`` as of then;
        afterwards, the snapshot's.

        :raises Busy: (through the Deferred) too many wait already."""

    def digest(self, partition: int) -> Deferred[tuple[int, bytes]]:
        """(applied, digest of rows and tombstones in order of ids): copies with equal ``applied``
        have equal digests (I11). Costs a pass over all ids."""

    def sizes(self) -> dict[int, PartitionSize]:
        """The size of each partition that is not empty, as of about now; synchronous and cheap."""

    def partition_bytes(self) -> dict[int, int]:
        """``PartitionSize.bytes`` by partition."""

    def lookup(self, ids: Seq[str]) -> Deferred[dict[str, StoredRow | Tombstone]]:
        """Rows and tombstones by id, as of some moment after the call; unknown ids are left out."""

    def page(self, query: RowQuery) -> Deferred[RowPage]: ...

    def counts(
        self, partitions: Collection[int] | None = None, *, from_state: int = 0
    ) -> Deferred[list[tuple[int, str, int, int]]]:
        """(partition, queue, state, rows) of every combination, from ``from_state`` on. Costs a
        pass over the index of all rows in these states, whatever their partition."""

    def open_rows(
        self, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[OpenRow]]:
        """Rows not final behind ``after``, by (state, id); fewer than ``limit`` only at the end."""

    def open_makers(
        self, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[MadeRow]]:
        """Who submitted the rows of ``open_rows``, in the same order."""

    def ended_before(self, us: int, limit: int, partitions: Collection[int] | None = None) -> Deferred[list[StoredRow]]:
        """Final rows whose ``ended_us`` is below ``us``, oldest first."""

    def tombstones_before(
        self, us: int, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[Tombstone]]:
        """Tombstones whose ``at_us`` is below ``us``, oldest first, then by id."""

    def oldest_pending(self, partitions: Collection[int] | None = None) -> Deferred[dict[str, int]]:
        """For each queue with a pending row, the least ``run_at_us`` among them."""

    def newest_us(self) -> Deferred[int]:
        """The latest time in the rows, of a birth or an end; 0: no rows."""

    def backup(self, directory: str, name: str, kept: int) -> Deferred[Seq[str]]:
        """Copy the whole store at one moment, durably, as a store of its own in ``directory``, made
        if missing. Fires with the ``kept`` newest copies' paths, this first; older ones go."""

    def disk_free_bytes(self, directory: str | None = None) -> int:
        """Free bytes of the store's disk, or of the one where ``directory`` is or would be."""

    def bytes_on_disk(self) -> int: ...

    def close(self) -> Deferred[None]:
        """Finish all accepted batches, then release files and locks. Open snapshots are lost."""
