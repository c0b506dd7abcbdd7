"""What the worlds of raft and of replication share: a network and disks that a nemesis breaks and heals."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from tests.simulation.families import CommonFaults
from tests.support.world import MS_US, SECOND_US, Network, Trace, VirtualTime, rng
from tq_node.types import NodeId

Link = tuple[str, str]


class CoreFaults(CommonFaults, frozen=True):
    """Of messages: the odds of each."""

    loss: float = 0.0
    doubling: float = 0.0
    overtaking: float = 0.0
    evidence: bool = True
    """Do peers notice a death by R5a?"""


class Ranges(msgspec.Struct, frozen=True, kw_only=True):
    """How long, at least and at most."""

    cut_ms: tuple[int, int]
    slow_link_ms: tuple[int, int]
    pause_ms: tuple[int, int]
    slow_disk_ms: tuple[int, ...]
    """Drawn of these: the most that a write takes."""
    stalled_disk_s: tuple[int, int]


class Breakable(Protocol):
    @property
    def me(self) -> NodeId: ...

    @property
    def is_up(self) -> bool: ...

    @property
    def disk(self) -> Any: ...

    def pause(self, for_us: int, /) -> None: ...


class CoreWorld(ABC):
    """Each fault takes the node that was drawn for it, and draws the rest of ``nemesis``."""

    RANGES: Ranges

    def __init__(self, seed: int, faults: CoreFaults, trace_lines: int) -> None:
        self.seed = seed
        self.nemesis: random.Random = rng(seed, "nemesis")
        self.workload: random.Random = rng(seed, "workload")
        self.time = VirtualTime()
        self.trace = Trace(keep=trace_lines)
        self.network = Network(self.time, rng(seed, "network"), self._deliver)
        self.network.loss = faults.loss
        self.network.doubling = faults.doubling
        self.network.overtaking = faults.overtaking
        self._every_us = faults.every_us
        self._faults_on = self._work_on = True

    @abstractmethod
    def _deliver(self, target: str, message: Any) -> None:
        """A message arrives."""

    @abstractmethod
    def _ends(self) -> Sequence[NodeId]:
        """The nodes whose links may break."""

    def run(self, virtual_us: int) -> None:
        """The checkers look after every event."""
        self.time.run_until(self.time.now_us + virtual_us)

    def _soon(self) -> int:
        return int(self.nemesis.expovariate(1) * self._every_us)

    # --- links ---
    def _heal_later(self, links: Sequence[Link]) -> None:
        for link in links:
            self.network.cut[link] = True
        low, high = self.RANGES.cut_ms
        self.time.after(self.nemesis.randint(low * MS_US, high * MS_US), self._heal_links, links)

    def _heal_links(self, links: Sequence[Link]) -> None:
        for link in links:
            self.network.cut.pop(link, None)

    def _do_cut_one_way(self, node: Breakable) -> None:
        self._heal_later([(node.me, self.nemesis.choice(self._ends()))])

    def _do_isolate(self, node: Breakable) -> None:
        """Both ways, or only what it says, or only what it hears."""
        kind = self.nemesis.randint(0, 2)
        out = [(node.me, other) for other in self._ends() if other != node.me]
        self._heal_later([link for link in out if kind != 1] + [(b, a) for a, b in out if kind != 2])

    def _do_split(self, node: Breakable) -> None:
        names = self._ends()
        side = {name: self.nemesis.random() < 0.5 for name in names}
        self._heal_later([(a, b) for a in names for b in names if side[a] != side[b]])

    def _do_slow_link(self, node: Breakable) -> None:
        other = self.nemesis.choice(self._ends())
        self.network.slow[node.me, other] = self.nemesis.randint(*self.RANGES.slow_link_ms) * MS_US

    # --- processes and disks ---
    def _do_pause(self, node: Breakable) -> None:
        if node.is_up:
            node.pause(self.nemesis.randint(*self.RANGES.pause_ms) * MS_US)

    def _do_slow_disk(self, node: Breakable) -> None:
        node.disk.delay_us = (1_000, self.nemesis.choice(self.RANGES.slow_disk_ms) * MS_US)

    def _do_stalled_disk(self, node: Breakable) -> None:
        low, high = self.RANGES.stalled_disk_s
        node.disk.delay_us = (low * SECOND_US, high * SECOND_US)
        self.time.after(3 * SECOND_US, self._mend_disk, node)

    def _mend_disk(self, node: Breakable) -> None:
        node.disk.delay_us = (200, 3_000)
