"""A cluster of real processes under load, for one scenario: what the scenario may ask and do, and how it comes to its end."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.chaos.executions import LEDGER
from tests.chaos.faults import Ballast, FakedClock, mount_disk, unmount
from tests.chaos.footprint import Footprint, Size, size_of
from tests.chaos.scenario import KINDS, Scenario
from tests.cluster.clusters import Cluster
from tests.cluster.replicated import partitions_by_primary, wait_copies
from tests.support.harness import Nodes, until
from tests.support.history import Call, History
from tests.support.load import Load
from tests.support.proxy import Links

HANDLERS = "tests.chaos.handlers"
HEALED_S = 90.0
"""Until all is whole again, on a machine that does other things too."""
ENDED_S = 120.0
"""Until every accepted task has ended: leases of lost nodes (15 s) and their retries are part of it."""
WARM_S = 1.5
"""Load before the first harm, and after healing."""


class ChaosCluster(Cluster):
    """Each node has its own ledger, and its own disk and clock where the scenario wants them."""

    def __init__(self, nodes: Nodes, names: Iterable[str], one: Scenario, seed: str) -> None:
        self.clocks: dict[str, FakedClock] = {}
        self._one = one
        self._mounted: list[Path] = []
        options = ("--handlers", HANDLERS, "--partitions", str(one.partitions), *one.options)
        super().__init__(nodes, names, options=options, links=one.links)

    def ledger(self, name: str) -> Path:
        return self.nodes.directory / f"ledger-{name}"

    def environment(self, name: str) -> dict[str, str]:
        environment = super().environment(name) | {LEDGER: str(self.ledger(name))}
        if self._one.has_faked_clocks:
            if name not in self.clocks:
                self.clocks[name] = FakedClock(self.nodes.directory / f"clock-{name}")
            environment |= self.clocks[name].environment
        return environment

    def start(self, *names: str, extra: Iterable[str] = ()) -> None:
        for name in names or tuple(self.ports):
            if self._one.disk_mib and self.data(name) not in self._mounted:
                mount_disk(self.data(name), self._one.disk_mib)
                self._mounted.append(self.data(name))
            super().start(name, extra=list(extra))

    def close(self) -> None:
        super().close()
        for directory in self._mounted:
            with contextlib.suppress(Exception):  # what went wrong before says more
                unmount(directory)
        self._mounted.clear()


class Stage:
    """:param directory: for all that the scenario leaves; empty. :param seed: of what is drawn at random."""

    def __init__(self, one: Scenario, directory: Path, seed: str = "1") -> None:
        self.one = one
        self.directory = directory
        self.rolls = random.Random(f"{one.name} {seed}")
        self.names = tuple(f"node-{number}" for number in range(1, one.nodes + 1))
        self.nodes = Nodes(directory)
        self.cluster = ChaosCluster(self.nodes, self.names, one, seed)
        self.history = History()
        settings: dict[str, Any] = {"kinds": KINDS, "seed": f"{one.name} {seed}"} | one.load
        self.load = Load(self.cluster.ports, history=self.history, **settings)
        self.footprint = Footprint(self._pids)
        self.sizes_before: dict[str, Size] = {}
        self._has_ended = False

    def _pids(self) -> Mapping[str, int]:
        return {name: process.pid for name, process in list(self.cluster.processes.items()) if process.is_running}

    # --- begin and end ---
    def open(self) -> None:
        """Whole and settled, with load for a while."""
        self.cluster.start(self.names[0])
        self.cluster[self.names[0]].wait_ready(HEALED_S)
        self.cluster.start(*self.names[1:])
        self.settle()
        self.sizes_before = {name: size for name, pid in self._pids().items() if (size := size_of(pid)) is not None}
        self.footprint.start()
        self.load.start()
        time.sleep(WARM_S)

    def end_load(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self.load.end()

    def close(self) -> None:
        if self.footprint.is_alive():
            self.footprint.end()
        try:
            self.end_load()
        finally:
            self.cluster.close()
            self.nodes.close()

    # --- whole again ---
    def heal(self) -> None:
        """Whoever is down starts again; all are members, every partition has all its copies in sync."""
        for name in tuple(self.cluster.processes):
            if not self.cluster[name].is_running:
                self.cluster.start(name)
        self.whole()

    def whole(self) -> None:
        """How many vote does not matter: whoever replaces a voter has to show half a minute of health first."""
        everybody = dict.fromkeys(self.cluster.running, "active")
        self.cluster.wait(lambda view: view.statuses == everybody, deadline_s=HEALED_S, what="all are active members")
        self.wait_copies()
        self.cluster.wait_ready(HEALED_S)

    def wait_copies(self, count: int = 0) -> None:
        wanted = count or min(3, len(self.cluster.running))
        wait_copies(self.cluster, wanted, deadline_s=HEALED_S, partition_count=self.one.partitions)

    def settle(self) -> None:
        """Whole, and nothing is about to be handed over: each node leads its share."""
        self.whole()
        share = -(-self.one.partitions // len(self.cluster.running))

        def even() -> bool:
            shares = Counter(shown["primary"] for shown in partitions_by_primary(self.cluster).values())
            return shares.total() == self.one.partitions and max(shares.values()) <= share

        until(even, deadline_s=HEALED_S, what=f"at most {share} primaries on each of {self.cluster.running}")
        self.wait_copies()

    # --- who is who ---
    @property
    def links(self) -> Links:
        assert self.cluster.links is not None, f"{self.one.name} must ask for links"
        return self.cluster.links

    def leader(self) -> str:
        return self.cluster.leader()

    def follower(self) -> str:
        """One that does not lead the Raft group; it leads its share of the partitions."""
        leader = self.leader()
        return self.rolls.choice([name for name in self.cluster.running if name != leader])

    def primary(self, partition: int = 0) -> str:
        name = until(
            lambda: self.cluster.partitions()[partition]["primary"], what=f"a primary of partition {partition}"
        )
        assert isinstance(name, str)
        return name

    def replica(self, partition: int = 0) -> str:
        """One that does not lead the partition, nor the Raft group where that can be."""
        primary, leader = self.primary(partition), self.leader()
        others = [name for name in self.cluster.running if name != primary]
        return next((name for name in others if name != leader), others[0])

    def others(self, *names: str) -> list[str]:
        return [name for name in self.cluster.running if name not in names]

    def ballast(self, name: str) -> Ballast:
        return Ballast(self.cluster.data(name))

    def adopt(self, task_id: str, *, acknowledged: bool = False) -> None:
        """The scenario's own submit counts like one of the load."""
        now_s = time.monotonic()
        call = Call("submit", task_id, now_s, "scenario")
        if acknowledged:
            call.ended_s, call.outcome = now_s, "ok"
        self.history.add(call)

    # --- what is waited for ---
    def acknowledged_since(self, since_s: float) -> int:
        """Submits that were begun and acknowledged since then."""
        return sum(
            call.kind == "submit" and call.outcome == "ok" and call.began_s >= since_s
            for call in list(self.history.calls)
        )

    def wait_acknowledged(self, count: int = 5, deadline_s: float = 45.0) -> float:
        """Until so many submits that begin from now on are acknowledged: the cluster goes on as it is. Returns seconds."""
        since_s = time.monotonic()
        until(
            lambda: self.acknowledged_since(since_s) >= count,
            deadline_s=deadline_s,
            what=f"{count} submits are acknowledged",
        )
        return time.monotonic() - since_s

    def wait_exit(self, name: str, *codes: int, deadline_s: float = 60.0) -> int:
        """Until the node ends by itself, with one of these codes."""
        code = self.cluster[name].wait(deadline_s)
        assert code in codes, f"{name} ended with {code}, not one of {codes}:\n{self.cluster[name].log_tail()}"
        return code

    def come_back_as_new(self, name: str, *extra: str) -> None:
        """docs/howto/replace-a-disk.md: the old member is removed, and the node that waits under its name is let in."""
        via = self.others(name)[0]
        self.cluster.wait_gone(name, deadline_s=HEALED_S)
        self.cluster.start(name, extra=["--join", f"localhost:{self.cluster.ports[via]}", *extra])

        def removed() -> bool:
            return self.cluster[via].post(f"/cluster/remove?node={name}").status == 202

        until(removed, deadline_s=HEALED_S, what=f"the old {name} is removed")
        everybody = dict.fromkeys(self.cluster.running, "active")
        self.cluster.wait(
            lambda view: view.statuses == everybody, deadline_s=HEALED_S, what=f"the new {name} is let in"
        )
