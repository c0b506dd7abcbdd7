"""A node in its cluster: registers, sends heartbeats, reports deaths, is controller as leader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cluster import commands
from tq_node.cluster.commands import AnyCommand, FoundCluster, NodeDown, RegisterNode, Registration
from tq_node.cluster.controller import Decision, decide
from tq_node.cluster.liveness import Evidence, Health, Liveness
from tq_node.cluster.map import ClusterMap
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.settings import DEFAULT_SETTINGS
from tq_node.cluster.voters import RaftView, VoterChange, VoterChangeKind
from tq_node.errors import NoController, TaskQueueError
from tq_node.raft.messages import Change, ChangeKind, SoftState
from tq_node.raft.settings import NotLeader
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.control.failure_detector import FailureDetector
from tq_node.runtime.control.map_machine import ClusterMachine
from tq_node.runtime.control.raft_driver import RaftDriver
from tq_node.runtime.control.registration import (
    COMMANDS,
    OUTCOMES,
    PROPOSE_S,
    Addresses,
    Outcome,
    Registrar,
    Welcomed,
    check_registration,
    check_whole,
)
from tq_node.runtime.control.shown_certificates import ShownCertificates
from tq_node.types import Announced, NodeId, NodeName
from tq_node.wire import commands as wire
from tq_node.wire.codec import Codec
from tq_node.wire.errors import MalformedBox
from tq_node.wire.handshake import LocalIdentity, PeerIdentity
from tq_node.wire.pool import Member, PeerPool

_log = Logger(namespace="taskqueue.membership")

HEARTBEAT_S = 0.25
BEATS_TO_FOLLOWERS = 2
"""Nodes that don't lead get each second heartbeat: the leader alone judges by them (R5)."""
CONTROLLER_S = DEFAULT_SETTINGS.decide_ms / 1000
PLAN_REST_MS = 1_000
"""Longest rest of the controller from plans while nothing changes; it always looks for deaths."""
DEPART_S, DEPART_LOOK_S = 0.5, 0.01
"""How long a node that stops waits for the map to have it as down, and how often it looks."""
DEPARTED = "departed"
ASK_MEMBERS_EVERY_MS = 2_000


class Beat(msgspec.Struct, frozen=True, array_like=True):
    """A heartbeat, in the sender's session. ``handlers_serial`` rises with each change of the
    sender's handlers in the session. ``handlers`` is sent until the receiver has confirmed it, and
    when it asks (``WANTS_HANDLERS``)."""

    session: int
    table_index: int
    health: Health
    handlers_serial: int = 0
    handlers: Announced | None = None


BEATS: Codec[Beat] = Codec(Beat)
WANTS_HANDLERS = b"?"
"""Answer to a beat whose sender's handlers are not known here."""
EVIDENCES: Codec[Evidence] = Codec(Evidence)
_CHANGES = {
    VoterChangeKind.ADD_LEARNER: ChangeKind.ADD_LEARNER,
    VoterChangeKind.PROMOTE: ChangeKind.PROMOTE,
    VoterChangeKind.DEMOTE: ChangeKind.DEMOTE,
    VoterChangeKind.REMOVE: ChangeKind.REMOVE,
}


class RestOfNode(Protocol):
    """What membership asks of the rest of the node, and reports to it."""

    def health(self) -> Health:
        """Asked before each heartbeat."""

    def refused(self, refusal: Refusal) -> None:
        """The cluster refuses this node: called once."""

    def handlers_heard(self) -> None:
        """A node has announced which handlers it has now."""


@dataclass(frozen=True, slots=True)
class MapLog:
    """The Raft log of the cluster map, and the map machine that the log is applied to."""

    raft: RaftDriver
    machine: ClusterMachine


class Membership:
    """Keeps this node a member of its cluster; decides as the controller while it leads the Raft
    group.

    :param registration: what this node says of itself; its nonce is of this start."""

    def __init__(
        self,
        local: LocalIdentity,
        registration: Registration,
        log: MapLog,
        pool: PeerPool,
        clock: Clock,
        outside: RestOfNode,
    ) -> None:
        self.local = local
        self.me = local.node_id
        self.registration = registration
        self.liveness = Liveness(clock.now_ms())
        self.waiting: dict[int, str] = {}
        """Why partitions that should move do not; known at the leader only."""
        self._machine = log.machine
        self._raft = log.raft
        self._pool = pool
        self._clock = clock
        self._outside = outside
        self._handlers = Announced(registration.handlers)
        self._handlers_serial = 1
        self._announced_to: dict[NodeId, tuple[int, int]] = {}
        """(session, serial) of the newest handlers that each node has confirmed."""
        self._evidence = FailureDetector(self.me, pool, clock, self.session_of, self._report)
        self._pending: dict[int, AnyCommand] = {}
        self._pending_serial = 0
        self._beats_in_flight: set[NodeId] = set()
        self._beats = 0
        self._change_pending = False
        self._leader: NodeId | None = None
        self._control_timer = clock.timer(self._control)
        self._loops: list[Loop] = []
        self._seeds: Addresses = ()
        self._asked_ms = clock.now_ms() - ASK_MEMBERS_EVERY_MS
        self._stopped = False
        self._departs = False
        self._up: set[NodeId] = set()
        self._rested: ClusterMap | None = None
        """The newest map for which the controller had nothing to do for any partition."""
        self._rested_view: tuple[RaftView, frozenset[NodeId]] | None = None
        """The Raft group, and the nodes that could not lead, when ``_rested`` was looked at."""
        self._planned_ms = 0
        self.registrar = Registrar(self, log.raft, pool, outside.refused)
        self._pauses: set[IDelayedCall] = set()
        self.shown = ShownCertificates(local.node_id)

    # --- life ---
    def start(self) -> None:
        self.registrar.start()
        self._loops.append(self._clock.every(HEARTBEAT_S, self._beat_by_time, "a heartbeat"))
        self._loops.append(self._clock.every(CONTROLLER_S, self._control, "the controller"))

    async def stop(self) -> None:
        self._stopped = True
        self._control_timer.cancel()
        await self._evidence.stop()
        for pause in list(self._pauses):
            pause.reset(0)
        await self.registrar.stop()
        for loop in self._loops:
            loop.stop()
            await loop.ended

    async def depart(self) -> None:
        """Have the map say that this run has ended, so that nobody waits for this copy while its
        death is still being proven.

        In order only: others lead by now what this node led. Left undone where nobody would be
        left, or nobody takes it up in time: then the others see its port refuse (R5a). It is as
        safe as any other word of death (R2, R3, R12, R13)."""
        others = [node for node in self.map.members() if node.is_up and node.node_id != self.me]
        if not (others and self.is_registered):
            return
        self._departs = True
        proposed = Deferred.fromCoroutine(self.propose(NodeDown(self.me, self.session_of(self.me), DEPARTED)))
        proposed.addErrback(lambda why: why.trap(TaskQueueError, CancelledError) and None)
        for _ in range(round(DEPART_S / DEPART_LOOK_S)):
            if proposed.called:
                return
            await self.pause(DEPART_LOOK_S)
        proposed.cancel()

    @property
    def map(self) -> ClusterMap:
        return self._machine.map

    def session_of(self, node: NodeId) -> int:
        entry = self.map.nodes.get(node)
        return 0 if entry is None else entry.session

    @property
    def is_registered(self) -> bool:
        """Whether the cluster map has this run of the node, and has it as up."""
        entry = self.map.nodes.get(self.me)
        return entry is not None and entry.nonce == self.registration.nonce and entry.is_up

    def pause(self, seconds: float) -> Deferred[None]:
        """Fire after ``seconds``, or at once when the node stops."""
        done: Deferred[None] = Deferred()

        def over() -> None:
            self._pauses.discard(call)
            done.callback(None)

        call = self._clock.call_later(seconds, over)
        self._pauses.add(call)
        return done

    # --- proposing ---
    async def propose(self, command: AnyCommand) -> Outcome:
        """Propose a command, here or through the leader; return once it is applied where it was
        proposed.

        :raises TableRefused: the map refused the whole of it.
        :raises NoController: nothing was done.
        :raises OutcomeUnknown:"""
        outcome = await self.have_proposed(commands.encode(command))
        check_whole(outcome)
        return outcome

    async def have_proposed(self, data: bytes) -> Outcome:
        """Propose an encoded command; see ``propose``. What the map refused is in the outcome."""
        if self._raft.core.is_leader:
            log_index = await self._raft.propose(data)
            return Outcome(log_index, self._machine.outcome(log_index))
        leader = self._raft.core.leader
        if leader is None:
            raise NoController("there is no leader")
        return OUTCOMES.decode(await self._pool.ask(leader, wire.Propose, data, PROPOSE_S))

    async def proposed_by(self, peer: PeerIdentity, data: bytes) -> bytes:
        """Propose a member's command: one hop only.

        :raises NoController: this node does not lead.
        :raises MalformedBox:"""
        command = COMMANDS.decode(data)
        if isinstance(command, FoundCluster):
            raise MalformedBox("this cluster has been founded")
        if isinstance(command, RegisterNode):
            check_registration(peer, command, self.map)
        speaker = command.node_id if isinstance(command, NodeDown) else getattr(command, "sender", peer.node_id)
        if speaker != peer.node_id:
            raise MalformedBox(f"node {peer.name} can't speak for another")
        if not self._raft.core.is_leader:
            raise NotLeader(self._raft.core.leader)
        return OUTCOMES.encode(await self.have_proposed(data))

    # --- whom to dial ---
    def welcomed(self, welcome: Welcomed) -> None:
        """Dial the members a joiner has learnt of: answers need lanes before the map arrives."""
        self.seed(welcome.members)

    def seed(self, addresses: Addresses) -> None:
        """Dial these too until this run is registered: no entry is known committed before."""
        # Who answers may know less than this node: one just restarted knows the founder only.
        self._seeds = tuple({one[0]: one for one in (*self._seeds, *addresses)}.values())
        self._dial()

    def _dial(self) -> None:
        members = {i: Member(NodeId(i), NodeName(name), peer) for i, name, peer in self.addresses()}
        if not self.is_registered:
            members |= {i: Member(NodeId(i), NodeName(name), peer) for i, name, peer in self._seeds}
        self._pool.set_members(members.values())

    def is_seed(self, node: NodeId) -> bool:
        """Whether a member has named the node as one: the map here may be late."""
        return any(one[0] == node for one in self._seeds)

    def met_unknown_node(self) -> None:
        """A node that is not known here has sent a message: ask a member who the members are, at
        most each ``ASK_MEMBERS_EVERY_MS``."""
        now_ms = self._clock.now_ms()
        if self._stopped or now_ms - self._asked_ms < ASK_MEMBERS_EVERY_MS:
            return
        self._asked_ms = now_ms
        Deferred.fromCoroutine(self.registrar.ask_who_is_a_member()).addErrback(
            lambda why: _log.failure("could not ask who is a member", failure=why, event="ask_failed")
        )

    def known(self) -> list[NodeId]:
        """Ids of the members that this node keeps connections to."""
        return sorted({NodeId(node) for node, _, _ in (*self.addresses(), *self._seeds)} - {self.me})

    def addresses(self) -> Addresses:
        """(id, name, address) of all members in the cluster map."""
        return tuple((str(node.node_id), str(node.name), node.peer) for node in self.map.members())

    @property
    def is_connected(self) -> bool:
        """Whether any other member is connected."""
        return any(self._pool.is_connected(node) for node in self.known())

    # --- heartbeats ---
    def announce(self, handlers: Announced) -> None:
        """Announce this node's handlers to all members at once."""
        if handlers != self._handlers:
            self._handlers = handlers
            self._handlers_serial += 1
            self.registration = msgspec.structs.replace(self.registration, handlers=handlers.kind)
            self._beat(to_all=True)

    def _beat_by_time(self) -> None:
        self._beats += 1
        self._beat(to_all=self._beats % BEATS_TO_FOLLOWERS == 0)

    def _beat(self, *, to_all: bool) -> None:
        """Send a heartbeat to the leader, or to all members; to all while no leader is known."""
        if not self.is_registered:
            return
        serial = self._handlers_serial
        beat = Beat(self.session_of(self.me), self._raft.applied_index, self._outside.health(), serial)
        self.liveness.record_heartbeat(self.me, self._clock.now_ms(), beat.table_index, beat.health)
        if self.liveness.lacks_handlers(self.me, serial):
            self._note_handlers(self.me, msgspec.structs.replace(beat, handlers=self._handlers))
        body, whole = BEATS.encode(beat), b""
        leader = None if to_all else self._raft.core.leader
        for node in self.map.members():
            if (
                node.node_id != self.me
                and leader in (None, node.node_id)
                and node.node_id not in self._beats_in_flight
                and self._pool.is_connected(node.node_id)
            ):
                self._beats_in_flight.add(node.node_id)
                told = node.session, serial
                if self._announced_to.get(node.node_id) == told:
                    asked = self._pool.ask(node.node_id, wire.Heartbeat, body, 1.0)
                else:
                    whole = whole or BEATS.encode(msgspec.structs.replace(beat, handlers=self._handlers))
                    asked = self._pool.ask(node.node_id, wire.Heartbeat, whole, 1.0)
                asked.addBoth(self._beat_answered, node.node_id, told)
        self._repeat_evidence()

    def _beat_answered(self, answer: object, node: NodeId, told: tuple[int, int]) -> None:
        self._beats_in_flight.discard(node)
        if answer == WANTS_HANDLERS:
            self._announced_to.pop(node, None)
        elif isinstance(answer, bytes):
            self._announced_to[node] = told

    def _note_handlers(self, node: NodeId, beat: Beat) -> None:
        if beat.handlers is not None and self.liveness.lacks_handlers(node, beat.handlers_serial):
            self.liveness.record_handlers(node, beat.handlers_serial, beat.handlers)
            self._outside.handlers_heard()
            self.control_soon()

    def heartbeat_of(self, peer: PeerIdentity, body: bytes) -> bytes:
        beat = BEATS.decode(body)
        if beat.handlers is not None and len(beat.handlers.handled) > limits.HANDLED_TYPES_MAX:
            raise MalformedBox(f"a node with handlers for {len(beat.handlers.handled)} types")
        if beat.session == self.session_of(peer.node_id):
            self.liveness.record_heartbeat(peer.node_id, self._clock.now_ms(), beat.table_index, beat.health)
            self._note_handlers(peer.node_id, beat)
            if self.liveness.lacks_handlers(peer.node_id, beat.handlers_serial):
                return WANTS_HANDLERS
        return b""

    # --- deaths ---
    def lane_up(self, peer: PeerIdentity) -> None:
        self.registrar.let_in_by(peer.node_id)
        if self._evidence.lane_up(peer):
            self.liveness.withdraw_evidence(self.me, peer.node_id)

    def lane_lost(self, peer: PeerIdentity, *, broke: bool) -> None:
        self._evidence.lane_lost(peer, broke=broke)

    def _report(self, evidence: Evidence) -> None:
        known = self.map.nodes.get(evidence.about)
        name = evidence.about if known is None else known.name
        _log.info("node {node} is gone: its port refuses", node=name, event="death_seen")
        self.liveness.add_evidence(evidence)
        self._raft.leader_died(evidence.about)
        self._repeat_evidence()
        self.control_soon()

    def _repeat_evidence(self) -> None:
        leader = self._raft.core.leader
        for evidence in self._evidence.found:
            entry = self.map.nodes.get(evidence.about)
            if entry is None or not entry.is_up or entry.session != evidence.about_session:
                self._evidence.forget(evidence.about)
            elif leader == self.me:
                self.liveness.add_evidence(evidence)
            elif leader is not None:
                self._pool.ask(leader, wire.Evidence, EVIDENCES.encode(evidence), 1.0).addErrback(lambda _: None)

    def evidence_of(self, peer: PeerIdentity, body: bytes) -> bytes:
        evidence = EVIDENCES.decode(body)
        if evidence.reporter == peer.node_id and evidence.about in self.map.nodes:
            self.liveness.add_evidence(evidence)
            self.control_soon()
        return b""

    # --- what Raft and the table say ---
    def soft_state_changed(self, state: SoftState) -> None:
        if state.leader != self._leader:
            self._leader = state.leader
            if state.leader == self.me:
                self.liveness.lead(self._clock.now_ms())
                _log.info("this node leads in term {term}", term=state.term, event="leader_changed")
            self._repeat_evidence()
            self.control_soon()

    def map_changed(self) -> None:
        """Follow the new map: dial its members, drop connections to the dead, decide anew."""
        self._check_own_entry()
        self._disconnect_dead()
        self.liveness.follow(self.map, self._clock.now_ms())
        self._dial()
        session = self.session_of(self.me) if self.is_registered else 0
        if session > self.local.session:
            self.local.session = session
            self._pool.announce()
        self.control_soon()

    def _disconnect_dead(self) -> None:
        """Disconnect nodes newly down by the map: their answers would be waited for in vain."""
        up = {node.node_id for node in self.map.nodes.values() if node.is_up}
        for node_id in sorted(self._up - up):
            if node_id != self.me:
                self._pool.hang_up(node_id, "the table has the node as down")
        self._up = up

    def _check_own_entry(self) -> None:
        """Act on what the map has of this node: removed, cloned, or declared dead."""
        entry = self.map.nodes.get(self.me)
        if entry is None:
            return
        if not entry.is_member:
            self.registrar.refused(Refusal.REMOVED)
        elif entry.incarnation > self.registration.incarnation:
            self.registrar.refused(Refusal.STORE_CLONED)  # a copy of this directory runs somewhere (F14)
        elif entry.nonce == self.registration.nonce and not entry.is_up and not self._departs:
            # Taken for dead, it lives: a new session, and new epochs for what it will lead (R2).
            self.registrar.start()

    # --- the controller ---
    def control_soon(self) -> None:
        """Let the controller decide in the next turn, as something has changed."""
        if not self._stopped:
            self._control_timer.start()

    def _control(self) -> None:
        core = self._raft.core
        if self._stopped or not core.is_leader or not core.state.own_term_committed():
            return
        now_ms = self._clock.now_ms()
        self.liveness.tick(now_ms)
        # Where nothing was to be done, and nothing has changed but the time, partitions and voters
        # are looked at less often.
        view = self._view()
        looked_at = view, self.liveness.unfit()
        rests = (
            self.map is self._rested
            and looked_at == self._rested_view
            and now_ms - self._planned_ms < PLAN_REST_MS
            and not self._pending
        )
        decision = decide(self.map, self.liveness, view, now_ms, pending=tuple(self._pending.values()), plan=not rests)
        if not rests:
            self.waiting = decision.waiting
            self._planned_ms = now_ms
            is_calm = not decision.commands and decision.voter_change is None
            self._rested, self._rested_view = self.map if is_calm else None, looked_at
        self._carry_out(decision)
        certificate = self.shown.unnoted(self.map)
        if certificate is not None and certificate not in self._pending.values():
            self._propose_decided(certificate)

    def _view(self) -> RaftView:
        core = self._raft.core
        configuration = core.configuration
        caught_up = tuple(node for node, status in sorted(self._raft.followers().items()) if status.is_caught_up)
        return RaftView(self.me, configuration.voters, configuration.learners, caught_up, self._change_pending)

    def _carry_out(self, decision: Decision) -> None:
        for command in decision.commands:
            self._propose_decided(command)
        if decision.voter_change is not None:
            self._grant(decision.voter_change)

    def _propose_decided(self, command: AnyCommand) -> None:
        self._pending_serial += 1
        serial = self._pending_serial
        self._pending[serial] = command
        self._raft.propose(commands.encode(command)).addBoth(self._settled, serial)

    def _settled(self, result: object, serial: int) -> None:
        self._pending.pop(serial, None)
        if isinstance(result, Failure) and not result.check(TaskQueueError):
            _log.failure("a decision could not be proposed", failure=result, event="decision_failed")

    def _grant(self, change: VoterChange) -> None:
        if change.kind is VoterChangeKind.TRANSFER:
            try:
                self._raft.transfer_leadership(change.node)
            except TaskQueueError:
                return
            return
        self._change_pending = True

        def over(result: object) -> None:
            self._change_pending = False
            self.control_soon()

        self._raft.propose_change(Change(_CHANGES[change.kind], change.node)).addBoth(over)
