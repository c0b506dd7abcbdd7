"""The leader's view of one follower, with its own small state machine.

::

              accepted                          the log no longer reaches back
    PROBE ---------------> REPLICATE    PROBE, REPLICATE ----------------------> SNAPSHOT
    PROBE <--------------- REPLICATE    PROBE <--------------------------------- SNAPSHOT
              rejected                          the follower has what it says

PROBE: one append at a time, until the point of agreement is found. REPLICATE: appends follow one
another without waiting, within a window. SNAPSHOT: no appends; one chunk at a time."""

from __future__ import annotations

import enum
from collections import deque

from tq_node.raft.messages import Snapshot
from tq_node.raft.settings import RaftSettings


class Mode(enum.IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Progress:
    """``match_index``: durable there and equal to ours; decreases only where the follower says that
    it has lost it. ``next_index``: what is sent next, always above it."""

    __slots__ = (
        "acked_round",
        "commit_sent",
        "inflight",
        "inflight_bytes",
        "is_active",
        "match_index",
        "mode",
        "next_index",
        "probe_sent",
        "round_end",
        "round_is_fast",
        "round_ticks",
        "silent_ticks",
        "snapshot",
        "snapshot_offset",
        "snapshot_stalled",
    )

    def __init__(self, last_index: int, *, match_index: int = 0) -> None:
        self.match_index = match_index
        self.next_index = last_index + 1
        self.mode = Mode.PROBE
        self.silent_ticks = 0
        self.is_active = False
        """Whether the node answered in this term, and within the last election timeout."""
        self.probe_sent = False
        self.inflight: deque[tuple[int, int]] = deque()
        """(last log_index, bytes) of each append that is not yet answered."""
        self.inflight_bytes = 0
        self.commit_sent = 0
        self.acked_round = 0
        self.snapshot: Snapshot | None = None
        self.snapshot_offset = 0
        self.snapshot_stalled = False
        self.round_end = last_index
        self.round_ticks = 0
        self.round_is_fast = False

    # --- flow ---
    def is_paused(self, settings: RaftSettings) -> bool:
        """Whether nothing may be sent now; bounds what is in flight to this follower (10.2.1)."""
        if self.mode is Mode.REPLICATE:
            return self.is_window_full(settings)
        return self.mode is Mode.SNAPSHOT or self.probe_sent

    def is_window_full(self, settings: RaftSettings) -> bool:
        return (
            len(self.inflight) >= settings.inflight_messages_max
            or self.inflight_bytes + settings.message_bytes_max > settings.inflight_bytes_max
        )

    def sent(self, last_index: int, size_bytes: int, commit_index: int) -> None:
        """An append has left; ``size_bytes`` is 0 for an empty one."""
        self.commit_sent = commit_index
        if self.mode is Mode.REPLICATE:
            if size_bytes:
                self.next_index = last_index + 1
                self.inflight.append((last_index, size_bytes))
                self.inflight_bytes += size_bytes
        else:
            self.probe_sent = True

    def accepted(self, log_index: int) -> bool:
        """The follower has all up to ``log_index``. True: more than before, or a probe ends."""
        is_news = log_index > self.match_index
        if is_news:
            self.match_index = log_index
            self.next_index = max(self.next_index, log_index + 1)
        while self.inflight and self.inflight[0][0] <= log_index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        if self.mode is Mode.PROBE and log_index == self.match_index:
            self._become(Mode.REPLICATE)
            return True
        if self.snapshot is not None and self.match_index >= self.snapshot.log_index:
            self._become(Mode.REPLICATE)
        return is_news

    def rejected(self, prev_index: int, next_hint: int) -> bool:
        """The follower lacks this very entry at ``prev_index``. False: the news is old."""
        if self.mode is Mode.SNAPSHOT or prev_index <= self.match_index:
            return False
        if self.mode is Mode.REPLICATE:
            self._become(Mode.PROBE)
            return True
        if prev_index != self.next_index - 1:
            return False
        self.next_index = max(min(prev_index, next_hint), self.match_index + 1)
        self.probe_sent = False
        return True

    def set_back(self, next_hint: int) -> None:
        """The follower lost what it had acknowledged: it counts no more, is sent again (F14)."""
        self.match_index = 0
        self._become(Mode.PROBE)
        self.next_index = next_hint

    def needs_snapshot(self, snapshot: Snapshot) -> None:
        self._become(Mode.SNAPSHOT)
        self.snapshot = snapshot

    def answered_heartbeat(self) -> None:
        """A lost probe is not waited for longer than a heartbeat."""
        self.probe_sent = False

    def _become(self, mode: Mode) -> None:
        self.mode = mode
        self.probe_sent = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.snapshot = None
        self.snapshot_offset = 0
        self.snapshot_stalled = False
        self.next_index = self.match_index + 1

    # --- contact (6.2), and rounds of catching up (4.2.1) ---
    def note_contact(self) -> None:
        self.silent_ticks = 0
        self.is_active = True

    def is_silent(self, settings: RaftSettings) -> bool:
        """Whether it sent nothing for an election timeout; a new leader waits that long."""
        return self.silent_ticks >= settings.election_ticks

    def tick(self, last_index: int, settings: RaftSettings) -> None:
        """A round reaches what was the end of the log when it began; it is fast if that takes less
        than an election timeout."""
        self.silent_ticks += 1
        if self.is_silent(settings):
            self.is_active = False
        if self.match_index < last_index:
            self.round_ticks += 1
            if self.round_ticks > settings.election_ticks:
                self.round_is_fast = False

    def note_round(self, last_index: int, settings: RaftSettings) -> None:
        """After ``match_index`` has moved."""
        if self.match_index >= self.round_end:
            self.round_is_fast = self.round_ticks <= settings.election_ticks
            self.round_end = last_index
            self.round_ticks = 0

    @property
    def is_caught_up(self) -> bool:
        """Whether the follower is one round behind at most, replicating, and in contact."""
        return self.round_is_fast and self.mode is Mode.REPLICATE and self.is_active
