"""Ping rounds: who stands behind this node's partitions, every quarter of a second and whenever a strong read asks (section 7).

All reads of one turn share a round, and while one is on its way those that come wait together for the next.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from tq_node.errors import NotConfirmed
from tq_node.partition.leases import PingRounds
from tq_node.partition.messages import Ping, Pong
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.driver import ReplicaDriver
from tq_node.types import NodeId
from tq_node.wire.codec import Codec
from tq_node.wire.errors import MalformedBox

ROUND_S = 0.25
ROUND_WAIT_MS = 20
"""A round that is not answered within this does not hold up the next one."""
READ_WAIT_MS = 2_000
"""After this a strong read hears that it could not be confirmed."""

WORDS: Codec[Ping | Pong] = Codec(Ping | Pong)


class _Read:
    __slots__ = ("deferred", "partition", "since_ms")

    def __init__(self, partition: int, since_ms: int) -> None:
        self.partition = partition
        self.since_ms = since_ms
        self.deferred: Deferred[None] = Deferred()


class ReadIndex:
    """:param send: one body to one peer, over the lane of consensus: a megabyte of entries must not hold it up (F36)."""

    def __init__(
        self,
        copies: ReplicaDriver,
        clock: Clock,
        send: Callable[[NodeId, bytes], bool],
    ) -> None:
        self._copies = copies
        self._clock = clock
        self._send = send
        self._rounds = PingRounds()
        self._reads: dict[int, list[_Read]] = {}
        """By the number of the round that each needs."""
        self._begun_ms = 0
        self._begin_timer = clock.timer(self.begin)

    # --- rounds ---
    def begin(self) -> None:
        """Ask everybody. Also called every ``ROUND_S``: idle partitions need it too (F45)."""
        leading = [core for core in self._copies.cores if core.is_leading]
        led = [(core.partition, epoch) for core in leading if (epoch := core.epoch) is not None]
        if not led:
            return
        self._begun_ms = self._clock.now_ms()
        body = WORDS.encode(self._rounds.begin(self._begun_ms, led))
        for node in sorted({node for core in leading for node in core.streams}):
            self._send(node, body)

    def heard(self, source: NodeId, body: bytes) -> None:
        """:raises MalformedBox: it is neither."""
        word = WORDS.decode(body)
        if isinstance(word, Ping):
            self._answer(source, word)
            return
        if any(partition >= len(self._copies.cores) for partition, _ in word.refused):
            raise MalformedBox("a partition that there is not")
        if word.refused:
            self._copies.refused(source, word.refused)
        answered = self._rounds.answered(word)
        if answered is not None:
            self._copies.confirmed(source, answered.led, answered.number, answered.sent_ms)
            self._serve()

    def _answer(self, source: NodeId, ping: Ping) -> None:
        cores = self._copies.cores
        refused = []
        for partition, epoch in ping.led:
            if 0 <= partition < len(cores):
                promised = cores[partition].refuses(epoch)
                if promised is not None:
                    refused.append((partition, promised))
        self._send(source, WORDS.encode(Pong(ping.number, tuple(refused))))

    # --- strong reads ---
    def when_confirmed(self, partition: int) -> Deferred[None] | None:
        """Fires once every member of the partition's effective set has answered a round begun from now on; None: it has
        nobody else.

        :raises NotConfirmed: (through the Deferred) not within ``READ_WAIT_MS``, or this node is primary no more.
        """
        core = self._copies.cores[partition]
        needed = self._rounds.number + 1
        if core.may_read(needed):
            return None
        read = _Read(partition, self._clock.now_ms())
        self._reads.setdefault(needed, []).append(read)
        self.begin_soon()
        return read.deferred

    def begin_soon(self) -> None:
        """In the next turn, or once the round that is on its way has had its time."""
        if self._begin_timer.is_pending:
            return
        is_under_way = any(number <= self._rounds.number for number in self._reads)
        wait_ms = max(0, self._begun_ms + ROUND_WAIT_MS - self._clock.now_ms()) if is_under_way else 0
        self._begin_timer.start(wait_ms / 1000)

    def _serve(self) -> None:
        """Answer whoever waits for a round that is confirmed by now."""
        cores = self._copies.cores
        ready: list[_Read] = []
        for number in sorted(self._reads):
            if number > self._rounds.number:
                break
            waiting = self._reads[number]
            left = [read for read in waiting if not cores[read.partition].may_read(number)]
            if len(left) < len(waiting):
                ready += [read for read in waiting if read not in left]
            if left:
                self._reads[number] = left
            else:
                del self._reads[number]
        if self._begin_timer.is_pending and not any(number <= self._rounds.number for number in self._reads):
            # The round that was on its way is over: the next need not wait any longer.
            self._begin_timer.restart()
        for read in ready:
            if not read.deferred.called:
                read.deferred.callback(None)

    def give_up_overdue(self) -> None:
        """Called each quarter of a second."""
        before_ms = self._clock.now_ms() - READ_WAIT_MS
        self._give_up(lambda read: read.since_ms < before_ms)

    def stepped_down(self, partition: int) -> None:
        """This node is primary of it no more."""
        self._give_up(lambda read: read.partition == partition)

    def stop(self) -> None:
        self._give_up(lambda read: True)
        self._begin_timer.cancel()

    def _give_up(self, is_over: Callable[[_Read], bool]) -> None:
        for number, waiting in list(self._reads.items()):
            over = [read for read in waiting if is_over(read)]
            if not over:
                continue
            left = [read for read in waiting if read not in over]
            if left:
                self._reads[number] = left
            else:
                del self._reads[number]
            for read in over:
                if not read.deferred.called:
                    read.deferred.errback(
                        NotConfirmed("the other copies did not confirm that this is the newest state")
                    )
