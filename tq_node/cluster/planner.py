"""From the cluster map to what should change in it: copies to where placement wants them, primaries
likewise, step by step (section 6).

Each function looks at the whole cluster map and says what is due *now*; nothing is remembered
between two looks, so that any later leader goes on where the last one died (F27)."""

from __future__ import annotations

from collections import Counter

from tq_node.cluster.commands import MoveStep, PrimaryStep, Seen
from tq_node.cluster.liveness import Liveness
from tq_node.cluster.placement import plan_copies, plan_primaries, share_max
from tq_node.cluster.primary_choice import candidates
from tq_node.cluster.records import ClusterMap, NodeEntry, NodeStatus, PartitionEntry, copies_wanted, min_isr_wanted
from tq_node.cluster.rules_moves import are_in_sync, are_out_of_sync
from tq_node.cluster.rules_partitions import allows_min_isr
from tq_node.types import Epoch, NodeId, PartitionId

WAITING_FOR_PRIMARY = "waiting_for_primary"
WAITING_FOR_MIN_ISR = "waiting_for_min_isr"
WAITING_FOR_NODES = "waiting_for_nodes"
WAITING_FOR_TURN = "waiting_for_turn"


class Planner:
    """The cluster map, seen by the leader ``me`` at one moment."""

    def __init__(self, cluster_map: ClusterMap, liveness: Liveness, me: NodeId, now_ms: int) -> None:
        self.map = cluster_map
        self.liveness = liveness
        self.me = me
        self.now_ms = now_ms
        self.settings = liveness.settings
        self.waiting: dict[int, str] = {}
        """Why a partition that should move does not."""
        nodes = cluster_map.nodes.values()
        self.keepers = {node.node_id for node in nodes if self.may_keep(node)}
        self.targets = {node.node_id for node in nodes if node.is_target and self.is_at_hand(node)}
        self.able = {node.node_id for node in nodes if node.is_target and liveness.may_lead(node.node_id)}

    # --- looking ---
    def is_at_hand(self, node: NodeEntry) -> bool:
        """Whether it was in contact lately and has applied its own registration: it can serve."""
        if node.node_id == self.me:
            return True
        heard = not self.liveness.is_suspect(node.node_id, self.now_ms)
        return heard and self.liveness.has_reached(node.node_id, node.session)

    def may_keep(self, node: NodeEntry) -> bool:
        """Whether the node keeps its copies: a down one is expected for ``replace_after_ms``."""
        if (
            node.status == NodeStatus.DOWN
            and self.liveness.down_ms(node.node_id, self.now_ms) >= self.settings.replace_after_ms
        ):
            return False
        return node.is_member and not node.is_draining

    def seen(self, partition: int) -> Seen:
        entry = self.map.partitions[partition]
        return Seen(PartitionId(partition), Epoch(entry.epoch), entry.partition_version)

    def task_bytes(self, partition: int) -> int | None:
        return self.liveness.task_bytes(self.map.partitions[partition], partition)

    def is_pinned(self, entry: PartitionEntry) -> bool:
        """Whether the partition moves already, or cannot move."""
        return entry.is_moving or self.hindrance(entry) is not None

    def hindrance(self, entry: PartitionEntry) -> str | None:
        """Why no copy of it can be made now."""
        return WAITING_FOR_PRIMARY if entry.primary is None else None

    # --- copies ---
    def wanted_copies(self) -> list[tuple[NodeId, ...]]:
        partitions = self.map.partitions
        return plan_copies(
            [entry.intended for entry in partitions],
            keepers=self.keepers,
            targets=self.targets,
            wanted=self.map.settings.replication_factor,
            seed=self.map.settings.seed,
            pinned={p for p, entry in enumerate(partitions) if self.is_pinned(entry)},
            is_even=self.map.rebalance > 0,
        )

    def begins(self, wanted: list[tuple[NodeId, ...]]) -> list[MoveStep]:
        """Moves to begin; those that make up for lost copies first."""
        self.note_stuck(wanted)
        due = [
            p
            for p, entry in enumerate(self.map.partitions)
            if not entry.is_moving and wanted[p] != entry.copies and self.is_astray(entry, set(wanted[p]))
        ]
        if not due:
            return []
        turns = _Turns(self)
        steps = []
        for partition in sorted(due, key=lambda p: (not self.is_urgent(self.map.partitions[p]), p)):
            entry = self.map.partitions[partition]
            step = self.step_towards(partition, entry, wanted[partition])
            if step is None:
                self.waiting[partition] = WAITING_FOR_MIN_ISR
            elif not turns.take(partition, entry, step):
                self.waiting[partition] = WAITING_FOR_TURN
            else:
                self.waiting.pop(partition, None)
                steps.append(step)
        return sorted(steps, key=lambda step: step.partition)

    def is_astray(self, entry: PartitionEntry, wished: set[NodeId]) -> bool:
        """Whether the partition is misplaced. A dead copy stays until another takes its place."""
        if wished == set(entry.copies):
            return False
        return bool(wished.difference(entry.copies)) or len(entry.copies) > self.copies_left_min(entry)

    def note_stuck(self, wanted: list[tuple[NodeId, ...]]) -> None:
        """Note what stays where it should not, and moves that can't end, each with the reason."""
        load = Counter(node for nodes in wanted for node in nodes)
        cap = share_max(sum(load.values()), max(1, len(self.keepers)))
        crowded = {node for node, held in load.items() if held > cap}
        for partition, entry in enumerate(self.map.partitions):
            reason = None
            if entry.is_moving:
                reason = self.hindrance(entry)
            elif not self.keepers.issuperset(entry.copies):
                reason = self.hindrance(entry) or WAITING_FOR_NODES
            elif crowded and not crowded.isdisjoint(entry.copies):
                reason = self.hindrance(entry)
            if reason is not None:
                self.waiting[partition] = reason

    def is_held(self, entry: PartitionEntry) -> bool:
        """``min_isr`` lets nobody go and no newcomer will change that: too many were lost."""
        return are_in_sync(entry) and not are_out_of_sync(entry) and len(entry.isr) <= entry.min_isr

    def copies_left_min(self, entry: PartitionEntry) -> int:
        wanted = copies_wanted(self.map.nodes, self.map.settings.replication_factor)
        return max(1, min(wanted, len(entry.copies)))

    def is_urgent(self, entry: PartitionEntry) -> bool:
        return len(candidates(entry, self.map.nodes)) < self.map.settings.replication_factor

    def step_towards(self, partition: int, entry: PartitionEntry, wanted: tuple[NodeId, ...]) -> MoveStep | None:
        """The next step: at most RF + 1 copies meanwhile, and in the end no fewer than the members
        can hold. None: there is nothing to do, or ``min_isr`` forbids it."""
        factor = self.map.settings.replication_factor
        adding = tuple(node for node in wanted if node not in entry.copies)[: max(0, factor + 1 - len(entry.copies))]
        spare = len(entry.copies) + len(adding) - max(self.copies_left_min(entry), entry.min_isr)
        spare_isr = len(entry.isr) + len(adding) - entry.min_isr
        removing: list[NodeId] = []
        for node in sorted((n for n in entry.copies if n not in wanted), key=self.leaves_first):
            if len(removing) < spare and (node not in entry.isr or spare_isr > 0):
                removing.append(node)
                spare_isr -= node in entry.isr
        if not adding and not removing:
            return None
        return MoveStep(PartitionId(partition), entry.epoch, entry.partition_version, adding, tuple(removing))

    def leaves_first(self, node: NodeId) -> tuple[bool, bool]:
        """Order of leaving: a node to be emptied; a dead one, which may return; a living one."""
        entry = self.map.nodes[node]
        return not entry.is_draining, entry.is_up

    def finishes(self) -> list[Seen]:
        return [
            self.seen(partition)
            for partition, entry in enumerate(self.map.partitions)
            if entry.is_moving and are_in_sync(entry) and are_out_of_sync(entry)
        ]

    def aborts(self) -> list[Seen]:
        """Moves that will not get on; what is missing is planned anew, from what is there."""
        return [
            self.seen(p) for p, entry in enumerate(self.map.partitions) if entry.is_moving and self.is_hopeless(entry)
        ]

    def is_hopeless(self, entry: PartitionEntry) -> bool:
        """A newcomer died or leaves, or the move is held.

        While a move is under way no other copy is made, so one that is held for a copy that is lost
        for good would never end. Nothing is lost by ending it: its newcomers are in the set, and
        stay copies. Nor can it begin again as it was and flap: ``step_towards`` takes nobody out of
        a set that has no more than ``min_isr``, unless newcomers make up for it."""
        return any(not self.map.nodes[node].is_target for node in entry.adding) or self.is_held(entry)

    # --- primaries ---
    def successors(self, wanted: list[tuple[NodeId, ...]]) -> list[PrimaryStep]:
        """Primaries to hand over: to leave a node, or as it leads more than its share."""
        leading = [entry.successor or entry.primary for entry in self.map.partitions]
        plan = plan_primaries(
            wanted, leading, able=self.able, seed=self.map.settings.seed, is_even=self.map.rebalance > 0
        )
        load = Counter(leading)
        steps = []
        for partition, entry in enumerate(self.map.partitions):
            if plan[partition] == leading[partition] and not entry.removing:
                continue
            successor = self.successor(entry, plan[partition], load)
            if successor is not None and successor != leading[partition]:
                steps.append(self.primary_step(partition, successor))
        return steps

    def successor(self, entry: PartitionEntry, planned: NodeId | None, load: Counter[NodeId | None]) -> NodeId | None:
        """The node that should take over from the present primary; None: it stays."""
        if entry.primary is None:
            return None
        staying = [n for n in candidates(entry, self.map.nodes) if n not in entry.removing]
        if planned in staying and not entry.is_moving:
            return planned
        if (
            entry.primary in entry.removing
            and are_in_sync(entry)
            and (entry.successor is None or entry.successor not in staying)
        ):
            return min(staying, key=lambda n: (n not in self.able, n != planned, load[n], n), default=None)
        return None

    def overdue_successors(self) -> list[PrimaryStep]:
        return [
            self.primary_step(partition, entry.successor)
            for partition, entry in enumerate(self.map.partitions)
            if entry.successor is not None
            and self.liveness.successor_ms(partition, self.now_ms) >= self.settings.successor_ms
        ]

    def primary_step(self, partition: int, to: NodeId) -> PrimaryStep:
        entry = self.map.partitions[partition]
        return PrimaryStep(PartitionId(partition), entry.epoch, entry.partition_version, to)

    # --- min_isr ---
    def raises(self) -> list[Seen]:
        wanted = min_isr_wanted(self.map.nodes, self.map.settings.replication_factor)
        return [
            self.seen(partition)
            for partition, entry in enumerate(self.map.partitions)
            if entry.min_isr < wanted and allows_min_isr(entry, wanted)
        ]


class _Turns:
    """Throttle: a node takes part in at most so many big moves; small ones go together."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._big: Counter[NodeId] = Counter()
        for partition, entry in enumerate(planner.map.partitions):
            copying = [node for node in entry.adding if node not in entry.isr]
            if copying and self.is_big(partition):
                self._big.update(self.parties(entry, copying))

    def is_big(self, partition: int) -> bool:
        """Whether a move copies much; an unknown size counts as big."""
        size = self._planner.task_bytes(partition)
        return size is None or size > self._planner.settings.big_bytes

    def parties(self, entry: PartitionEntry, adding: list[NodeId]) -> list[NodeId]:
        return [*adding, *([entry.primary] if entry.primary is not None else [])]

    def take(self, partition: int, entry: PartitionEntry, step: MoveStep) -> bool:
        """Whether this move may begin now; if so it is counted."""
        if not step.adding or not self.is_big(partition):
            return True
        parties = self.parties(entry, list(step.adding))
        if any(self._big[node] >= self._planner.settings.big_moves_per_node for node in parties):
            return False
        self._big.update(parties)
        return True
