"""Which copy a restored partition is made of, and what a new directory says; in a cluster: ``tests/cluster/test_backup.py``."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.support.stores import SqliteKind, birth, record
from tq_node.cluster import map as tables
from tq_node.cluster.commands import FoundCluster, Registration
from tq_node.cluster.records import FEATURE_LEVEL_MAX, ClusterSettings
from tq_node.node import restore
from tq_node.node.restore import EPOCHS_ABOVE, Refused
from tq_node.runtime.bootstrap.found import HANDLERS_SEEN, PAUSED, TOKENS, first_table
from tq_node.runtime.bootstrap.identity import (
    Belonging,
    Birth,
    belonging_in,
    belonging_values,
    formatted_in,
    joined,
    new_node,
    next_start,
)
from tq_node.runtime.control.control_plane import TOKENS_SEEN
from tq_node.runtime.control.raft_driver import SNAPSHOT, founding_values
from tq_node.store.api import Batch, Store, Tombstone
from tq_node.store.sqlite.open_database import DATABASE_NAME
from tq_node.tokens import Quotas, Role, TokenEntry
from tq_node.types import HandlerKind, NodeId, NodeName

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred

OLD = Belonging("old-cluster", b"s" * 32, 12_345, Birth(99, 4, 3))


def meta(name: str, belonging: Belonging = OLD) -> dict[str, bytes | None]:
    node = new_node(NodeName(name), os.urandom)
    return next_start({}, node)[1] | belonging_values(belonging) | {PAUSED: b'["halted"]'}


async def snapshot(folder: Path, name: str, *batches: Batch) -> Path:
    kind = SqliteKind(folder / f"store-of-{name}")
    store = kind.open()
    for batch in (*batches,):
        await store.commit(batch)
    path = folder / f"{name}.sqlite3"
    await store.backup(str(path.parent), path.name, 1)
    await kind.close()
    return path


async def restored(folder: Path, *snapshots: Path, **options: Any) -> tuple[SqliteKind, Store]:
    from twisted.internet import reactor

    options = {"keeps_secret": True, "incomplete": False} | options
    await restore.restore(reactor, snapshots, folder / "new", NodeName("first"), **options)
    kind = SqliteKind(folder / "new")
    return kind, kind.open()


STALE = Batch(
    promises={0: 7, 1: 1},
    epochs=[(0, 1, 1), (1, 1, 1)],
    entries=[*(record(0, n, 1) for n in range(1, 6)), *(record(1, n, 1) for n in range(1, 4))],
    rows=[birth("old", partition=0), birth("elsewhere", partition=1)],
    applied={0: 5, 1: 3},
)
"""Of partition 0 more entries, and more applied, than the other; but those behind the third were cut away there by epoch 2."""
NEWER = Batch(
    promises={0: 2},
    epochs=[(0, 1, 1), (0, 2, 4)],
    entries=[*(record(0, n, 1) for n in range(1, 4)), record(0, 4, 2, b"not applied yet")],
    rows=[birth("new", partition=0, body=b"of epoch 2")],
    tombstones=[Tombstone("gone", 0, b"hash", 77)],
    horizons={0: 55},
    applied={0: 3},
)


@deferred
async def test_a_later_epoch_beats_a_longer_log(tmp_path: Path) -> None:
    stale = await snapshot(tmp_path, "a", STALE, Batch(meta=meta("a")))
    newer = await snapshot(tmp_path, "b", NEWER, Batch(meta=meta("b")))
    kind, store = await restored(tmp_path, stale, newer)
    zero, one = await store.partitions()
    assert (zero.applied, zero.last_sequence, zero.horizon_us) == (3, 4, 55)
    assert zero.epochs == [(1, 1), (2, 4)]
    assert zero.promised == 7 + EPOCHS_ABOVE, "above all that any of them has promised"
    assert (one.applied, one.last_sequence, one.promised) == (3, 3, 1 + EPOCHS_ABOVE)
    found = await store.lookup(["old", "new", "gone", "elsewhere"])
    assert set(found) == {"new", "gone", "elsewhere"}
    assert found["gone"] == Tombstone("gone", 0, b"hash", 77)
    (tail,) = await store.read_log(0, 4, bytes_max=1_000)
    assert tail == record(0, 4, 2, b"not applied yet"), "the node itself will apply it"
    await kind.close()


@deferred
async def test_it_is_the_directory_of_a_new_cluster(tmp_path: Path) -> None:
    made = await snapshot(tmp_path, "a", STALE, Batch(meta=meta("a")))
    kind, store = await restored(tmp_path, made)
    found = belonging_in(store.meta())
    assert found is not None
    assert found.cluster_id != OLD.cluster_id
    assert found.secret not in (None, OLD.secret)
    assert (found.birth, found.born_us, found.is_newborn) == (OLD.birth, OLD.born_us, False)
    node = formatted_in(store.meta(), NodeName("first"))
    assert node is not None
    assert msgspec.json.decode(store.meta()[PAUSED]) == ["halted"]
    await kind.close()
    assert not (tmp_path / "new" / "restoring").exists()
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


@deferred
async def test_certificates_need_no_secret(tmp_path: Path) -> None:
    made = await snapshot(tmp_path, "a", Batch(meta=meta("a")))
    kind, store = await restored(tmp_path, made, keeps_secret=False)
    found = belonging_in(store.meta())
    assert found is not None
    assert found.secret is None
    assert await store.partitions() == []
    await kind.close()


@deferred
async def test_refusals_leave_an_empty_directory(tmp_path: Path) -> None:
    ours = await snapshot(tmp_path, "a", Batch(meta=meta("a")))
    other_birth = msgspec.structs.replace(OLD, birth=Birth(1, 4, 3))
    other_id = msgspec.structs.replace(OLD, cluster_id="other")
    cases = {
        "is of cluster": await snapshot(tmp_path, "b", Batch(meta=meta("b", other_birth))),
        "is of cluster other": await snapshot(tmp_path, "c", Batch(meta=meta("c", other_id))),
        "belongs to no cluster": await snapshot(tmp_path, "d"),
        "never became a member": await snapshot(tmp_path, "e", Batch(meta=meta("e") | joined("old-cluster", None, 1))),
        "is not a file": tmp_path,
    }
    for why, snapshot_path in cases.items():
        with pytest.raises(Refused, match=why):
            await restored(tmp_path, ours, snapshot_path)
        assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new" / "restoring").mkdir()
    with pytest.raises(Refused, match="broken off"):
        await restored(tmp_path, ours)
    (tmp_path / "new" / "restoring").rmdir()
    (tmp_path / "new" / DATABASE_NAME).touch()
    with pytest.raises(Refused, match="holds a store already"):
        await restored(tmp_path, ours)


@pytest.mark.parametrize("seen", [True, False])
@deferred
async def test_that_there_were_real_handlers_is_not_forgotten(tmp_path: Path, seen: bool) -> None:
    """Else a node without any would let simulated ones do what was waiting in the old cluster."""
    kept: dict[str, bytes | None] = {HANDLERS_SEEN: b"1"} if seen else {}
    path = await snapshot(tmp_path, "old", Batch(meta=meta("old") | kept), NEWER)
    kind, store = await restored(tmp_path, path, incomplete=True)
    belonging = belonging_in(store.meta())
    assert belonging is not None
    founder = Registration(
        NodeId("1" * 32), NodeName("first"), "h", "p", 1, "n", 1, FEATURE_LEVEL_MAX, HandlerKind.NONE
    )
    values = await first_table(store, belonging, founder, 3)
    raw = values[SNAPSHOT]
    assert raw is not None
    assert tables.decode(restore._decode_table(raw).data).handlers_seen is seen
    assert values[HANDLERS_SEEN] is None, "the table keeps it from now on"
    await kind.close()


@pytest.mark.parametrize("tokens", [(TokenEntry("ops", b"h" * 32, (Role.ADMIN,), ("q",), 7, Quotas(waits=1)),), ()])
@deferred
async def test_access_tokens_come_along_and_stay_asked_for(tmp_path: Path, tokens: tuple[TokenEntry, ...]) -> None:
    """Else a restored cluster would be open to everybody."""
    old = Registration(NodeId("0" * 32), NodeName("old"), "h", "p", 1, "n", 1, FEATURE_LEVEL_MAX, HandlerKind.NONE)
    settings = ClusterSettings(4, 3, 99, 3)
    table = tables.apply(tables.EMPTY, 1, FoundCluster("old-cluster", "taskqueue", settings, old)).map
    table = msgspec.structs.replace(table, tokens=tokens, tokens_seen=True)
    raft = founding_values(old.node_id, tables.encode(table))
    path = await snapshot(tmp_path, "old", Batch(meta=meta("old") | raft), NEWER)
    kind, store = await restored(tmp_path, path, incomplete=True)
    assert TOKENS_SEEN in store.meta(), "before the first map is read"
    belonging = belonging_in(store.meta())
    assert belonging is not None
    founder = msgspec.structs.replace(old, node_id=NodeId("1" * 32), name=NodeName("first"))
    values = await first_table(store, belonging, founder, 3)
    raw = values[SNAPSHOT]
    assert raw is not None
    made = tables.decode(restore._decode_table(raw).data)
    assert (made.tokens, made.tokens_seen, values[TOKENS]) == (tokens, True, None)
    await kind.close()


@deferred
async def test_where_there_were_none_none_is_asked_for(tmp_path: Path) -> None:
    kind, store = await restored(tmp_path, await snapshot(tmp_path, "a", STALE, Batch(meta=meta("a"))))
    assert TOKENS_SEEN not in store.meta()
    await kind.close()
