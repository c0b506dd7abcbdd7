"""What must hold of every table and of every step, said again from replication.md and not from the code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tq_node import limits
from tq_node.cluster import commands as c
from tq_node.cluster.map import Applied, ClusterMap, NodeChanged, PartitionChanged, PartitionEntry, TokensChanged
from tq_node.cluster.records import ACCESS_LEVEL, HANDLERS_LEVEL, NodeStatus
from tq_node.types import HandlerKind, NodeId

OUTSIDE_R1 = (c.UnsafeRecover, c.RemoveNode)


class LawBroken(AssertionError):
    pass


def need(held: bool, law: str, *about: object) -> None:
    if not held:
        raise LawBroken(law + ": " + ", ".join(map(str, about)))


def is_up(table: ClusterMap, node: NodeId) -> bool:
    return table.nodes[node].status == NodeStatus.UP


def check_table(table: ClusterMap) -> None:
    """Invariants of one table."""
    members = [node for node in table.nodes.values() if node.status != NodeStatus.REMOVED]
    need(len({node.name for node in members}) == len(members), "F13: two members have one name")
    need(list(table.nodes) == sorted(table.nodes), "nodes are in order")
    need(all(node_id == node.node_id for node_id, node in table.nodes.items()), "a node is under its id")
    need(any(node.status != NodeStatus.REMOVED for node in members), "the last node is gone")
    level = table.feature_level
    need(
        all(n.feature_level_min <= level <= n.feature_level_max for n in members),
        "F44: a member cannot apply it",
        level,
    )
    for p, entry in enumerate(table.partitions):
        check_entry(table, p, entry)


def check_entry(table: ClusterMap, p: int, entry: PartitionEntry) -> None:
    copies, isr = set(entry.copies), set(entry.isr)
    need(len(copies) == len(entry.copies), "a copy counts twice", p)
    need(isr <= copies, "isr within copies", p)
    need(entry.isr == tuple(n for n in entry.copies if n in isr), "isr in the order of copies", p)
    need(len(isr) >= entry.min_isr >= 1, "I3: |isr| >= min_isr", p)
    need(entry.primary is None or entry.primary in isr, "I3: primary in isr or none", p)
    need(entry.primary is None or is_up(table, entry.primary), "R1: the primary is up", p)
    need(
        entry.primary is not None or not any(is_up(table, n) for n in isr), "a partition waits although it need not", p
    )
    need(set(entry.adding) <= copies and set(entry.removing) <= copies, "a move is about copies", p)
    need(not set(entry.adding) & set(entry.removing), "nobody comes and goes", p)
    if entry.successor is not None:
        need(
            entry.successor in isr and is_up(table, entry.successor) and entry.successor != entry.primary,
            "a successor can lead",
            p,
        )
    need(len(copies) <= table.settings.replication_factor + 1, "copies are RF + 1 at most", p, entry)
    for node in copies:
        need(node in table.nodes, "a copy is on a node", p)
        gone = table.nodes[node].status == NodeStatus.REMOVED
        need(not gone or node in isr, "a removed node stays only in a set", p)


def check_step(before: ClusterMap, index: int, command: c.AnyCommand, applied: Applied) -> None:
    """Laws of one entry. The table before it is lawful."""
    after = applied.map
    check_batch(before, command, applied)
    check_tokens(before, command, applied)
    if not applied.changes and after == before:
        need(after is before, "what changes nothing shares everything")
        return
    need(after.map_version == index, "map_version is the index of the last change")
    need(after.feature_level >= before.feature_level, "F44: the feature level is never lowered")
    check_handlers(before, command, applied)
    check_joining(before, command, applied)
    told_nodes = {change.node_id: change for change in applied.changes if isinstance(change, NodeChanged)}
    told = {change.partition: change for change in applied.changes if isinstance(change, PartitionChanged)}
    for node_id, node in after.nodes.items():
        was = before.nodes.get(node_id)
        need((node != was) == (node_id in told_nodes), "changes of nodes are told", node_id)
        if was is None:
            continue
        need(node.session >= was.session and node.incarnation >= was.incarnation, "sessions only grow", node_id)
        need(was.status != NodeStatus.REMOVED or node == was, "ids are never used again", node_id)
        need(node.incarnation == was.incarnation or node.session == index, "a new run is a new session", node_id)
        if node.nonce != was.nonce:
            need(node.incarnation > was.incarnation, "F14: a cloned store came in", node_id)
    need(set(before.nodes) <= set(after.nodes), "nodes are never forgotten")
    if not before.partitions:
        return
    for p, (old, new) in enumerate(zip(before.partitions, after.partitions, strict=True)):
        need((old is not new) == (p in told), "changes of partitions are told, and only they are copied", p)
        if old is not new:
            check_partition_step(before, after, index, command, p, old, new)
    check_deaths(before, after, command)
    check_registration(before, after, command)
    check_removal(before, command, applied)


def check_tokens(before: ClusterMap, command: c.AnyCommand, applied: Applied) -> None:
    after = applied.map
    names = [token.name for token in after.tokens]
    need(names == sorted(set(names)), "each token once, in order")
    need(len({token.hash for token in after.tokens}) == len(names), "each hash once")
    need(all(name[0].isalnum() for name in names), "a token has a name that can be shown")
    need(all(len(token.hash) == 32 and token.roles for token in after.tokens), "a token has a hash and a role")
    need(after.tokens_seen or not (names or before.tokens_seen), "that there were tokens is never forgotten")
    need(
        after.feature_level >= ACCESS_LEVEL or not after.tokens_seen, "F44: what older releases can't keep is not kept"
    )
    told = [change.name for change in applied.changes if isinstance(change, TokensChanged)]
    was, now = ({token.name: token for token in table.tokens} for table in (before, after))
    need(told == [name for name in sorted(was | now) if was.get(name) != now.get(name)], "changes of tokens are told")
    if isinstance(command, c.PutToken):
        need(not told or now[command.entry.name] == command.entry, "a token is kept as it was put")
    elif isinstance(command, c.RevokeToken):
        need(bool(applied.refused) or command.name not in now, "a token that was revoked is gone")
    else:
        need(not told, "nothing else changes a token")


def check_joining(before: ClusterMap, command: c.AnyCommand, applied: Applied) -> None:
    after = applied.map
    need(len(after.invitations) <= limits.INVITATIONS_MAX, "invitations are few")
    need(
        after.feature_level >= ACCESS_LEVEL or not (after.invitations or after.certificates),
        "F44: what older releases can't keep is not kept",
    )
    if isinstance(command, c.TakeInvitation) and not applied.refused:
        taken = [one for one in before.invitations if one.hash == command.hash]
        need(len(taken) == 1 and taken[0].expires_us > command.now_us, "who comes in was invited, in time")
        need(taken[0] not in after.invitations, "and nobody else is by that invitation")
    elif not isinstance(command, c.PutInvitation):
        need(after.invitations == before.invitations, "nothing else changes an invitation")
    need(set(after.certificates) <= set(after.nodes), "certificates are of nodes")
    for node_id, shown in before.certificates.items():
        need(
            set(shown) <= set(after.certificates[node_id]) or before.nodes[node_id].is_member,
            "certificates of a removed node are never forgotten",
        )


def check_handlers(before: ClusterMap, command: c.AnyCommand, applied: Applied) -> None:
    after = applied.map
    need(after.handlers_seen or not before.handlers_seen, "that there were real handlers is never forgotten")
    need(before.handlers_since in (0, after.handlers_since), "since when registrations count is said once")
    if after.feature_level < HANDLERS_LEVEL:
        need(not after.handlers_seen and not after.handlers_since, "F44: what older releases can't keep is not kept")
    elif isinstance(command, c.RegisterNode | c.FoundCluster) and not applied.refused:
        need(after.handlers_seen or command.node.handlers is not HandlerKind.OWN, "a node has handlers of its own")


def check_partition_step(
    before: ClusterMap,
    after: ClusterMap,
    index: int,
    command: c.AnyCommand,
    p: int,
    old: PartitionEntry,
    new: PartitionEntry,
) -> None:
    need(old != new and new.partition_version == old.partition_version + 1, "partition_version + 1 at each change", p)
    need(new.epoch in (old.epoch, old.epoch + 1), "epochs grow by one", p)
    if new.primary != old.primary and new.primary is not None:
        need(new.epoch == old.epoch + 1, "R2: each choice is a new epoch", p)
    if new.epoch != old.epoch:
        need(new.primary is not None, "an epoch has a primary", p)
        if not isinstance(command, OUTSIDE_R1):
            need(new.primary in old.isr, "R1: chosen outside the set", p, old, new)
    check_min_isr(after, command, p, old, new)
    check_isr(after, command, p, old, new)
    if isinstance(command, c.UnsafeRecover):
        need(len(new.unsafe_recovered) == len(old.unsafe_recovered) + 1, "unsafe recovery is recorded", p)
        need(new.unsafe_recovered[-1].log_index == index, "with its index", p)
    need(new.unsafe_recovered[: len(old.unsafe_recovered)] == old.unsafe_recovered, "and for ever", p)
    if set(new.copies) != set(old.copies):
        check_copies(before, after, command, p, old, new)
    if isinstance(command, c.StepDown):
        need(new.primary != old.primary, "StepDown chooses another", p)
        need(old.primary == command.sender, "StepDown is the primary's to say", p)
        need(before.nodes[command.sender].session == command.session, "in its present session", p)


def check_batch(before: ClusterMap, command: c.AnyCommand, applied: Applied) -> None:
    """Each step that was not refused came to pass, as it was said."""
    refused = {r.partition for r in applied.refused}
    if isinstance(command, c.AlterIsr) and None not in refused:
        said = Counter(step.partition for step in command.steps)
        for step in command.steps:
            if step.partition not in refused and said[step.partition] == 1:
                now = applied.map.partitions[step.partition]
                need(set(now.isr) == set(step.isr), "R4: what is accepted is what was asked for", step)
    if isinstance(command, c.BeginMove):
        held = sum(1 for n in before.nodes.values() if n.status != NodeStatus.REMOVED and not n.is_draining)
        for move in command.steps:
            if move.partition not in refused:
                old, now = before.partitions[move.partition], applied.map.partitions[move.partition]
                left = set(now.copies) - set(now.removing)
                least = min(before.settings.replication_factor, held, len(old.copies))
                need(len(left) >= max(1, least, old.min_isr), "a move leaves enough copies: never RF - 1", move)


def check_min_isr(after: ClusterMap, command: c.AnyCommand, p: int, old: PartitionEntry, new: PartitionEntry) -> None:
    members = sum(1 for node in after.nodes.values() if node.status != NodeStatus.REMOVED)
    wanted = 1 if members < 3 else after.settings.replication_factor // 2 + 1
    if new.min_isr < old.min_isr:
        need(isinstance(command, c.RemoveNode | c.UnsafeRecover), "only an operator lowers min_isr", p, command)
        if isinstance(command, c.RemoveNode) and len(new.unsafe_recovered) == len(old.unsafe_recovered):
            need(new.min_isr == wanted, "and only as far as section 6 says", p)
    if new.min_isr > old.min_isr:
        need(new.min_isr == wanted, "min_isr is raised to what section 6 says", p)


def check_isr(after: ClusterMap, command: c.AnyCommand, p: int, old: PartitionEntry, new: PartitionEntry) -> None:
    added, removed = set(new.isr) - set(old.isr), set(old.isr) - set(new.isr)
    if not added and not removed:
        return
    if isinstance(command, c.AlterIsr):
        need(
            stamp_of(old) in {stamp_of(s) for s in command.steps if s.partition == p}, "R4: epoch and version match", p
        )
        need(old.primary == command.sender, "R4: the sender is the primary", p)
        need(after.nodes[command.sender].session == command.session, "R4: in its present session (F25)", p)
        need(old.primary in new.isr and new.primary == old.primary, "R4: the primary stays in", p)
        need(len(added) + len(removed) == 1, "R4: exactly one", p)
        need(all(n in old.copies and is_up(after, n) for n in added), "R4: added is up and a copy", p)
        living = [n for n in removed if is_up(after, n)]
        need(not living or all(is_up(after, n) for n in new.isr), "R4: the dead go first (F25)", p)
        need(len(new.isr) >= old.min_isr, "R3: min_isr", p)
    elif isinstance(command, c.NodeDown):
        need(not added and not any(is_up(after, n) for n in removed), "R3: only the dead are removed", p)
    elif isinstance(command, c.RemoveNode):
        if len(new.unsafe_recovered) == len(old.unsafe_recovered):
            need(not added and not any(is_up(after, n) for n in removed), "a removal takes out the dead", p)
        else:
            need(p in command.empty, "only what held no task starts again", p)
    else:
        need(isinstance(command, c.UnsafeRecover), "nobody else changes a set", p, command)


def check_copies(
    before: ClusterMap, after: ClusterMap, command: c.AnyCommand, p: int, old: PartitionEntry, new: PartitionEntry
) -> None:
    came, went = set(new.copies) - set(old.copies), set(old.copies) - set(new.copies)
    if isinstance(command, c.BeginMove):
        need(not went and came == set(new.adding), "newcomers are copies", p)
        need(not old.adding and not old.removing, "one move at a time", p)
        need(all(is_up(before, n) and not before.nodes[n].is_draining for n in came), "targets are up and stay", p)
        need(not came & set(new.isr), "a newcomer does not count", p)
    elif isinstance(command, c.FinishMove):
        need(not came and went == set(old.removing), "a move ends as it was meant", p)
        need(set(old.adding) <= set(old.isr), "with its newcomers in sync", p)
    elif isinstance(command, c.AbortMove):
        need(not came and went <= set(old.adding) and not went & set(old.isr), "an abort drops newcomers", p)
    elif isinstance(command, c.AlterIsr | c.NodeDown):
        need(not came and all(after.nodes[n].status == NodeStatus.REMOVED for n in went), "only ghosts go", p)
    else:
        need(isinstance(command, c.RemoveNode | c.UnsafeRecover), "nobody else changes copies", p, command)
    seen: Iterable[c.MoveStep | c.Seen] = ()
    if isinstance(command, c.BeginMove):
        seen = command.steps
    elif isinstance(command, c.FinishMove | c.AbortMove):
        seen = command.seen
    stamps = [stamp_of(step) for step in seen if step.partition == p]
    need(not stamps or stamp_of(old) in stamps, "F27: compare-and-set", p)


def stamp_of(seen: c.IsrStep | c.MoveStep | c.Seen | c.PrimaryStep | PartitionEntry) -> tuple[int, int]:
    return seen.epoch, seen.partition_version


def check_deaths(before: ClusterMap, after: ClusterMap, command: c.AnyCommand) -> None:
    if not isinstance(command, c.NodeDown) or before.nodes[command.node_id] == after.nodes[command.node_id]:
        return
    need(before.nodes[command.node_id].session == command.session, "a death of an earlier session (F25)")
    for p, new in enumerate(after.partitions):
        need(new.primary != command.node_id, "section 6: new primaries for all in one entry", p)
        dead = [n for n in new.isr if not is_up(after, n)]
        if command.node_id in before.partitions[p].isr:
            need(not dead or len(new.isr) == new.min_isr, "R3: the dead leave while more than min_isr remain", p, new)


def check_registration(before: ClusterMap, after: ClusterMap, command: c.AnyCommand) -> None:
    if not isinstance(command, c.RegisterNode):
        return
    node = command.node
    need(command.cluster_id == before.cluster_id, "F15: of another cluster")
    was = before.nodes.get(node.node_id)
    if was is None or was.incarnation == node.incarnation:
        return
    for p, (old, new) in enumerate(zip(before.partitions, after.partitions, strict=True)):
        if old.primary == node.node_id:
            need(new.epoch == old.epoch + 1, "R2: a new run is never left in the old epoch (F20)", p)


def check_removal(before: ClusterMap, command: c.AnyCommand, applied: Applied) -> None:
    if not isinstance(command, c.RemoveNode) or applied.refused:
        return
    was = before.nodes[command.node_id]
    need(was.session == command.session, "a removal of an earlier session")
    rest = [n for n in before.nodes.values() if n.node_id != command.node_id and is_up(before, n.node_id)]
    need(any(not node.is_draining for node in rest), "a removal leaves somebody to hold things")
    if sum(1 for node in applied.map.nodes.values() if node.status != NodeStatus.REMOVED) < 3:
        need(all(entry.min_isr == 1 for entry in applied.map.partitions), "two members: one copy is enough")
    for p, entry in enumerate(before.partitions):
        if is_up(before, command.node_id):
            need(command.node_id not in entry.copies, "a living node is emptied before it is removed", p)
        elif command.node_id in entry.isr:
            others = [n for n in entry.isr if n != command.node_id and before.nodes[n].status != NodeStatus.REMOVED]
            need(bool(others) or p in command.empty, "the last copy is not given up", p)
