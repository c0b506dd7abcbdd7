"""A cluster without faults: Raft commits at once, every living node does what a primary should. Runs until nothing is left."""

from __future__ import annotations

import random
from collections import Counter

import msgspec

from tests.unit.tq_node.cluster.laws import need
from tests.unit.tq_node.cluster.random_table import RandomTable
from tests.unit.tq_node.cluster.tables import Table
from tq_node.cluster import commands as c
from tq_node.cluster.controller import Decision, decide
from tq_node.cluster.liveness import Health, Liveness
from tq_node.cluster.map import PartitionEntry
from tq_node.cluster.primary_choice import Nodes
from tq_node.cluster.rules_moves import are_in_sync
from tq_node.cluster.settings import DEFAULT_SETTINGS, ControllerSettings
from tq_node.cluster.voters import RaftView, VoterChange, VoterChangeKind
from tq_node.limits import MIB
from tq_node.types import NodeId, PartitionId

TICK_MS = 100
QUIET_TICK_MS = 900
"""Below what would count as a pause or as silence."""


def next_isr(entry: PartitionEntry, nodes: Nodes) -> tuple[NodeId, ...] | None:
    """The smaller set that the *primary* should propose (``AlterIsr``): without a dead member, else without one that moves away.

    None: nothing is due or allowed. Those that move away wait for all newcomers; a primary that moves away has a ``successor``.
    """
    if len(entry.isr) <= entry.min_isr:
        return None
    going = [node for node in entry.isr if not nodes[node].is_up]
    if not going and are_in_sync(entry):
        going = [node for node in entry.isr if node in entry.removing and node != entry.primary]
    return tuple(node for node in entry.isr if node != going[0]) if going else None


class Settling:
    """:param task_bytes: sizes of partitions with tasks, wherever they are. :param slow: nodes that are up and never catch up."""

    def __init__(
        self,
        table: Table,
        *,
        voters: tuple[NodeId, ...] | None = None,
        task_bytes: dict[int, int] | None = None,
        pace: ControllerSettings = DEFAULT_SETTINGS,
        rng: random.Random | None = None,
        checked: bool = True,
    ) -> None:
        self.checked = checked
        self.table = table
        self.now_ms = 0
        self.task_bytes = task_bytes or {}
        self.slow: set[NodeId] = set()
        self.unfit: set[NodeId] = set()
        self.is_batching = False
        """All that one node proposes in a round goes in one entry of each kind, as in the data plane's driver."""
        self.is_stubborn = False
        """Primaries do not step down for their successors."""
        self.rng = rng
        self.liveness = Liveness(0, pace)
        up = [node.node_id for node in table.map.nodes.values() if node.is_up]
        self.voters = set(voters or up[:1])
        self.learners: set[NodeId] = set()
        self.me = next(node for node in sorted(self.voters) if node in up)
        self.voter_changes: list[VoterChange] = []
        self.rounds = 0
        self.peak_big: Counter[NodeId] = Counter()
        self.waiting: dict[int, str] = {}

    @property
    def view(self) -> RaftView:
        caught_up = tuple(n.node_id for n in self.table.map.nodes.values() if n.is_up and n.node_id not in self.slow)
        return RaftView(self.me, tuple(sorted(self.voters)), tuple(sorted(self.learners)), caught_up)

    def run(self, *, quiet_ms: int = 100_000, rounds_max: int = 3_000) -> int:
        """Until nothing has happened for so long; returns the rounds in which something did."""
        busy = 0
        quiet_since_ms = self.now_ms
        while self.now_ms - quiet_since_ms < quiet_ms:
            self.rounds += 1
            is_busy = self.round()
            if is_busy:
                busy += 1
                quiet_since_ms = self.now_ms
            need(busy < rounds_max, "decide() does not come to rest")
            self.now_ms += TICK_MS if is_busy else QUIET_TICK_MS
        return busy

    def round(self) -> bool:
        """One look of the leader, then one of each primary. Did anything happen?"""
        table = self.table
        self.hear()
        decision = self.decide()
        self.waiting = decision.waiting
        for command in decision.commands:
            refused = table.do(command).refused
            need(not refused, "the leader proposes what is refused", command, refused)
            need(table.map.map_version == table.index, "the leader proposes what changes nothing", command)
            if isinstance(command, c.BeginMove):
                for step in command.steps:
                    entry = table.entry(step.partition)
                    need(
                        entry.primary is not None,
                        "a move begins of what nobody leads: there is nobody to copy from",
                        entry,
                    )
                    need(
                        not is_held(entry), "a move begins that cannot end: it would be aborted and begin again", entry
                    )
        if decision.voter_change is not None:
            self.grant(decision.voter_change)
        self.note_peaks()
        acts = [act for p, entry in enumerate(table.map.partitions) if (act := self.act(p, entry)) is not None]
        if self.is_batching:
            acts = batched(acts)
        if self.rng is not None:
            self.rng.shuffle(acts)
            acts = acts[: self.rng.randint(0, len(acts))] if self.rng.random() < 0.5 else acts
        done = [table.do(act) for act in acts]
        need(not any(applied.refused for applied in done), "a primary proposes what is refused", acts, done)
        return bool(decision.commands or decision.voter_change or acts)

    def hear(self) -> None:
        self.liveness.tick(self.now_ms)
        self.liveness.follow(self.table.map, self.now_ms)
        for node in self.table.map.nodes.values():
            if node.is_up:
                sizes = {p: size for p, size in self.task_bytes.items() if node.node_id in self.table.entry(p).copies}
                health = Health(sizes, may_lead=node.node_id not in self.unfit)
                self.liveness.record_heartbeat(node.node_id, self.now_ms, self.table.index, health)

    def decide(self) -> Decision:
        if not self.checked:
            return decide(self.table.map, self.liveness, self.view, self.now_ms)
        before = msgspec.msgpack.encode(self.table.map)
        first, second = (decide(self.table.map, self.liveness, self.view, self.now_ms) for _ in range(2))
        need(first == second and msgspec.msgpack.encode(self.table.map) == before, "decide() has no side effects")
        again = decide(
            self.table.map,
            self.liveness,
            self.view,
            self.now_ms,
            pending=first.commands,
        )
        need(not again.commands, "decide() repeats what is in flight", again.commands)
        return first

    def act(self, p: int, entry: PartitionEntry) -> c.AnyCommand | None:
        """What the primary of a partition does next."""
        if entry.primary is None:
            return None
        nodes = self.table.map.nodes
        session = nodes[entry.primary].session
        if entry.successor is not None and not self.is_stubborn:
            return c.StepDown(entry.primary, session, (c.Led(PartitionId(p), entry.epoch),))
        missing = [n for n in entry.copies if n not in entry.isr and nodes[n].is_up and n not in entry.removing]
        smaller = next_isr(entry, nodes)
        isr = smaller or ((*entry.isr, missing[0]) if missing else None)
        if isr is None:
            return None
        return c.AlterIsr(
            entry.primary, session, (c.IsrStep(PartitionId(p), entry.epoch, entry.partition_version, isr),)
        )

    def grant(self, change: VoterChange) -> None:
        """Raft does what is wished, and would have refused some things."""
        self.voter_changes.append(change)
        node = change.node
        match change.kind:
            case VoterChangeKind.ADD_LEARNER:
                need(node not in self.voters | self.learners, "a member is added again")
                self.learners.add(node)
            case VoterChangeKind.PROMOTE:
                need(node in self.learners and node not in self.slow, "one that is not caught up is promoted")
                self.learners.remove(node)
                self.voters.add(node)
            case VoterChangeKind.DEMOTE:
                need(node in self.voters and node != self.me, "a leader demotes itself")
                self.voters.remove(node)
                self.learners.add(node)
            case VoterChangeKind.REMOVE:
                need(node != self.me, "a leader removes itself")
                self.voters.discard(node)
                self.learners.discard(node)
            case VoterChangeKind.TRANSFER:
                need(node in self.voters and self.table.map.nodes[node].is_up, "leadership goes to a living voter")
                self.me = node
                self.liveness.lead(self.now_ms)
        wanted = self.table.map.settings.voters_wanted
        need(1 <= len(self.voters) <= wanted + 1, "voters are at most one more than wanted, in passing")

    def note_peaks(self) -> None:
        """How many big moves each node takes part in."""
        busy: Counter[NodeId] = Counter()
        for p, entry in enumerate(self.table.map.partitions):
            copying = [node for node in entry.adding if node not in entry.isr]
            if copying and self.task_bytes.get(p, 0) > self.liveness.settings.big_bytes:
                busy.update([*copying, *([entry.primary] if entry.primary else [])])
        for node, count in busy.items():
            self.peak_big[node] = max(self.peak_big[node], count)

    # --- what must hold at rest ---
    def check_rest(self) -> None:
        table = self.table
        nodes = table.map.nodes
        need(len(self.voters) in (1, 3, 5), "1, 3 or 5 voters, never kept at 2 or 4", self.voters)
        for node in nodes.values():
            if node.is_up:
                need(node.node_id in self.voters | self.learners, "everybody registered is in the group")
        need(not any(not nodes[n].is_member for n in self.voters | self.learners), "nobody removed is in the group")
        for p, entry in enumerate(table.map.partitions):
            leaving = [n for n in entry.copies if nodes[n].is_draining]
            need(not leaving or p in self.waiting, "a draining node is emptied, or it says why not", p, entry)
            need(not is_held(entry), "no move is left that cannot end", p, entry)

    def check_bounds(self) -> None:
        """With everybody up, and nothing that hinders: shares, rounded up, of copies and of primaries."""
        table = self.table
        settings = table.map.settings
        holders = [node.node_id for node in table.map.nodes.values() if node.is_target]
        wanted = min(settings.replication_factor, len(holders))
        partitions = table.map.partitions
        for p, entry in enumerate(partitions):
            need(not entry.is_moving and entry.successor is None, "nothing is left half done", p, entry)
            need(len(entry.copies) == wanted and set(entry.copies) <= set(holders), "all copies in place", p, entry)
            need(set(entry.isr) == set(entry.copies), "and in sync", p)
        total = len(partitions)
        copies = Counter(node for entry in partitions for node in entry.copies)
        primaries = Counter(entry.primary for entry in partitions)
        need(max(copies.values()) <= -(-total * wanted // len(holders)), "no node holds more than its share", copies)
        able = [node for node in holders if node not in self.unfit]
        need(max(primaries.values()) <= -(-total // len(able)), "no node leads more than its share", primaries)


def batched(acts: list[c.AnyCommand]) -> list[c.AnyCommand]:
    isr: dict[tuple[NodeId, int], list[c.IsrStep]] = {}
    led: dict[tuple[NodeId, int], list[c.Led]] = {}
    for act in acts:
        if isinstance(act, c.AlterIsr):
            isr.setdefault((act.sender, act.session), []).extend(act.steps)
        elif isinstance(act, c.StepDown):
            led.setdefault((act.sender, act.session), []).extend(act.led)
    return [
        *(c.AlterIsr(*sender, tuple(steps)) for sender, steps in isr.items()),
        *(c.StepDown(*sender, tuple(parts)) for sender, parts in led.items()),
    ]


def is_held(entry: PartitionEntry) -> bool:
    """All who are to come are in the set, one who is to go is too, and ``min_isr`` lets nobody go."""
    is_left = set(entry.adding) <= set(entry.isr) and bool(set(entry.removing) & set(entry.isr))
    return is_left and len(entry.isr) <= entry.min_isr


def settle(rng: random.Random, steps: int) -> int:
    """Random entries, then peace: first with the dead dead, then with all returned. Returns the rounds that did something."""
    world = RandomTable(rng)
    world.run(steps)
    table = world.table
    if not any(node.is_up for node in table.map.nodes.values()):
        revive(table, [node.node_id for node in table.map.members()][:1])
    count = len(table.map.partitions)
    sizes = {p: rng.choice([1, 5 * MIB]) for p in range(count) if rng.random() < 0.3}
    up = [node.node_id for node in table.map.nodes.values() if node.is_up]
    voters = tuple(rng.sample(up, min(len(up), rng.choice([1, table.map.settings.voters_wanted]))))
    settling = Settling(table, voters=voters, task_bytes=sizes, rng=rng)
    rounds = settling.run()
    settling.check_rest()
    for node in table.map.members():
        if node.is_draining and rng.random() < 0.8:
            table.do(c.UndrainNode(node.node_id))
    revive(table, [node.node_id for node in table.map.members() if not node.is_up])
    rounds += settling.run()
    settling.check_rest()
    lost = [p for p, entry in enumerate(table.map.partitions) if entry.primary is None]
    for p in lost:
        seen = table.seen(p)
        table.do(c.UnsafeRecover(seen.partition, seen.epoch, seen.partition_version, settling.me))
    rounds += settling.run()
    settling.check_rest()
    need(max(settling.peak_big.values(), default=0) <= 2, "at most two big moves per node", settling.peak_big)
    if not settling.waiting:
        settling.check_bounds()
    return rounds


def revive(table: Table, nodes: list[NodeId]) -> None:
    for node in nodes:
        known = table.map.nodes[node]
        applied = table.register(
            int(node, 16), known.incarnation + 1, name=known.name, feature_level_max=known.feature_level_max
        )
        need(not applied.refused, "a member returns", applied.refused)
