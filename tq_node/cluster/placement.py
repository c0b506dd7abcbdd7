"""Where a task lives (a pure function of its id) and where a partition's copies live (rendezvous
hashing within bounds).

Each partition would like the nodes with the highest weight for it: highest random weight hashing
(Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996). Two things bend that:
no node holds more than its share, rounded up, and what is placed stays where it is unless a bound
forbids it, for every move copies data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain

import mmh3

from tq_node.types import NodeId

_SPREAD = 0x9E3779B1
_U32 = 0xFFFFFFFF


def partition_of(task_id: str, *, seed: int, partition_count: int) -> int:
    """The partition of ``task_id``: murmur3_32 over its UTF-8 bytes, unsigned, modulo the count.
    The function is part of the data format: values are pinned in a test, seed and count are fixed
    when the cluster is born. Source: replication.md, section 9."""
    return mmh3.hash(task_id, seed, signed=False) % partition_count


def first_in(
    head: str, tails: Sequence[str], begin: int, partitions: Collection[int], *, seed: int, partition_count: int
) -> int | None:
    """Which of ``tails``, from ``begin`` on, makes ``head`` an id whose ``partition_of`` is among
    ``partitions``; None: none. The formula again, without a call for each try: tens of them go to
    one id."""
    hash_of = mmh3.hash
    for at in range(begin, len(tails)):
        if hash_of(head + tails[at], seed, False) % partition_count in partitions:
            return at
    return None


def draw_in(
    head: str,
    tails: list[str],
    partitions: Collection[int],
    kept: Sequence[list[str]],
    kept_max: int,
    *,
    seed: int,
    partition_count: int,
) -> tuple[str, int] | None:
    """Take endings off ``tails`` until one makes ``head`` an id of ``partitions``; returns that one
    and its partition, None where no ending is left. What makes an id of another partition is put
    into that one's list in ``kept``, up to ``kept_max``."""
    hash_of = mmh3.hash
    while tails:
        tail = tails.pop()
        partition = hash_of(head + tail, seed, False) % partition_count
        if partition in partitions:
            return tail, partition
        others = kept[partition]
        if len(others) < kept_max:
            others.append(tail)
    return None


def weight(node: NodeId, partition: int, seed: int) -> int:
    """How much a partition likes a node."""
    return mmh3.hash(node, (seed + partition * _SPREAD) & _U32, signed=False)


def share_max(total: int, nodes: int) -> int:
    """The bound: what each may hold at most when all share alike."""
    return -(-total // nodes)


class _Layout:
    """Copies being placed. ``held``: partitions of each keeper; ``cap``: at most so many."""

    def __init__(
        self,
        current: Sequence[Sequence[NodeId]],
        keepers: Collection[NodeId],
        targets: Iterable[NodeId],
        cap: int,
        seed: int,
        pinned: Collection[int],
    ) -> None:
        self.before = current
        self.targets = sorted(targets)
        self.cap = cap
        self.seed = seed
        self.pinned = pinned
        self.copies = [
            list(nodes) if partition in pinned else [node for node in nodes if node in keepers]
            for partition, nodes in enumerate(current)
        ]
        self.held: dict[NodeId, set[int]] = {node: set() for node in sorted(keepers)}
        for partition, nodes in enumerate(self.copies):
            for node in nodes:
                if node in self.held:
                    self.held[node].add(partition)

    def weight(self, node: NodeId, partition: int) -> int:
        return weight(node, partition, self.seed)

    def has_room(self, node: NodeId) -> bool:
        return len(self.held[node]) < self.cap

    def is_movable(self, partition: int) -> bool:
        return partition not in self.pinned

    def add(self, partition: int, node: NodeId) -> None:
        self.copies[partition].append(node)
        self.held[node].add(partition)

    def drop(self, partition: int, node: NodeId) -> None:
        self.copies[partition].remove(node)
        self.held[node].discard(partition)

    # --- steps ---
    def trim(self, wanted: int) -> None:
        """More copies than wanted: the fullest node is relieved first."""
        for partition, nodes in enumerate(self.copies):
            while self.is_movable(partition) and len(nodes) > wanted:
                self.drop(partition, max(nodes, key=lambda n: (len(self.held[n]), -self.weight(n, partition), n)))

    def fill(self, wanted: int) -> None:
        """Add copies up to ``wanted``, directly where that is possible, before others are moved."""
        for find in (self.find_place, self.find_place_in_two):
            for partition, nodes in enumerate(self.copies):
                while self.is_movable(partition) and len(nodes) < wanted and find(partition):
                    pass

    def shed(self) -> None:
        """Bring every node down to the bound, starting with what likes it least."""
        for find in (self.find_place, self.find_place_in_two):
            for node in sorted(self.held, key=lambda n: (-len(self.held[n]), n)):
                for partition in self.liked_least(node) if len(self.held[node]) > self.cap else ():
                    if len(self.held[node]) <= self.cap:
                        break
                    if self.is_movable(partition):
                        self.relocate(partition, node, find)

    def level(self, floor: int) -> None:
        """Bring every target up to its share rounded down, from whoever has more than that."""
        for node in self.targets:
            while len(self.held[node]) < floor and self.take_one(node, floor):
                pass

    # --- one copy ---
    def liked_least(self, node: NodeId) -> list[int]:
        return sorted(self.held[node], key=lambda p: (self.weight(node, p), p))

    def find_place(self, partition: int) -> bool:
        """One more copy, on the best node with room."""
        nodes = self.copies[partition]
        able = [node for node in self.targets if self.has_room(node) and node not in nodes]
        if able:
            self.add(partition, max(able, key=lambda n: (self.weight(n, partition), n)))
        return bool(able)

    def find_place_in_two(self, partition: int) -> bool:
        """Nodes with room all hold it: put it on a full one, and another of that where room is."""
        nodes = self.copies[partition]
        roomy = [node for node in self.targets if self.has_room(node)]
        full = [node for node in self.targets if not self.has_room(node) and node not in nodes]
        best: tuple[bool, int, int, NodeId, NodeId] | None = None
        for middle in full:
            for other in self.held[middle]:
                is_moved_already = middle not in self.before[other]
                for node in roomy:
                    if self.is_movable(other) and node not in self.copies[other]:
                        option = (is_moved_already, self.weight(node, other), other, node, middle)
                        best = max(best, option) if best else option
        if best is None:
            return False
        _, _, other, node, middle = best
        self.drop(other, middle)
        self.add(other, node)
        self.add(partition, middle)
        return True

    def relocate(self, partition: int, node: NodeId, find: Callable[[int], bool]) -> None:
        """Off ``node`` to somewhere else, if there is anywhere."""
        place = self.copies[partition].index(node)
        if find(partition):
            self.held[node].discard(partition)
            del self.copies[partition][place]

    def take_one(self, node: NodeId, floor: int) -> bool:
        options = [
            (len(self.held[donor]), self.weight(node, partition), partition, donor)
            for donor in self.held
            if len(self.held[donor]) > floor
            for partition in self.held[donor]
            if self.is_movable(partition) and partition not in self.held[node]
        ]
        if not options:
            return False
        _, _, partition, donor = max(options)
        self.drop(partition, donor)
        self.add(partition, node)
        return True


def plan_copies(
    current: Sequence[tuple[NodeId, ...]],
    *,
    keepers: Collection[NodeId],
    targets: Collection[NodeId],
    wanted: int,
    seed: int,
    pinned: Collection[int] = frozenset(),
    is_even: bool = False,
) -> list[tuple[NodeId, ...]]:
    """For each partition the nodes that should hold it, with as few moves as the bounds allow.

    :param keepers: may keep what they hold (also one that is down, for a while); others are
        emptied.
    :param targets: those of them that may be given something: up and not draining.
    :param wanted: copies of each partition, if there are as many keepers.
    :param pinned: partitions that cannot move.
    :param is_even: hold the share rounded down as well, at the price of more moves.

    No keeper has more than ``share_max`` in the end, unless what is pinned or where nobody has room
    stands against it."""
    if not keepers:
        return list(current)
    wanted = min(wanted, len(keepers))
    total = len(current) * wanted
    cap = share_max(total, len(keepers))
    if not is_even and _is_within(current, keepers, wanted, cap):
        return list(current)
    layout = _Layout(current, keepers, targets, cap, seed, pinned)
    layout.trim(wanted)
    layout.fill(wanted)
    layout.shed()
    if is_even:
        layout.level(total // len(keepers))
    return [tuple(nodes) for nodes in layout.copies]


def _is_within(current: Sequence[tuple[NodeId, ...]], keepers: Collection[NodeId], wanted: int, cap: int) -> bool:
    """Nothing to do? The usual case, and cheap."""
    load = Counter(chain.from_iterable(current))
    return (
        all(node in keepers and held <= cap for node, held in load.items())
        and all(len(nodes) == wanted for nodes in current)
    )  # fmt: skip


class _Primaries:
    """Primaries being chosen among the copies. ``led``: partitions of each leader-to-be."""

    def __init__(
        self, copies: Sequence[Sequence[NodeId]], current: Sequence[NodeId | None], able: Iterable[NodeId], seed: int
    ) -> None:
        self.led: dict[NodeId, set[int]] = {node: set() for node in sorted(able)}
        self.choices = [[node for node in nodes if node in self.led] for nodes in copies]
        self.seed = seed
        self.primary: list[NodeId | None] = [None] * len(copies)
        for partition, node in enumerate(current):
            if node is not None and node in self.choices[partition]:
                self.give(partition, node)

    def give(self, partition: int, node: NodeId) -> None:
        before = self.primary[partition]
        if before is not None:
            self.led[before].discard(partition)
        self.primary[partition] = node
        self.led[node].add(partition)

    def fill(self) -> None:
        for partition, nodes in enumerate(self.choices):
            if self.primary[partition] is None and nodes:
                self.give(partition, min(nodes, key=lambda n: (len(self.led[n]), -weight(n, partition, self.seed), n)))

    def even_out(self, source: NodeId, is_enough: Callable[[], bool], is_open: Callable[[NodeId], bool]) -> None:
        """Move partitions off ``source`` until enough, each to the nearest open node."""
        while not is_enough() and self.shift(source, is_open):
            pass

    def shift(self, source: NodeId, is_open: Callable[[NodeId], bool]) -> bool:
        """Move one from ``source`` to an open node, by the shortest chain of shared partitions."""
        came: dict[NodeId, tuple[NodeId, int]] = {}
        queue = [source]
        for node in queue:
            for partition in sorted(self.led[node]):
                for other in self.choices[partition]:
                    if other == source or other in came:
                        continue
                    came[other] = (node, partition)
                    if is_open(other):
                        self._follow(came, other, source)
                        return True
                    queue.append(other)
        return False

    def _follow(self, came: dict[NodeId, tuple[NodeId, int]], node: NodeId, source: NodeId) -> None:
        while node != source:
            before, partition = came[node]
            self.give(partition, node)
            node = before


def plan_primaries(
    copies: Sequence[Sequence[NodeId]],
    current: Sequence[NodeId | None],
    *,
    able: Collection[NodeId],
    seed: int,
    is_even: bool = False,
) -> list[NodeId | None]:
    """For each partition the copy that should lead it: the present one, unless its node leads more
    than its share.

    :param able: nodes that may lead. A partition with no copy on any of them gets None."""
    if not able:
        return [None] * len(copies)
    plan = _Primaries(copies, current, able, seed)
    plan.fill()
    total = sum(1 for node in plan.primary if node is not None)
    cap = share_max(total, len(able))
    for node in plan.led:
        plan.even_out(node, lambda n=node: len(plan.led[n]) <= cap, lambda n: len(plan.led[n]) < cap)  # type: ignore[misc]
    if is_even:
        floor = total // len(able)
        for node in plan.led:
            plan.even_out(node, lambda n=node: len(plan.led[n]) <= floor, lambda n: len(plan.led[n]) < floor)  # type: ignore[misc]
    return plan.primary
