"""One core among peers that the test plays itself: messages in, messages out, a disk that answers when it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from tq_node.raft.core import RaftCore, founding
from tq_node.raft.messages import (
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Persisted,
    Ready,
    Snapshot,
    Vote,
    VoteReply,
)
from tq_node.raft.settings import RaftSettings
from tq_node.types import NodeId

A, B, C, D, E = (NodeId(name) for name in "abcde")
Kind = TypeVar("Kind", bound=Message)


def entry(term: int, log_index: int, data: bytes = b"") -> Entry:
    return Entry(term, log_index, EntryKind.DATA, data or b"%d/%d" % (log_index, term))


def core_of(
    *terms: int,
    voters: Sequence[NodeId] = (A, B, C),
    learners: Sequence[NodeId] = (),
    me: NodeId = A,
    vote: NodeId | None = None,
    term: int | None = None,
    settings: RaftSettings | None = None,
) -> RaftCore:
    """Node ``me`` with entries of these terms behind the founding one (which is at index 1, term 1), all durable."""
    _, snapshot = founding(voters)
    snapshot = replace(snapshot, configuration=Configuration(tuple(voters), tuple(learners)))
    return RaftCore(
        me,
        Persisted(
            HardState(max((1, *terms)) if term is None else term, vote),
            snapshot,
            tuple(entry(each, index) for index, each in enumerate(terms, 2)),
        ),
        seed=7,
        settings=settings or RaftSettings(),
    )


def drain(core: RaftCore) -> tuple[list[Message], list[Ready]]:
    """Do what the driver does, with a disk that answers at once."""
    messages: list[Message] = []
    readies: list[Ready] = []
    while core.has_ready:
        ready = core.ready()
        core.persisted(ready.number)
        messages += (*ready.messages, *ready.messages_after_persist)
        readies.append(ready)
    return messages, readies


def said(core: RaftCore) -> list[Message]:
    return drain(core)[0]


def only(messages: Sequence[Message], kind: type[Kind]) -> list[Kind]:
    return [message for message in messages if isinstance(message, kind)]


def step(core: RaftCore, message: Message, now_ms: int = 0) -> list[Message]:
    core.step(message, now_ms)
    return said(core)


def tick(core: RaftCore, count: int = 1) -> list[Message]:
    messages: list[Message] = []
    for _ in range(count):
        core.tick(0)
        messages += said(core)
    return messages


def lead(core: RaftCore, *supporters: NodeId) -> list[Message]:
    """Win an election by these votes. Returns what the new leader says first."""
    core._election.campaign()
    said(core)
    for node in supporters:
        step(core, VoteReply(node, core.me, core.term + 1, granted=True, pre=True))
    messages: list[Message] = []
    for node in supporters:
        messages += step(core, VoteReply(node, core.me, core.term, granted=True))
    assert core.is_leader
    return messages


def acknowledge(core: RaftCore, *nodes: NodeId) -> list[Message]:
    """These followers have everything."""
    messages: list[Message] = []
    for node in nodes:
        messages += step(core, AppendReply(node, core.me, core.term, core.log.last_index))
    return messages


def leader_of(*terms: int, **options: Any) -> RaftCore:
    """A leader whose no-op is committed."""
    core = core_of(*terms, **options)
    others = [node for node in core.configuration.voters if node != core.me]
    lead(core, *others[: len(core.configuration.voters) // 2])
    acknowledge(core, *others, *core.configuration.learners)
    return core


def hear(core: RaftCore, leader: NodeId = B, commit_index: int = 0) -> list[Message]:
    return step(core, Heartbeat(leader, core.me, core.term, commit_index, 1))


def answer(core: RaftCore, node: NodeId, round_: int) -> list[Message]:
    """To a heartbeat of this round, which is begun if it was not."""
    while core.is_leader and core._reads.round < round_:
        core._reads.begin_round()
        said(core)
    return step(core, HeartbeatReply(node, core.me, core.term, round_))


def asks(
    core: RaftCore, source: NodeId, *, term: int, log: tuple[int, int] = (99, 99), pre: bool = False
) -> VoteReply | None:
    """What a candidate hears from ``core``: a reply, or None."""
    replies = only(step(core, Vote(source, core.me, term, *log, pre)), VoteReply)
    return replies[0] if replies else None


EMPTY = Snapshot()
