"""Random entries from random senders: right ones, late ones, doubled ones, lies. Every law is looked at after each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from tests.unit.tq_node.cluster.tables import CLUSTER_ID, Table, later_release, nid, registration, replace
from tq_node.cluster import commands as c
from tq_node.cluster.map import ClusterMap, PartitionEntry, decode, digest, encode
from tq_node.cluster.records import InvitationEntry
from tq_node.tokens import Role, TokenEntry
from tq_node.types import Epoch, HandledType, HandlerKind, NodeId, NodeName, PartitionId, PauseEntry

NUMBERS = 8
T = TypeVar("T")


class RandomTable:
    """:param rng: decides everything, so that a failing run can be made again, or shrunk."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        factor = rng.choice([1, 2, 3, 3, 3, 5])
        nodes = rng.randint(1, 6)
        self.table = Table(
            nodes, partitions=rng.randint(1, 4), factor=factor, voters=rng.choice([1, 3, 5]), level=rng.choice([1, 4])
        )
        for partition in range(len(self.table.map.partitions)):
            copies = rng.sample(range(1, nodes + 1), rng.randint(1, min(nodes, factor)))
            isr = tuple(number for number in copies if number == copies[0] or rng.random() < 0.7)
            wanted = 1 if nodes < 3 else factor // 2 + 1
            self.table.forge(
                partition, *copies, isr=isr, min_isr=wanted if wanted <= len(isr) and rng.random() < 0.7 else 1
            )
        self.commands: list[c.AnyCommand] = []
        self.past: list[ClusterMap] = [self.table.map]
        self.late: list[c.AnyCommand] = []
        self.kinds: list[Callable[[], c.AnyCommand | None]] = [
            *[self.alter_isr] * 8,
            *[self.begin] * 4,
            *[self.register] * 4,
            *[self.node_down] * 2,
            *[self.finish] * 3,
            self.abort,
            self.step_down,
            self.step_down,
            self.plan_primary,
            self.plan_primary,
            self.elect,
            self.raise_min_isr,
            self.raise_min_isr,
            self.drain,
            self.undrain,
            self.undrain,
            self.remove,
            self.remove,
            self.unsafe_recover,
            self.unsafe_recover,
            self.the_cluster,
            self.put_token,
            self.revoke_token,
            self.put_invitation,
            self.take_invitation,
            self.of_types,
            self.of_pauses,
            self.note_certificate,
        ]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        command = self.rng.choice(self.kinds)() if not self.late or self.rng.random() < 0.85 else self.pick(self.late)
        if command is None:
            return
        if self.rng.random() < 0.15:
            self.late.append(command)
            if self.rng.random() < 0.5:
                return
        self.do(command)

    def do(self, command: c.AnyCommand) -> None:
        self.commands.append(command)
        self.table.do(c.decode(c.encode(command)))
        if self.rng.random() < 0.2:
            self.past.append(self.table.map)

    def replay(self) -> None:
        """Another node applies the same entries, with a snapshot taken and read back on the way."""
        table = self.table
        other = Table(checked=False)
        other.map, other.index = self.past[0], self.past[0].map_version
        cut = self.rng.randint(0, len(self.commands))
        for number, command in enumerate(self.commands):
            if number == cut:
                with later_release():
                    other.map = decode(encode(other.map))
            other.do(command)
        assert other.map == table.map
        assert digest(other.map) == digest(table.map)
        assert encode(other.map) == encode(table.map)

    # --- drawing ---
    def pick(self, items: list[T]) -> T:
        return self.rng.choice(items)

    def often(self, usual: T, *others: T) -> T:
        return usual if self.rng.random() < 0.9 else self.pick([usual, *others])

    def anybody(self) -> NodeId:
        return self.pick([*self.table.map.nodes, nid(NUMBERS + 1)])

    def partition(
        self, likely: Callable[[PartitionEntry], bool] = lambda entry: True
    ) -> tuple[PartitionId, PartitionEntry]:
        """As it is, or now and then as it was; most often one that fits."""
        table = self.table.map if self.rng.random() < 0.95 else self.pick(self.past)
        fitting = [p for p, entry in enumerate(table.partitions) if likely(entry)] or [0]
        partition = self.often(self.pick(fitting), self.rng.randrange(len(table.partitions)))
        named = partition if self.rng.random() < 0.98 else self.pick([-1, len(table.partitions)])
        return PartitionId(named), table.partitions[partition]

    def session(self, node: NodeId | None) -> int:
        known = self.table.map.nodes.get(node or NodeId(""))
        return (
            0
            if known is None
            else self.often(known.session, known.session - 1, self.rng.randint(0, self.table.index + 1))
        )

    def stamp(self, entry: PartitionEntry) -> tuple[Epoch, int]:
        lie = self.rng.choice([-1, 1]) if self.rng.random() < 0.1 else 0
        if self.rng.random() < 0.5:
            return Epoch(entry.epoch + lie), entry.partition_version
        return entry.epoch, entry.partition_version + lie

    def seen(self, likely: Callable[[PartitionEntry], bool] = lambda entry: True) -> c.Seen:
        partition, entry = self.partition(likely)
        return c.Seen(partition, *self.stamp(entry))

    def sender(self, entry: PartitionEntry) -> NodeId:
        return self.often(entry.primary or self.anybody(), *entry.copies, self.anybody())

    def some(self, nodes: list[NodeId], most: int = 2) -> tuple[NodeId, ...]:
        return tuple(self.rng.sample(nodes, min(len(nodes), self.rng.randint(0, most))))

    # --- nodes ---
    def register(self) -> c.AnyCommand:
        down = [int(node.node_id, 16) for node in self.table.map.members() if not node.is_up]
        number = self.often(self.pick(down) if down else self.rng.randint(1, NUMBERS), self.rng.randint(1, NUMBERS))
        known = self.table.map.nodes.get(nid(number))
        incarnation = (
            1 if known is None else self.often(known.incarnation + 1, known.incarnation, known.incarnation - 1)
        )
        node = registration(
            number,
            incarnation,
            feature_level_max=self.often(4, 1, 2, 3),
            handlers=HandlerKind((number + incarnation) % len(HandlerKind)),
        )
        if self.rng.random() < 0.1:
            node = replace(node, nonce="another")
        if self.rng.random() < 0.1:
            node = replace(node, name=NodeName(f"node-{self.rng.randint(1, NUMBERS)}"))
        if self.rng.random() < 0.1:
            level = self.rng.randint(0, 2)
            node = replace(node, feature_level_min=level, feature_level_max=level + self.rng.randint(0, 1))
        return c.RegisterNode(self.often(CLUSTER_ID, "d" * 32), node)

    def node_down(self) -> c.AnyCommand:
        node = self.anybody()
        return c.NodeDown(node, self.session(node), "silence")

    def drain(self) -> c.AnyCommand:
        return c.DrainNode(self.anybody(), self.rng.random() < 0.5)

    def undrain(self) -> c.AnyCommand:
        return c.UndrainNode(self.anybody())

    def remove(self) -> c.AnyCommand:
        node = self.anybody()
        empty = [PartitionId(p) for p in range(len(self.table.map.partitions)) if self.rng.random() < 0.3]
        return c.RemoveNode(node, self.session(node), tuple(empty))

    # --- partitions ---
    def alter_isr(self) -> c.AnyCommand:
        steps = []
        _, lead = self.partition(lambda entry: entry.primary is not None and len(entry.copies) > 1)
        sender = self.sender(lead)
        for _ in range(self.often(1, 2)):
            partition, entry = self.partition(lambda entry: entry.primary == sender and len(entry.copies) > 1)
            isr = set(entry.isr)
            for _ in range(self.often(1, 0, 2)):
                others = [node for node in entry.copies if node != entry.primary] or list(entry.copies)
                missing = [node for node in others if node not in isr and self.rng.random() < 0.6]
                isr ^= {self.often(self.pick(missing or others), *entry.copies, self.anybody())}
            steps.append(c.IsrStep(partition, *self.stamp(entry), tuple(sorted(isr))))
        if self.rng.random() < 0.1:
            # Two steps that build on one another, in one entry: the second has seen what was never there.
            last = steps[-1]
            copies = list(self.table.map.partitions[last.partition % len(self.table.map.partitions)].copies)
            steps.append(replace(last, isr=tuple(sorted(frozenset(last.isr) ^ {self.pick(copies)}))))
        return c.AlterIsr(sender, self.session(sender), tuple(steps))

    def step_down(self) -> c.AnyCommand:
        partition, entry = self.partition(lambda entry: entry.primary is not None and len(entry.isr) > 1)
        sender = self.sender(entry)
        return c.StepDown(sender, self.session(sender), (c.Led(partition, self.stamp(entry)[0]),))

    def primary_step(self) -> c.PrimaryStep:
        partition, entry = self.partition(lambda entry: len(entry.isr) > 1)
        to = self.pick([None, *entry.isr, *entry.copies, *entry.adding, self.anybody()])
        return c.PrimaryStep(partition, *self.stamp(entry), to)

    def plan_primary(self) -> c.AnyCommand:
        return c.PlanPrimary((self.primary_step(),))

    def elect(self) -> c.AnyCommand:
        return c.ElectPrimary((self.primary_step(),))

    def raise_min_isr(self) -> c.AnyCommand:
        return c.RaiseMinIsr((self.seen(lambda entry: entry.min_isr == 1 and len(entry.isr) > 1),))

    def unsafe_recover(self) -> c.AnyCommand | None:
        return (
            c.UnsafeRecover(*self.astuple(self.seen(lambda entry: entry.primary is None)), self.anybody())
            if self.rng.random() < 0.5
            else None
        )

    def astuple(self, seen: c.Seen) -> tuple[PartitionId, Epoch, int]:
        return seen.partition, seen.epoch, seen.partition_version

    # --- moves ---
    def begin(self) -> c.AnyCommand:
        partition, entry = self.partition(lambda entry: not entry.is_moving)
        others = [node for node in self.table.map.nodes if node not in entry.copies]
        adding = self.some(others or [self.anybody()])
        removing = self.some(list(entry.copies), 1)
        if self.rng.random() < 0.05:
            adding = (*adding, self.anybody())
        return c.BeginMove((c.MoveStep(partition, *self.stamp(entry), adding, removing),))

    def finish(self) -> c.AnyCommand:
        return c.FinishMove((self.seen(lambda entry: entry.is_moving),))

    def abort(self) -> c.AnyCommand | None:
        return c.AbortMove((self.seen(lambda entry: entry.is_moving),)) if self.rng.random() < 0.5 else None

    # --- the cluster ---
    def the_cluster(self) -> c.AnyCommand:
        options: list[c.AnyCommand] = [
            c.PauseQueue("q"),
            c.ResumeQueue("q"),
            c.Rebalance(),
            c.RebalanceDone(self.table.map.rebalance),
            c.RaiseFeatureLevel(self.rng.randint(0, 4)),
            c.NoteThreeVoters(),
            c.NoteHandlers(),
            c.FoundCluster(CLUSTER_ID, "again", self.table.map.settings, registration(9)),
        ]
        return self.pick(options)

    # --- types and pauses ---
    def of_types(self) -> c.AnyCommand:
        name = self.pick(["a", "b", "c"])
        entry = HandledType(name, max_attempts=self.often(self.rng.randrange(1, 5), 0))
        known = [one.type for one in (*self.table.map.type_settings, *self.table.map.announced_types)]
        forgotten = self.pick(known) if known else name
        orders: list[c.AnyCommand] = [c.PutType(entry), c.AnnounceTypes((entry,)), c.DeleteType(forgotten)]
        return self.pick(orders)

    def of_pauses(self) -> c.AnyCommand:
        now_us = self.rng.randrange(100)
        entry = PauseEntry(self.pick(["queue", "type"]), self.often(self.pick(["q", "r"]), ""), since_us=now_us)
        known = [one.place for one in self.table.map.pauses]
        target, name = self.pick(known) if known else entry.place
        orders: list[c.AnyCommand] = [c.Pause(entry), c.Resume(target, name, now_us)]
        return self.pick(orders)

    # --- tokens ---
    def put_token(self) -> c.AnyCommand:
        hash_ = bytes((self.rng.randrange(8),)) * self.often(32, 31)
        roles = tuple(self.rng.sample(list(Role), self.often(1, 0, 2)))
        return c.PutToken(TokenEntry(self.pick(["a", "b", "c", "d", "-"]), hash_, roles))

    def revoke_token(self) -> c.AnyCommand:
        known = [token.name for token in self.table.map.tokens]
        return c.RevokeToken(self.often(self.pick(known) if known else "a", "a", "x"))

    # --- who may join ---
    def put_invitation(self) -> c.AnyCommand:
        now_us = self.rng.randrange(100)
        return c.PutInvitation(InvitationEntry(self.hash(), now_us + self.often(20, 0)), now_us)

    def take_invitation(self) -> c.AnyCommand:
        known = [one.hash for one in self.table.map.invitations]
        return c.TakeInvitation(self.pick(known) if known else self.hash(), self.rng.randrange(100))

    def note_certificate(self) -> c.AnyCommand:
        return c.NoteCertificate(self.anybody(), self.hash())

    def hash(self) -> bytes:
        return bytes((self.rng.randrange(8),)) * self.often(32, 31)
