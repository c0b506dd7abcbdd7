"""Make the data directory of a new cluster's first node out of snapshots of an old cluster's nodes.

    python -m tq_node.restore --node-id node-1 [--data-dir DIR] SNAPSHOT [SNAPSHOT ...]

A SNAPSHOT is what ``POST /cluster/snapshot`` of a node wrote; give those of all nodes. Of each
partition the copy that holds most is taken; tasks, states, pauses and defaults of types are those
of the old cluster, and so are the numbers that place an id in a partition. Cluster id, node id and
secret are new: nodes of the old cluster, should one still live, are strangers to it. Start the node
with the same --node-id and --data-dir, then the others, on empty directories, with --join."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, ensureDeferred

from tq_node.cli.config import STORE_FILE
from tq_node.cli.options import say
from tq_node.cli.parse import parse_node_name, unusable
from tq_node.cluster import commands
from tq_node.cluster import map as tables
from tq_node.cluster.commands import UnreadableCommand
from tq_node.cluster.map import EMPTY, UnreadableMap
from tq_node.cluster.records import ClusterMap
from tq_node.errors import StoreBroken
from tq_node.raft.messages import EntryKind, Snapshot
from tq_node.runtime.bootstrap.found import HANDLERS_SEEN, PAUSED, token_values, type_values
from tq_node.runtime.bootstrap.identity import (
    Belonging,
    Birth,
    Formatted,
    belonging_in,
    belonging_values,
    founding_identity,
    new_node,
    next_start,
)
from tq_node.runtime.control.control_plane import TOKENS_SEEN
from tq_node.runtime.control.raft_driver import SNAPSHOT
from tq_node.store.api import Batch, Install, PartitionLog, StagedChunk, Store
from tq_node.store.lock import DirectoryLocked, sync_directory
from tq_node.store.private import secure_directory
from tq_node.store.sqlite.open_database import make_directory
from tq_node.store.sqlite.store import open_store
from tq_node.store.sqlite.upgrade import SchemaTooNew
from tq_node.types import NodeName

EPOCHS_ABOVE = 1_000_000
"""How far epochs rise: the old cluster may have shown handlers tokens later than its snapshots."""
WORK_FOLDER = "restoring"
_READ_BYTES = 4 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_NAMED_MAX = 8
_decode_table = msgspec.msgpack.Decoder(Snapshot).decode


class Refused(Exception):
    """One line for a person. Nothing was made."""


class Source(msgspec.Struct):
    """One snapshot, opened. ``table``: its node's cluster map; EMPTY of release 0.1's lone node."""

    path: Path
    store: Store
    node: Formatted
    belonging: Belonging
    birth: Birth
    table: ClusterMap
    copies: dict[int, PartitionLog]

    @property
    def born_us(self) -> int:
        return self.table.settings.born_us if self.table.is_founded else self.belonging.born_us

    @property
    def paused(self) -> list[str]:
        if self.table.is_founded:
            return list(self.table.paused_queues)
        return msgspec.json.decode(self.store.meta().get(PAUSED, b"[]"), type=list[str])

    @property
    def has_seen_handlers(self) -> bool:
        return self.table.handlers_seen or HANDLERS_SEEN in self.store.meta()

    @property
    def has_seen_tokens(self) -> bool:
        return self.table.tokens_seen or TOKENS_SEEN in self.store.meta()

    def is_in_sync(self, partition: int) -> bool:
        """Has this copy all that was acknowledged by its snapshot, as far as its node knew?"""
        if not self.table.is_founded:
            return True
        return self.node.node_id in self.table.partitions[partition].isr

    def rank(self, partition: int) -> tuple[int, int]:
        """Epoch of the last entry, and its sequence. The copy of the highest rank has all committed
        entries that the others have: who holds an entry of a later epoch has all that was committed
        before that epoch (R15), and within an epoch one log is the beginning of the other (I6)."""
        copy = self.copies.get(partition)
        if copy is None:
            return (0, 0)
        epochs = [epoch for epoch, first in copy.epochs if first <= copy.last_sequence]
        return (epochs[-1] if epochs else 0, copy.last_sequence)


async def restore(
    reactor: Any,
    snapshots: Sequence[Path],
    data_dir: Path,
    node_name: NodeName,
    *,
    keeps_secret: bool,
    incomplete: bool,
) -> str:
    """Make the directory; returns what was done, for a person.

    The store is built in a folder of its own and appears in ``data_dir`` at one stroke: broken
    off at any moment, the directory is still an empty one to a node.

    :raises Refused: the snapshots or the directory don't allow it.
    :raises StoreBroken, SchemaTooNew, OSError: a snapshot can't be read, the directory written."""
    _refuse_used(data_dir)
    for warning in secure_directory(data_dir):
        say(f"restore: {warning}")
    work = data_dir / WORK_FOLDER
    make_directory(work)
    opened: list[Store] = []
    try:
        sources = [await _opened(reactor, path, work / str(number), opened) for number, path in enumerate(snapshots)]
        _refuse_strangers(sources)
        target = open_store(work / "new", reactor=reactor, on_broken=_heard_elsewhere)
        opened.append(target)
        newest = max(sources, key=lambda source: source.table.map_version)
        chosen = _choose(sources, newest, incomplete=incomplete)
        for partition, source in chosen.items():
            promised = [other.copies[partition].promised for other in sources if partition in other.copies]
            if newest.table.is_founded:
                promised.append(newest.table.partitions[partition].epoch)
            await _copy(source, partition, target, max(promised) + EPOCHS_ABOVE)
        checks_tokens = any(source.has_seen_tokens for source in sources)
        belonging = await _name(target, newest, node_name, keeps_secret=keeps_secret, checks_tokens=checks_tokens)
        rows = sum(size.rows for size in target.sizes().values())
        while opened:
            await opened.pop().close()
        made = work / "new" / STORE_FILE
        if any(path.stat().st_size for path in made.parent.glob(f"{STORE_FILE}-wal")):
            raise StoreBroken(f"{made} could not be closed in order")
        made.rename(data_dir / STORE_FILE)
        sync_directory(data_dir)
    finally:
        while opened:
            await opened.pop().close()
        shutil.rmtree(work, ignore_errors=True)
    tokens = (
        f", as do {len(newest.table.tokens)} access tokens, also such as were revoked since" if checks_tokens else ""
    )
    return (
        f"{rows} tasks in {len(chosen)} partitions are in {data_dir}, the first node of cluster {belonging.cluster_id}"
        f"{tokens}; start it with --node-id {node_name} --data-dir {data_dir}"
    )


# --- what is given ---
def _refuse_used(data_dir: Path) -> None:
    if why := unusable(data_dir):
        raise Refused(f"--data-dir: {str(data_dir)!r} {why}")
    if (data_dir / WORK_FOLDER).exists():
        raise Refused(f"--data-dir: {data_dir / WORK_FOLDER} is left of a restore that was broken off: delete it")
    if (data_dir / STORE_FILE).exists():
        raise Refused(f"--data-dir: {data_dir} holds a store already; restore into an empty directory")


async def _opened(reactor: Any, path: Path, folder: Path, opened: list[Store]) -> Source:
    """A copy of the snapshot, opened: opening may raise its schema; the snapshot stays as it is."""
    if not path.is_file():
        raise Refused(f"{path} is not a file")
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        raise Refused(
            f"{path} is the store of a node that runs or was killed, not a snapshot: {wal.name} belongs to it"
        )
    folder.mkdir(mode=0o700)
    shutil.copyfile(path, folder / STORE_FILE)
    try:
        store = open_store(folder, reactor=reactor, on_broken=_heard_elsewhere)
    except (SchemaTooNew, StoreBroken) as why:
        raise Refused(f"{path}: {why}") from why
    opened.append(store)
    meta = store.meta()
    belonging = belonging_in(meta)
    if belonging is None or "identity" not in meta:
        raise Refused(f"{path} is of a node that belongs to no cluster")
    try:
        table = await _table(store)
    except (UnreadableMap, UnreadableCommand) as why:
        raise Refused(f"{path} is of a later release: {why}") from why
    if table.is_founded:
        birth = Birth(table.settings.seed, table.settings.partition_count, table.settings.replication_factor)
    elif belonging.birth is not None:
        birth = belonging.birth
    else:
        raise Refused(f"{path} is of a node that never became a member of its cluster")
    copies = {copy.partition: copy for copy in await store.partitions()}
    return Source(path, store, msgspec.json.decode(meta["identity"], type=Formatted), belonging, birth, table, copies)


async def _table(store: Store) -> ClusterMap:
    """The table after all that the node's Raft log holds. Its last entries may be uncommitted; what
    they order is then no worse than an answer that got lost."""
    raw = store.meta().get(SNAPSHOT)
    snapshot = Snapshot() if raw is None else _decode_table(raw)
    table = tables.decode(snapshot.data) if snapshot.data else EMPTY
    for record in await store.consensus_log():
        if record.kind == EntryKind.DATA and record.log_index > snapshot.log_index:
            table = tables.apply(table, record.log_index, commands.decode(record.data)).map
    return table


def _refuse_strangers(sources: Sequence[Source]) -> None:
    first = sources[0]
    for source in sources:
        if source.belonging.cluster_id != first.belonging.cluster_id or source.birth != first.birth:
            raise Refused(
                f"{source.path} is of cluster {source.belonging.cluster_id}, {first.path} of {first.belonging.cluster_id}"
            )


def _choose(sources: Sequence[Source], newest: Source, *, incomplete: bool) -> dict[int, Source]:
    """The copy to take of each partition of which there is anything.

    :raises Refused: no copy of a partition was in sync: what was acknowledged may be elsewhere."""
    partitions = range(newest.birth.partition_count)
    lacking = [p for p in partitions if not any(source.is_in_sync(p) for source in sources)]
    if lacking and not incomplete:
        holders = {node for p in lacking for node in newest.table.partitions[p].isr}
        names = sorted(entry.name for node, entry in newest.table.nodes.items() if node in holders)
        few = ", ".join(map(str, lacking[:_NAMED_MAX])) + (", …" if len(lacking) > _NAMED_MAX else "")
        raise Refused(
            f"partitions {few} ({len(lacking)} in all) are in sync in none of these snapshots: add those of "
            f"{', '.join(names)}, or say --incomplete to do with what there is"
        )
    best = {p: max(sources, key=lambda source: source.rank(p)) for p in partitions}
    return {p: source for p, source in best.items() if p in source.copies}


# --- what is made ---
async def _copy(source: Source, partition: int, target: Store, promised: int) -> None:
    """Rows, tombstones and horizon as of ``applied``, then the log behind it, which the node itself
    will apply. The last of the log may not have been committed when the snapshot was taken. Nobody
    was told that it was not."""
    copy = source.copies[partition]
    snapshot = await source.store.open_snapshot(partition)
    number = 0
    while (chunk := await snapshot.read(_CHUNK_BYTES)) is not None:
        await target.commit(Batch(stage=[StagedChunk(partition, number, chunk)]))
        number += 1
    assert snapshot.applied == copy.applied, "nobody else writes to the copy of a snapshot"
    install = Install(partition, snapshot.applied, snapshot.epochs, snapshot.horizon_us, number, snapshot.digest())
    snapshot.close()
    later = [(partition, epoch, first) for epoch, first in copy.epochs if first > copy.applied]
    await target.commit(Batch(promises={partition: promised}, installs=[install], epochs=later))
    sequence = copy.applied + 1
    while sequence <= copy.last_sequence:
        entries = await source.store.read_log(partition, sequence, bytes_max=_READ_BYTES)
        await target.commit(Batch(entries=entries))
        sequence = entries[-1].sequence + 1


async def _name(
    target: Store, old: Source, node_name: NodeName, *, keeps_secret: bool, checks_tokens: bool
) -> Belonging:
    """Make the store that of a founder whose first start is yet to come: it writes the first table,
    above all epochs (R6). It is past the birth guard: an older cluster that calls at its address is
    the very one that it replaces."""
    birth = old.birth
    belonging = msgspec.structs.replace(
        founding_identity(
            partition_count=birth.partition_count,
            replication_factor=birth.replication_factor,
            keeps_secret=keeps_secret,
            random_bytes=os.urandom,
            now_us=old.born_us,
        ),
        birth=birth,
        is_newborn=False,
    )
    _, values = next_start({}, new_node(node_name, os.urandom))
    values[PAUSED] = msgspec.json.encode(old.paused)
    values |= type_values(old.table)
    if old.has_seen_handlers:
        values[HANDLERS_SEEN] = b"1"
    if checks_tokens:
        values |= token_values(old.table.tokens)
    await target.commit(Batch(meta=values | belonging_values(belonging)))
    return belonging


def _heard_elsewhere(why: Exception) -> None:
    """The Deferred that is being waited for says it too."""


# --- the command ---
def _parser() -> argparse.ArgumentParser:
    text = (__doc__ or "").strip().split("\n\n")
    parser = argparse.ArgumentParser("python -m tq_node.restore", description=text[0], epilog=text[-1])
    parser.add_argument("--node-id", required=True, metavar="NAME", help="name of the new cluster's first node")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="an empty directory [default: ./data/<node-id>]")
    parser.add_argument(
        "--no-secret",
        action="store_true",
        help="make no secret: the new cluster's nodes will be given certificates or --secret-file",
    )
    parser.add_argument("--incomplete", action="store_true", help="do without partitions that no snapshot has in sync")
    parser.add_argument("snapshots", nargs="+", type=Path, metavar="SNAPSHOT")
    return parser


def main(reactor: Any, *arguments: str) -> Deferred[None]:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        node_name = NodeName(parse_node_name(options.node_id))
    except ValueError as why:
        parser.error(f"--node-id: {options.node_id!r} {why}")
    data_dir = (options.data_dir or Path("data") / node_name).absolute()
    os.umask(0o077)  # snapshots, and what is made of them, hold payloads and secrets

    async def run() -> None:
        try:
            done = await restore(
                reactor,
                options.snapshots,
                data_dir,
                node_name,
                keeps_secret=not options.no_secret,
                incomplete=options.incomplete,
            )
            sys.stdout.write(f"{done}\n")
        except (Refused, StoreBroken, SchemaTooNew, DirectoryLocked, OSError) as why:
            say(f"restore: {why}")
            raise SystemExit(1) from None

    return ensureDeferred(run())
