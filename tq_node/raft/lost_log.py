"""What this node is said to have acknowledged, and does not have: by such a claim it gives no vote
that could do harm (F14).

A leader tells a follower of no commit beyond what that follower has acknowledged. If it does,
either this node's disk shows an older state than it once had, or the leader lies, or is no leader.
Which of them can't be told here, so the claim neither marks the store nor ends the process. But
should it be true, then a vote for a log that lacks the entry could lose it for good. So this node
votes as if its log ended where the claim says, does not campaign, and asks the leader to send again
what is missing.

Only what an earlier run of this node acknowledged can be lost so. Once this run has taken entries
of a leader, what leaders of later terms count on was acknowledged by this very run, which knows
better: such a claim is shown and logged, and binds nothing.

A claim is settled once an entry agrees: the log has come to the place that was claimed, as the
leader of that term or a later one has it; or it holds an entry of a later term, and with it all
that was committed before. It is also settled once no other voter has more than this one: each has
granted a pre-vote that was asked for since, or has asked for a vote itself, in a later term, with a
log that ends before that place. Then nobody committed the entry, and to wait for it would only give
one liar the power to stop elections. It is not kept over a restart: what an older disk does before
a leader has spoken to it nobody can help, and so an operator can end a claim that stays open."""

from __future__ import annotations

import msgspec

from tq_node.raft.messages import Vote
from tq_node.raft.state import NodeState
from tq_node.types import NodeId


class Claim(msgspec.Struct, frozen=True):
    """``source``, as leader of ``term``, says that this node had acknowledged ``log_index``."""

    source: NodeId
    term: int
    log_index: int
    binds: bool = True
    """It may be true: an earlier run of this node may have said so."""

    @property
    def place(self) -> tuple[int, int]:
        """As the end of a log: the entry may be of an earlier term, never of a later one."""
        return self.term, self.log_index


class LostLog:
    def __init__(self, state: NodeState) -> None:
        self._state = state
        self.claim: Claim | None = None
        self._agreed_term = 0
        """Of the latest leader whose entries this run has taken, or that it was itself."""
        self._without: set[NodeId] = set()
        """Other voters whose log, as they have shown since, ends before the claim."""

    def claimed(self, source: NodeId, term: int, log_index: int) -> None:
        """``term``'s leader counts on more than there is. The furthest credible claim counts."""
        claim = Claim(source, term, log_index, binds=self.may_bind(term))
        known = self.claim
        if known is None or (claim.binds, claim.place) > (known.binds, known.place):
            self.claim = claim
            self._without.clear()

    def may_bind(self, term: int) -> bool:
        return not 0 < self._agreed_term < term

    def may_vote_for(self, message: Vote) -> bool:
        """Would a log that ended at the claim let it win (3.6.1)? Pre-votes promise nothing."""
        claim = self.claim
        if claim is None or not claim.binds or message.pre:
            return True
        return (message.last_log_term, message.last_log_index) >= claim.place

    def may_campaign(self) -> bool:
        """For real. It may ask for pre-votes, and so shows the others how far its log goes."""
        return self.claim is None or not self.claim.binds

    def saw_grants(self, granted: set[NodeId]) -> None:
        """To a pre-vote that was asked for after the claim."""
        if self.claim is not None and granted.issuperset(self._others()):
            self.settle()

    def _others(self) -> list[NodeId]:
        return [node for node in self._state.voters if node != self._state.me]

    def saw_candidate(self, message: Vote) -> None:
        """Of a later term, in which it can't acknowledge anything to the claim's leader."""
        claim = self.claim
        if claim is None or message.term - message.pre <= claim.term:
            return
        if (message.last_log_term, message.last_log_index) >= claim.place:
            self._without.discard(message.source)
            return
        self._without.add(message.source)
        if self._without.issuperset(self._others()):
            self.settle()

    def saw_agreement(self, term: int, log_index: int) -> None:
        """The log is, up to here, that of the leader of ``term``."""
        self._agreed_term = max(self._agreed_term, term)
        claim = self.claim
        if claim is None:
            return
        is_there = not claim.binds or (term >= claim.term and log_index >= claim.log_index)
        if is_there or (self._state.log.term(log_index) or 0) > claim.term:
            self.settle()

    def settle(self) -> None:
        self.claim = None
        self._without.clear()
