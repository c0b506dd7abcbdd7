"""ReadIndex for partitions: ping rounds confirm that this node is still their primary (section 7).

A round is begun each ``ROUND_S``, and whenever a strong read asks. All reads of one turn share a
round; those that come while a round is in flight wait together for the next one."""

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

ROUND_S = 0.5
"""Between two rounds; 1/4 of ``replica_lag_max_ms``, so that one lost round removes no copy."""
LOOK_S = 0.25
"""Between two looks at all partitions: at who is silent, and who may be served."""
ROUND_WAIT_MS = 20
"""A round that is not answered within this time does not hold up the next one."""
READ_WAIT_MS = 2_000
"""A strong read that is not confirmed within this time fails."""

WORDS: Codec[Ping | Pong] = Codec(Ping | Pong)


class _Read:
    __slots__ = ("deferred", "partition", "since_ms")

    def __init__(self, partition: int, since_ms: int) -> None:
        self.partition = partition
        self.since_ms = since_ms
        self.deferred: Deferred[None] = Deferred()


class ReadIndex:
    """Confirms leadership by ping rounds, answers the pings of others, and serves strong reads.

    :param send: send one body to one peer over the lane of consensus, where no megabyte of entries
        holds it up (F36)."""

    def __init__(self, driver: ReplicaDriver, clock: Clock, send: Callable[[NodeId, bytes], bool]) -> None:
        self._driver = driver
        self._clock = clock
        self._send = send
        self._rounds = PingRounds()
        self._reads: dict[int, list[_Read]] = {}
        """Reads by the number of the first round that can confirm them."""
        self._begun_ms = 0
        self._begin_timer = clock.timer(self.begin)

    # --- rounds ---
    def begin(self) -> None:
        """Ping nodes with replicas of what is led here; idle ones too, each ``ROUND_S`` (F45)."""
        leading = self._driver.leading()
        led = [(core.partition, epoch) for core in leading if (epoch := core.epoch) is not None]
        if not led:
            return
        self._begun_ms = self._clock.now_ms()
        body = WORDS.encode(self._rounds.begin(self._begun_ms, led))
        for node in sorted({node for core in leading for node in core.streams}):
            self._send(node, body)

    def received(self, source: NodeId, body: bytes) -> None:
        """Answer a ping, or count an answer to one; raises ``MalformedBox`` if it is neither."""
        message = WORDS.decode(body)
        if isinstance(message, Ping):
            self._answer(source, message)
            return
        if any(partition >= len(self._driver.cores) for partition, _ in message.refused):
            raise MalformedBox("a partition that there is not")
        if message.refused:
            self._driver.refused(source, message.refused)
        answered = self._rounds.answered(message)
        if answered is not None:
            self._driver.confirmed(source, answered.led, answered.number, answered.sent_ms)
            self._serve()

    def _answer(self, source: NodeId, ping: Ping) -> None:
        cores = self._driver.cores
        refused = []
        for partition, epoch in ping.led:
            if 0 <= partition < len(cores):
                promised = cores[partition].refuses(epoch)
                if promised is not None:
                    refused.append((partition, promised))
        self._send(source, WORDS.encode(Pong(ping.number, tuple(refused))))

    # --- strong reads ---
    def when_confirmed(self, partition: int) -> Deferred[None] | None:
        """Fire once every member of the partition's effective set has answered a round begun from
        now on.

        None: nothing to wait for, as this node is the only member.

        :raises NotConfirmed: (through the Deferred) not within ``READ_WAIT_MS``, or this node is
            primary no more."""
        core = self._driver.cores[partition]
        needed = self._rounds.number + 1
        if core.may_read(needed):
            return None
        read = _Read(partition, self._clock.now_ms())
        self._reads.setdefault(needed, []).append(read)
        self.begin_soon()
        return read.deferred

    def begin_soon(self) -> None:
        """Begin a round next turn, or once the running one is answered or ``ROUND_WAIT_MS`` old."""
        if self._begin_timer.is_pending:
            return
        is_in_flight = any(number <= self._rounds.number for number in self._reads)
        wait_ms = max(0, self._begun_ms + ROUND_WAIT_MS - self._clock.now_ms()) if is_in_flight else 0
        self._begin_timer.start(wait_ms / 1000)

    def _serve(self) -> None:
        """Fire the reads whose round is confirmed by now."""
        cores = self._driver.cores
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
            # The round in flight is answered: the next need not wait any longer.
            self._begin_timer.restart()
        for read in ready:
            if not read.deferred.called:
                read.deferred.callback(None)

    def give_up_overdue(self) -> None:
        """Fail reads older than ``READ_WAIT_MS``; called each ``ROUND_S``."""
        before_ms = self._clock.now_ms() - READ_WAIT_MS
        self._give_up(lambda read: read.since_ms < before_ms)

    def stepped_down(self, partition: int) -> None:
        """Fail the partition's reads: this node leads it no more."""
        self._give_up(lambda read: read.partition == partition)

    def stop(self) -> None:
        self._give_up(lambda read: True)
        self._begin_timer.cancel()

    def _give_up(self, is_lost: Callable[[_Read], bool]) -> None:
        for number, waiting in list(self._reads.items()):
            lost = [read for read in waiting if is_lost(read)]
            if not lost:
                continue
            kept = [read for read in waiting if read not in lost]
            if kept:
                self._reads[number] = kept
            else:
                del self._reads[number]
            for read in lost:
                if not read.deferred.called:
                    read.deferred.errback(
                        NotConfirmed("the other copies did not confirm that this is the newest state")
                    )
