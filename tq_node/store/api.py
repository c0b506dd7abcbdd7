"""The Store contract: the only way anything reaches the disk.

One suite (``tests/contract/test_store.py``) runs over every implementation. Calls come from the
reactor thread; Deferreds fire there. What a crash may lose: any batch whose Deferred has not fired,
wholly; never part of one, never an earlier one while a later one stays.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred

from tq_node.partition.entries import Entry


class RowWrite(msgspec.Struct, gc=False):
    """The new content of a row, several effects on one task folded together. ``expected_rev`` is
    the revision stored before (0: not there). ``spec`` and the four columns behind it are given
    where the row is born, and only there."""

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

    ``replace_all``: everything goes first (a snapshot has come). ``records`` replace everything
    from the first one's index on. ``cut_below``: entries of lower index go (a snapshot was taken
    here).
    """

    records: list[ConsensusRecord] = []
    replace_all: bool = False
    cut_below: int = 0


class StagedChunk(msgspec.Struct, frozen=True, gc=False):
    """One chunk of a snapshot on its way in, as ``PartitionSnapshot.read`` gave it and
    ``SnapshotCheck`` has passed it. ``number`` counts from 0; chunk 0 begins anew and forgets what
    was staged of the partition before."""

    partition: int
    number: int
    data: bytes


class Install(msgspec.Struct, frozen=True):
    """Put what is staged in the place of the partition's content (replication.md, section 6,
    catch-up). ``epochs`` is what the snapshot says: (epoch, first_sequence), ascending, none past
    ``applied``. ``digest``, where it is given, is that of the chunks (``SnapshotCheck.digest``)."""

    partition: int
    applied: int
    epochs: list[tuple[int, int]]
    horizon_us: int
    chunks: int
    digest: bytes = b""


class Batch(msgspec.Struct):
    """What one commit makes durable, all or nothing. It may change any number of partitions.

    Order inside: promises; drops; unstage; stage; installs; cuts; epochs; entries; rows; deletes;
    tombstones; forgets; horizons; applied; trim; then consensus and meta, which touch none of
    these. So a batch that answers a ``Sync`` may promise, cut and append at once (R15, R16), and
    one that installs a snapshot may append what follows it.

    ``applied`` must name every partition whose rows, tombstones or horizon the batch changes. An id
    belongs to one partition for ever, and is a row or a tombstone, never both; the store does not
    look.
    """

    entries: list[Entry] = []
    promises: dict[int, int] = {}
    drops: list[int] = []
    """Partitions to forget: rows, tombstones, log, epochs, horizon, applied, what is staged.
    ``promised`` stays (R13)."""
    unstage: list[int] = []
    """Partitions of which nothing shall be staged any more."""
    stage: list[StagedChunk] = []
    """Chunks stored apart until installed, seen by no read. Opening the store discards them: a
    crash gives up the snapshot."""
    installs: list[Install] = []
    """Rows, tombstones, epochs and ``applied`` are then the snapshot's, the log is empty behind
    them. ``promised`` stays."""
    cuts: dict[int, int] = {}
    """Partition -> highest sequence kept. Records above it go, and epochs that begin above it.
    Never below ``applied`` (I5)."""
    epochs: list[tuple[int, int, int]] = []
    """(partition, epoch, first_sequence), both greater than those before."""
    rows: list[RowWrite] = []
    deletes: list[RowDelete] = []
    tombstones: list[Tombstone] = []
    forgets: list[str] = []
    horizons: dict[int, int] = {}
    applied: dict[int, int] = {}
    trim: dict[int, int] = {}
    """Partition -> sequence up to and with which records are no longer needed. Never past ``applied``."""
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
    type: str


class PartitionLog(msgspec.Struct, frozen=True):
    """The durable state of one partition. ``epochs`` ascends: (epoch, first_sequence). The first
    covers ``log_start`` - 1, so that the epoch of the record before the log is known too: whoever
    is sent the log from its start must have that very record last (R15)."""

    partition: int
    promised: int
    epochs: list[tuple[int, int]]
    log_start: int
    last_sequence: int
    applied: int
    horizon_us: int


class PartitionSize(msgspec.Struct, frozen=True):
    """How much a partition holds. ``bytes``: specs, bodies and about what else a copy of it costs to send."""

    rows: int
    tombstones: int
    bytes: int


class RowQuery(msgspec.Struct, frozen=True):
    """A page of rows. ``None`` means no condition; the ``_not`` fields turn their set into its
    complement.

    ``sort``: id, created_at, run_at or priority; ties are broken by id, in the same direction.
    ``after`` is the (sort value, id) of the last row that the previous page looked at; for sort by
    id the first is unused. A page looks at ``scan_rows_max`` rows at most.
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


class SnapshotLost(Exception):
    """A snapshot was given up: held so long that the store's write-ahead log outgrew its bound. The store is well."""


SNAPSHOT_CHUNK_BYTES = 48 * 1024
"""What a box between peers takes with room to spare (replication.md, section 6)."""
SNAPSHOTS_MAX = 4
"""Snapshots open at once; further ones wait. Each is a connection, and all hold back the store's write-ahead log."""
SNAPSHOTS_WAITING_MAX = 4_096


class PartitionSnapshot(Protocol):
    """One partition as of one applied sequence, whatever is committed meanwhile. Nobody waits for it but its reader."""

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
        """The next chunk: at most about ``bytes_max``, unless a single row is longer. None at the
        end. One read at a time.

        Rows come first, then tombstones, each in order of their ids. What is damaged here breaks
        the store.

        :raises SnapshotLost: (through the Deferred) see there; also after ``close``.
        """

    def digest(self) -> bytes:
        """Of the chunks read so far; after the last one, what ``Store.digest`` says of this content."""

    def close(self) -> None:
        """Release the snapshot; a second call does nothing. The next call of ``open_snapshot`` that waits goes on."""


class Store(Protocol):
    """See the module's docstring. Every Deferred may fail with StoreBroken, after which no call
    succeeds. ``partitions`` as an argument means these alone; None means all."""

    def commit(self, batch: Batch) -> Deferred[None]:
        """Make the batch durable. Batches become durable in the order given.

        :raises Divergence: (through the Deferred) it does not follow from what is stored: a
            revision, a gap in a log, a cut or an install below ``applied``, a chunk out of turn.
            The store is broken then.
        """

    def meta(self) -> dict[str, bytes]:
        """The named values as of opening plus what has been committed since. Synchronous: they are few and small."""

    def partitions(self) -> Deferred[list[PartitionLog]]:
        """Every partition that has ever been written to, by number. One that was dropped has an empty log from 1 on."""

    def consensus_log(self) -> Deferred[list[ConsensusRecord]]:
        """The whole Raft log, by index, checksums verified. It is short: snapshots cut it."""

    def read_log(self, partition: int, first: int, *, bytes_max: int) -> Deferred[list[Entry]]:
        """Durable entries from ``first`` on, at least one where there is one, about ``bytes_max``
        in all; checksums verified.

        Empty past the end of the log, and where ``first`` has been trimmed: ``partitions`` then
        says a ``log_start`` above it. Never begins later than ``first``. As of some moment after
        the call: a later cut may have removed what is answered.
        """

    def open_snapshot(self, partition: int) -> Deferred[PartitionSnapshot]:
        """The partition as of some moment after the call; waits while ``SNAPSHOTS_MAX`` others are
        open, and may be cancelled.

        Hold the log back (no ``trim`` past the present ``applied``) before the call, and let go
        past the snapshot's ``applied``.

        :raises Busy: (through the Deferred) too many wait already.
        """

    def digest(self, partition: int) -> Deferred[tuple[int, bytes]]:
        """(applied, digest) at one moment: equal content at equal ``applied`` has equal digests on
        every copy (I11). Over rows and tombstones in the order of their ids, by what ``snapshots``
        makes of them. Costs a pass over all ids."""

    def sizes(self) -> dict[int, PartitionSize]:
        """How much each partition holds that holds anything, about as of now. Synchronous, and no
        dearer for many tasks."""

    def partition_bytes(self) -> dict[int, int]:
        """``PartitionSize.bytes`` by partition."""

    def lookup(self, ids: Seq[str]) -> Deferred[dict[str, StoredRow | Tombstone]]:
        """Rows and tombstones by id as of some moment after the call; ids that are neither are left out."""

    def page(self, query: RowQuery) -> Deferred[RowPage]: ...

    def counts(
        self, partitions: Collection[int] | None = None, *, from_state: int = 0
    ) -> Deferred[list[tuple[int, str, int, int]]]:
        """(partition, queue, state, rows) for every combination that occurs, of states from
        ``from_state`` on. Costs a pass over an index: all rows in these states, whatever their
        partition."""

    def open_rows(
        self, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[OpenRow]]:
        """Rows not final, ordered by (state, id), behind ``after``. Fewer than ``limit`` only at the end."""

    def ended_before(self, us: int, limit: int, partitions: Collection[int] | None = None) -> Deferred[list[StoredRow]]:
        """Final rows whose ``ended_us`` is below ``us``, oldest first."""

    def tombstones_before(
        self, us: int, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[Tombstone]]:
        """Tombstones whose ``at_us`` is below ``us``, oldest first, then by id."""

    def oldest_pending(self, partitions: Collection[int] | None = None) -> Deferred[dict[str, int]]:
        """For each queue with a pending row, the least ``run_at_us`` among them."""

    def newest_us(self) -> Deferred[int]:
        """The greatest time in the rows, of a birth or an end; 0 where there is none."""

    def backup(self, directory: str, name: str, kept: int) -> Deferred[Seq[str]]:
        """An online copy of the whole store at one moment, durable, that opens as a store of its
        own.

        :param directory: made if it is not there. :param kept: of the snapshots in it only so many
            stay, the newest.
        :returns: their paths, this one first.
        """

    def disk_free_bytes(self, directory: str | None = None) -> int:
        """Free bytes of the disk with the store, or of the one where ``directory`` is or would be."""

    def bytes_on_disk(self) -> int: ...

    def close(self) -> Deferred[None]:
        """Finish all accepted batches, then release files and locks. Open snapshots are lost."""
