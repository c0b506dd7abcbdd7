"""Both implementations of the Store against one another, over random histories of whole partitions."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from tests.support.stores import MemoryKind, Sent, SqliteKind, birth, change, record, snapshot_of
from tq_node.store.api import Batch, Install, RowDelete, RowQuery, Store, Tombstone

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred


class Story:
    """Random batches that follow one another, of three partitions; what a store that has them all must hold is known here."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.last = dict.fromkeys(range(3), 0)
        self.applied = dict.fromkeys(range(3), 0)
        self.epoch = dict.fromkeys(range(3), 0)
        self.revs: dict[int, dict[str, int]] = {p: {} for p in range(3)}
        self.tombstones: dict[int, set[str]] = {p: set() for p in range(3)}
        self.sent: dict[int, tuple[Sent, dict[str, int], set[str]]] = {}
        self.staged: dict[int, int] = {}
        self.made = 0

    def crash(self) -> None:
        self.staged = {}

    def batch(self) -> Batch:
        batch = Batch(meta={"made": b"%d" % self.made})
        for partition in range(3):
            for step in (self._reshape, self._cut, self._append, self._rows, self._apply):
                step(batch, partition)
        return batch

    def _reshape(self, batch: Batch, p: int) -> None:
        chance = self.draw.random()
        if chance < 0.03:
            batch.drops.append(p)
            self.last[p] = self.applied[p] = 0
            self.epoch[p] += 1
            self.revs[p], self.tombstones[p] = {}, set()
            self.staged.pop(p, None)
        elif chance < 0.06:
            batch.unstage.append(p)
            self.staged.pop(p, None)
        elif chance < 0.4:
            self._stage(batch, p)

    def _stage(self, batch: Batch, p: int) -> None:
        if p not in self.staged:
            self.made += 1
            rows = [self._birth(f"s{self.made}-{p}-{n}", p) for n in range(self.draw.randrange(12))]
            rows += [self._birth(task_id, p) for task_id in self.revs[p] if self.draw.random() < 0.5]
            tombstones = [Tombstone(f"h{self.made}-{p}-{n}", p, b"h", n) for n in range(self.draw.randrange(6))]
            sent = snapshot_of(p, rows, tombstones, bytes_max=600)
            self.sent[p] = sent, {row.id: 1 for row in rows}, {tombstone.id for tombstone in tombstones}
            self.staged[p] = 0
        sent, revs, ids = self.sent[p]
        more = sent.stage(p)[self.staged[p] :][: self.draw.randrange(1, 4)]
        batch.stage += more
        self.staged[p] += len(more)
        if self.staged[p] == len(sent.chunks) and self.draw.random() < 0.7:
            applied = self.applied[p] + self.draw.randrange(20)
            self.epoch[p] += 2
            digest = sent.digest if self.draw.random() < 0.5 else b""
            batch.installs.append(Install(p, applied, [(self.epoch[p], applied)], 5, len(sent.chunks), digest))
            self.last[p] = self.applied[p] = applied
            self.revs[p], self.tombstones[p] = dict(revs), set(ids)
            del self.staged[p]

    def _cut(self, batch: Batch, p: int) -> None:
        if self.draw.random() < 0.15:
            kept = self.draw.randint(self.applied[p], self.last[p] + 1)
            batch.cuts[p] = kept
            self.last[p] = min(kept, self.last[p])
            batch.promises[p] = self.draw.randrange(50)

    def _append(self, batch: Batch, p: int) -> None:
        if self.draw.random() < 0.3:
            self.epoch[p] += 1
            batch.epochs.append((p, self.epoch[p], self.last[p] + 1))
            batch.entries.append(record(p, self.last[p] + 1, self.epoch[p]))
            self.last[p] += 1
        for _ in range(self.draw.randrange(4)):
            self.last[p] += 1
            batch.entries.append(record(p, self.last[p], self.epoch[p], self.draw.randbytes(self.draw.randrange(300))))

    def _birth(self, task_id: str, p: int) -> Any:
        return birth(
            task_id,
            partition=p,
            state=self.draw.randrange(6),
            queue=self.draw.choice("ab"),
            run_at_us=self.draw.randrange(9),
            spec=self.draw.randbytes(self.draw.choice([0, 90, 3_000])),
            body=self.draw.randbytes(self.draw.randrange(90)),
        )

    def _rows(self, batch: Batch, p: int) -> None:
        revs, tombstones = self.revs[p], self.tombstones[p]
        if not self.last[p]:
            return
        for task_id in sorted(revs):
            chance = self.draw.random()
            if chance < 0.15:
                batch.deletes.append(RowDelete(task_id, revs.pop(task_id)))
                if chance < 0.1:
                    batch.tombstones.append(Tombstone(task_id, p, b"t", self.draw.randrange(50)))
                    tombstones.add(task_id)
            elif chance < 0.4:
                revs[task_id] += 1
                body = self.draw.randbytes(self.draw.randrange(90))
                batch.rows.append(
                    change(task_id, revs[task_id], self.draw.randrange(6), partition=p, body=body, run_at_us=100)
                )
        forgotten = {task_id for task_id in sorted(tombstones) if self.draw.random() < 0.1}
        batch.forgets += sorted(forgotten - {tombstone.id for tombstone in batch.tombstones})
        tombstones -= set(batch.forgets)
        for _ in range(self.draw.randrange(4)):
            self.made += 1
            batch.rows.append(self._birth(f"b{self.made}", p))
            revs[f"b{self.made}"] = 1

    def _apply(self, batch: Batch, p: int) -> None:
        self.applied[p] = self.draw.randint(self.applied[p], self.last[p])
        batch.applied[p] = self.applied[p]
        if self.draw.random() < 0.3:
            batch.trim[p] = self.draw.randint(0, self.last[p])
            batch.horizons[p] = self.draw.randrange(100)


@pytest.mark.parametrize("seed", range(8))
@deferred
async def test_both_implementations_tell_the_same_story(seed: int, tmp_path: Path) -> None:
    """Cuts, snapshots, drops and rows in any order, several batches in one transaction, crashes between them."""
    draw = random.Random(seed)
    story = Story(draw)
    memory, sqlite = MemoryKind(), SqliteKind(tmp_path / "data")
    stores: list[Store] = [memory.open(), sqlite.open()]
    asks: list[Callable[[Store], Deferred[Any]]] = [
        lambda store: store.partitions(),
        lambda store: store.page(RowQuery(limit=1000)),
        lambda store: store.page(RowQuery(sort="run_at", descending=True, limit=5, partitions=frozenset([0, 2]))),
        lambda store: store.counts(),
        lambda store: store.open_rows(None, 1000, [1, 2]),
        lambda store: store.tombstones_before(60, 1000),
        lambda store: store.oldest_pending([0]),
        *(lambda store, p=p: store.digest(p) for p in range(3)),
        *(lambda store, p=p: store.read_log(p, max(story.last[p] - 4, 1), bytes_max=600) for p in range(3)),
    ]
    for step in range(90):
        batch = story.batch()
        committed = gatherResults([store.commit(batch) for store in stores])
        if draw.random() < 0.4:
            continue
        await committed
        if step % 30 == 29:
            stores = [await memory.crash(), await sqlite.crash()]
            story.crash()
        elif draw.random() < 0.05:
            stores = [await memory.reopen(), await sqlite.reopen()]
            story.crash()
        for ask in asks:
            assert await ask(stores[0]) == await ask(stores[1])
        assert stores[0].sizes() == stores[1].sizes()
        assert {p: (size.rows, size.tombstones) for p, size in stores[1].sizes().items()} == {
            p: (len(story.revs[p]), len(story.tombstones[p])) for p in range(3) if story.revs[p] or story.tombstones[p]
        }
        assert stores[0].meta() == stores[1].meta()
    assert memory.broken == sqlite.broken == []
    await sqlite.close()
