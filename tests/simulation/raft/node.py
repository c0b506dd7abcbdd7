"""One simulated node: what its disk holds, and a driver that follows the contract of ``Ready`` as the real one does.

The order is the real one's: send ``messages``; write; when that is durable, ``persisted`` and ``messages_after_persist``; apply.
Several writes may be on their way. A crash may come at every step in between.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support.world import Disk, VirtualTime
from tq_node.raft.core import RaftCore
from tq_node.raft.messages import Entry, HardState, Message, Persisted, ReadState, Ready, Snapshot
from tq_node.raft.settings import RaftSettings
from tq_node.types import NodeId

if TYPE_CHECKING:
    from tests.simulation.raft.checkers import Checkers

TICK_US = 100_000


class Crashed(Exception):
    """The node's process has ended, in the middle of whatever it did."""


class Durable:
    """What the node's store holds. ``store`` is one transaction."""

    def __init__(self, hard_state: HardState, snapshot: Snapshot) -> None:
        self.hard_state = hard_state
        self.snapshot = snapshot
        self.entries: list[Entry] = []

    @property
    def last_index(self) -> int:
        return self.entries[-1].log_index if self.entries else self.snapshot.log_index

    def term(self, log_index: int) -> int | None:
        if self.entries:
            position = log_index - self.entries[0].log_index
            if 0 <= position < len(self.entries):
                return self.entries[position].term
        return self.snapshot.term if log_index == self.snapshot.log_index else None

    def store(self, write: Ready | Snapshot | int) -> None:
        if isinstance(write, Snapshot):  # one that this node took itself
            self.snapshot = write
        elif isinstance(write, int):  # the log may be cut below this index
            self.entries = [entry for entry in self.entries if entry.log_index >= write]
        else:
            if write.hard_state is not None:
                self.hard_state = write.hard_state
            if write.snapshot is not None:
                self.snapshot = write.snapshot
                self.entries = []
            if write.entries:
                first = write.entries[0].log_index
                while self.entries and self.entries[-1].log_index >= first:
                    self.entries.pop()
                self.entries.extend(write.entries)


class StateMachine(msgspec.Struct):
    """A chain of checksums over what was applied: equal at equal index on all nodes, or the run fails."""

    index: int = 0
    digest: int = 0

    def apply(self, entry: Entry) -> None:
        assert entry.log_index == self.index + 1, "applied out of order"
        self.index = entry.log_index
        self.digest = zlib.crc32(entry.data, self.digest ^ entry.term)


class RaftNode:
    """:param send: the network. :param rule_breaks: names of driver rules to break, for the mutation table."""

    def __init__(
        self,
        me: NodeId,
        durable: Durable,
        *,
        time: VirtualTime,
        disk_random: random.Random,
        timing_random: random.Random,
        settings: RaftSettings,
        send: Callable[[Message], None],
        checkers: Checkers,
        compact_every: int,
        keep_behind: int,
        rule_breaks: frozenset[str],
    ) -> None:
        self.me = me
        self.durable = durable
        self.disk: Disk[Any] = Disk(time, disk_random, durable.store)
        self.machine = StateMachine()
        self.is_up = False
        self.runs = 0
        self.crash_countdown = 0
        """Steps until it crashes; 0: not armed."""
        self.paused_until_us = 0
        self.served_reads = 0
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._time = time
        self._timing = timing_random
        self._settings = settings
        self._send = send
        self._checkers = checkers
        self._compact_every = compact_every
        self._keep_behind = keep_behind
        self._breaks = rule_breaks
        self._tick_us = int(TICK_US * timing_random.uniform(0.99, 1.01))
        self._woken_for: int | None = None
        self._snapshot_under_way = False
        self._reads: dict[int, int] = {}
        self._served: deque[tuple[int, int]] = deque()
        self.core = self._make_core()

    # --- the process ---
    def _make_core(self) -> RaftCore:
        stored = self.durable
        return RaftCore(
            self.me,
            Persisted(stored.hard_state, stored.snapshot, tuple(stored.entries)),
            seed=self._timing.getrandbits(64),
            settings=self._settings,
        )

    def start(self) -> None:
        assert not self.is_up
        self.is_up = True
        self.runs += 1
        self.core = self._make_core()
        self._install(self.durable.snapshot)
        self._woken_for = None
        self._snapshot_under_way = False
        self.paused_until_us = 0
        self._reads.clear()
        self._served.clear()
        self._checkers.started(self)
        self._time.after(int(self._timing.random() * self._tick_us), self._tick, self.runs)

    def crash(self) -> None:
        self.is_up = False
        self.crash_countdown = 0
        self._inbox.clear()
        self.disk.crash()

    def _substep(self) -> None:
        """A place where the process may die."""
        if self.crash_countdown:
            self.crash_countdown -= 1
            if not self.crash_countdown:
                raise Crashed

    def event(self, action: Callable[..., object], *arguments: Any) -> None:
        """Let one event enter the core, do what it asks for, and have everything checked."""
        if not self.is_up:
            return
        if self.paused_until_us > self._time.now_us:
            self._inbox.append((action, arguments))
            return
        try:
            action(*arguments)
            self._checkers.after_event(self)
            self.pump()
        except Crashed:
            self.crash()
            self._checkers.crashed(self)
            return
        self._wake_in_time()

    def pause(self, duration_us: int) -> None:
        """SIGSTOP: nothing runs, sockets fill."""
        self.paused_until_us = self._time.now_us + duration_us
        self._time.at(self.paused_until_us, self._resume, self.runs)

    def _resume(self, run: int) -> None:
        if run != self.runs or self.paused_until_us > self._time.now_us:
            return
        waiting, self._inbox = self._inbox, deque()
        if self._timing.random() < 0.5:
            self._now_and_event(self.core.tick)
        for action, arguments in waiting:
            self.event(action, *arguments)

    @property
    def now_ms(self) -> int:
        return self._time.now_us // 1000

    def _now_and_event(self, action: Callable[[int], None]) -> None:
        self.event(action, self.now_ms)

    def _tick(self, run: int) -> None:
        if run != self.runs or not self.is_up:
            return
        self._time.after(self._tick_us, self._tick, run)
        if self.paused_until_us <= self._time.now_us:  # a paused process misses its ticks
            self.event(self.core.tick, self.now_ms)

    def _wake_in_time(self) -> None:
        due = self.core.wake_at_ms
        if due is not None and due != self._woken_for:
            self._woken_for = due
            self._time.at(due * 1000, self._wake, self.runs)

    def _wake(self, run: int) -> None:
        if run == self.runs:
            self.event(self.core.wake, self.now_ms)

    # --- the Ready loop ---
    def receive(self, message: Message) -> None:
        self.event(self._step, message)

    def _step(self, message: Message) -> None:
        self.core.step(message, self.now_ms)

    def pump(self) -> None:
        while self.core.has_ready:
            ready = self.core.ready()
            self._checkers.saw_ready(self, ready)
            self._substep()
            for message in ready.messages:
                self._out(message)
            self._persist(ready)
            self._substep()
            for entry in ready.committed:
                self._apply(entry)
            for read_state in ready.read_states:
                self._note_read(read_state)
            self._serve_reads()

    def _persist(self, ready: Ready) -> None:
        if "send before persist" in self._breaks:
            for message in ready.messages_after_persist:
                self._out(message)
        if ready.must_persist or not self.disk.is_idle:
            if "cut before the snapshot is durable" in self._breaks and ready.snapshot is not None:
                self.durable.entries = []
            self.disk.write(ready, lambda: self.event(self._persisted, ready))
        else:
            self._persisted(ready)

    def _persisted(self, ready: Ready) -> None:
        self._substep()
        if ready.must_persist:
            self.core.persisted(ready.number)
        if "send before persist" not in self._breaks:
            for message in ready.messages_after_persist:
                self._out(message)
        if ready.snapshot is not None:
            self._substep()
            self._install(ready.snapshot)

    def _out(self, message: Message) -> None:
        self._substep()
        self._checkers.sent(self, message)
        self._send(message)

    # --- the state machine ---
    def _install(self, snapshot: Snapshot) -> None:
        index, digest = msgspec.msgpack.decode(snapshot.data)[:2] if snapshot.data else (snapshot.log_index, 0)
        assert index == snapshot.log_index, "a snapshot holds another index than it says"
        self.machine = StateMachine(index, digest)
        self._checkers.applied(self)

    def _apply(self, entry: Entry) -> None:
        self._substep()
        self.machine.apply(entry)
        self._checkers.applied(self, entry)
        if (
            self.machine.index - self.core.log.snapshot.log_index >= self._compact_every
            and not self._snapshot_under_way
        ):
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        padding = b"." * (self.machine.digest % 400)
        data = msgspec.msgpack.encode((self.machine.index, self.machine.digest, padding))
        snapshot = self.core.snapshot_at(self.machine.index, data)
        if snapshot is not None:
            self._snapshot_under_way = True
            self.disk.write(snapshot, lambda: self.event(self._compact, snapshot))

    def _compact(self, snapshot: Snapshot) -> None:
        self._snapshot_under_way = False
        first_kept = self.core.compact(snapshot, snapshot.log_index - self._keep_behind + 1)
        self.disk.write(first_kept, lambda: None)

    # --- reads ---
    def read(self, floor: int) -> None:
        """Ask for a read that must not be older than ``floor``."""
        self._reads[self.core.read_index()] = floor

    def _note_read(self, read_state: ReadState) -> None:
        floor = self._reads.pop(read_state.read_id, None)
        if floor is not None and read_state.log_index is not None:
            self._checkers.read_confirmed(self, floor, read_state.log_index)
            self._served.append((floor, read_state.log_index))

    def _serve_reads(self) -> None:
        while self._served and self._served[0][1] <= self.machine.index:
            self._checkers.read_served(self, self._served.popleft()[0])
            self.served_reads += 1
