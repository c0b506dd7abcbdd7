"""What may stand in an entry of the metadata log. Encoded: a version byte, then msgpack with a
number for the kind.

Nothing in a command is believed because it was proposed: ``map.apply`` checks it against the
cluster map as it is *then*. Hence compare-and-set on ``(epoch, partition_version)``, and
``session`` wherever a node speaks for itself. ``sender`` must be the node that the connection was
authenticated as: the wire checks that, nodes do not lie.

Numbers of kinds and positions of fields are part of the on-disk format. Unknown trailing fields are
skipped; they stay in the log, whose bytes are never made again. An unknown kind cannot be skipped:
the node stops (F44)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from tq_node.cluster.records import (
    ACCESS_LEVEL,
    HANDLERS_LEVEL,
    WORKERS_LEVEL,
    ClusterSettings,
    InvitationEntry,
    NodeEntry,
)
from tq_node.tokens import TokenEntry
from tq_node.types import Epoch, HandledType, HandlerKind, NodeId, NodeName, PartitionId, PauseEntry

FORMAT = 1


class UnreadableCommand(Exception):
    """Damage, or a newer kind of entry. The node stops: to skip it would be divergence (F44)."""


class Value(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A part of a command."""


class Command(msgspec.Struct, frozen=True, array_like=True):
    """One entry of the metadata log."""


class Registration(Value, frozen=True):
    """What a node says of itself. ``nonce``: random, new at each start; ``incarnation``: raised and
    synced at each start. ``handlers`` counts from ``HANDLERS_LEVEL`` on: who joins can't know the
    level before."""

    node_id: NodeId
    name: NodeName
    http: str
    peer: str
    incarnation: int
    nonce: str
    feature_level_min: int
    feature_level_max: int
    handlers: HandlerKind = HandlerKind.UNKNOWN


class Seen(Value, frozen=True):
    """A partition as its proposer saw it, for compare-and-set."""

    partition: PartitionId
    epoch: Epoch
    partition_version: int


class IsrStep(Value, frozen=True):
    partition: PartitionId
    epoch: Epoch
    partition_version: int
    isr: tuple[NodeId, ...]


class MoveStep(Value, frozen=True):
    """``adding`` alone: more copies. ``removing`` alone: fewer. Both: a move."""

    partition: PartitionId
    epoch: Epoch
    partition_version: int
    adding: tuple[NodeId, ...] = ()
    removing: tuple[NodeId, ...] = ()


class PrimaryStep(Value, frozen=True):
    partition: PartitionId
    epoch: Epoch
    partition_version: int
    to: NodeId | None = None


class Led(Value, frozen=True):
    """A partition that the sender leads in this epoch; it steps down whatever else has changed."""

    partition: PartitionId
    epoch: Epoch


# --- nodes ---
class FoundCluster(Command, frozen=True, tag=1):
    """The first entry. ``node`` is registered by it and holds all partitions."""

    cluster_id: str
    name: str
    settings: ClusterSettings
    node: Registration


class RegisterNode(Command, frozen=True, tag=2):
    cluster_id: str
    node: Registration


class NodeDown(Command, frozen=True, tag=3):
    """A node is down. ``reason``: silence (R5), evidence (R5a), or departed: it said so itself."""

    node_id: NodeId
    session: int
    reason: str = ""


class DrainNode(Command, frozen=True, tag=4):
    """Move everything off a node. ``then_remove``: remove it once it is empty. ``by``: name of the
    token that asked for it, from ``ACCESS_LEVEL`` on; so in every order of an operator."""

    node_id: NodeId
    then_remove: bool = False
    by: str = ""


class UndrainNode(Command, frozen=True, tag=5):
    node_id: NodeId
    by: str = ""


class RemoveNode(Command, frozen=True, tag=6):
    """Remove a node that holds no copies, or one that an operator says is lost for good. ``empty``:
    partitions that hold no task by the node's last report; they may start again elsewhere if it
    held their last copy."""

    node_id: NodeId
    session: int
    empty: tuple[PartitionId, ...] = ()
    by: str = ""


# --- partitions ---
class AlterIsr(Command, frozen=True, tag=10):
    """A primary's new in-sync sets for several partitions; each is judged by itself (R4)."""

    sender: NodeId
    session: int
    steps: tuple[IsrStep, ...]


class StepDown(Command, frozen=True, tag=11):
    """A primary that is slow, draining or stopping asks for another."""

    sender: NodeId
    session: int
    led: tuple[Led, ...]


class PlanPrimary(Command, frozen=True, tag=12):
    """Record the next primary: the present one drains and steps down, or stays if it is named."""

    steps: tuple[PrimaryStep, ...]


class ElectPrimary(Command, frozen=True, tag=13):
    """Choose a primary at once: ``to``, or without it the best candidate, as after a death."""

    steps: tuple[PrimaryStep, ...]


class RaiseMinIsr(Command, frozen=True, tag=14):
    """Raise ``min_isr`` to what the number of members asks for, where ``isr`` allows it."""

    seen: tuple[Seen, ...]


class UnsafeRecover(Command, frozen=True, tag=15):
    """An operator's order, outside R1: this node's copy is the partition now. Recorded for ever."""

    partition: PartitionId
    epoch: Epoch
    partition_version: int
    node_id: NodeId
    by: str = ""


# --- moves ---
class BeginMove(Command, frozen=True, tag=20):
    steps: tuple[MoveStep, ...]


class FinishMove(Command, frozen=True, tag=21):
    seen: tuple[Seen, ...]


class AbortMove(Command, frozen=True, tag=22):
    seen: tuple[Seen, ...]


# 23 was ``HandOver``, from before there was replication. The number is not used again: who meets it
# in an old log stops (F44).


# --- the cluster ---
class PauseQueue(Command, frozen=True, tag=30):
    queue: str
    by: str = ""


class ResumeQueue(Command, frozen=True, tag=31):
    queue: str
    by: str = ""


class Rebalance(Command, frozen=True, tag=32):
    """An operator asks for an even spread."""

    by: str = ""


class RebalanceDone(Command, frozen=True, tag=33):
    requested_index: int


class RaiseFeatureLevel(Command, frozen=True, tag=34):
    feature_level: int


class NoteThreeVoters(Command, frozen=True, tag=35):
    """Raft has had three voters: from now on a replacement is promoted only after some health."""


class NoteHandlers(Command, frozen=True, tag=36):
    """A node has handlers of its own: from now on no simulated ones stand in for them."""


# --- who may ---
class PutToken(Command, frozen=True, tag=37):
    """Keep a token; one that has its name ends. From the first one on callers are checked."""

    entry: TokenEntry
    by: str = ""


class RevokeToken(Command, frozen=True, tag=38):
    """End a token."""

    name: str
    by: str = ""


# --- who may join ---
class PutInvitation(Command, frozen=True, tag=39):
    """Keep an invitation for one node. ``now_us``: the proposer's wall clock; expired ones go."""

    entry: InvitationEntry
    now_us: int
    by: str = ""


class TakeInvitation(Command, frozen=True, tag=40):
    """Use an invitation up: of two entries that do, one is refused."""

    hash: bytes
    now_us: int


class NoteCertificate(Command, frozen=True, tag=41):
    """A node has shown this certificate, by its SHA-256: refused once the node is removed."""

    node_id: NodeId
    certificate: bytes


# --- types of tasks, pauses ---
class PutType(Command, frozen=True, tag=44):
    """Set the defaults of a type's tasks, in place of all that an operator set before."""

    entry: HandledType
    by: str = ""


class DeleteType(Command, frozen=True, tag=45):
    """Forget what operators set of a type and what workers announced of it."""

    task_type: str
    by: str = ""


class AnnounceTypes(Command, frozen=True, tag=46):
    """A remote worker says which defaults its handlers have; the latest word on a type counts."""

    types: tuple[HandledType, ...]
    by: str = ""


class Pause(Command, frozen=True, tag=47):
    """Start nothing more of a queue or a type. Of pauses that were over by then nothing is kept."""

    entry: PauseEntry
    by: str = ""


class Resume(Command, frozen=True, tag=48):
    """Take back ``Pause`` and ``PauseQueue``. ``now_us``: the proposer's wall clock."""

    target: str
    name: str
    now_us: int
    by: str = ""


AnyCommand = (
    FoundCluster
    | RegisterNode
    | NodeDown
    | DrainNode
    | UndrainNode
    | RemoveNode
    | AlterIsr
    | StepDown
    | PlanPrimary
    | ElectPrimary
    | RaiseMinIsr
    | UnsafeRecover
    | BeginMove
    | FinishMove
    | AbortMove
    | PauseQueue
    | ResumeQueue
    | Rebalance
    | RebalanceDone
    | RaiseFeatureLevel
    | NoteThreeVoters
    | NoteHandlers
    | PutToken
    | RevokeToken
    | PutInvitation
    | TakeInvitation
    | NoteCertificate
    | PutType
    | DeleteType
    | AnnounceTypes
    | Pause
    | Resume
)

Order = (
    DrainNode
    | UndrainNode
    | RemoveNode
    | UnsafeRecover
    | PauseQueue
    | ResumeQueue
    | Rebalance
    | PutToken
    | RevokeToken
    | PutInvitation
    | PutType
    | DeleteType
    | AnnounceTypes
    | Pause
    | Resume
)
"""What an operator asks for."""

FEATURE_LEVEL_OF: dict[type[Command], int] = {
    NoteHandlers: HANDLERS_LEVEL,
    PutToken: ACCESS_LEVEL,
    RevokeToken: ACCESS_LEVEL,
    PutInvitation: ACCESS_LEVEL,
    TakeInvitation: ACCESS_LEVEL,
    NoteCertificate: ACCESS_LEVEL,
    PutType: WORKERS_LEVEL,
    DeleteType: WORKERS_LEVEL,
    AnnounceTypes: WORKERS_LEVEL,
    Pause: WORKERS_LEVEL,
    Resume: WORKERS_LEVEL,
}
"""Kinds that need more than the first feature level; not proposed before the cluster map has it."""

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes | memoryview], AnyCommand] = msgspec.msgpack.Decoder(AnyCommand).decode


def feature_level_of(command: AnyCommand) -> int:
    return FEATURE_LEVEL_OF.get(type(command), 1)


def ordered_by(order: Order, by: str, feature_level: int) -> Order:
    """The order with the name of the token that asked for it; as it is below ``ACCESS_LEVEL``."""
    return msgspec.structs.replace(order, by=by) if by and feature_level >= ACCESS_LEVEL else order


def sentence_of(order: Order, nodes: Mapping[NodeId, NodeEntry]) -> str:
    """The order in words, without who gave it. ``nodes``: the cluster map's, for their names."""

    def named(node_id: NodeId) -> str:
        return nodes[node_id].name if node_id in nodes else node_id

    match order:
        case DrainNode(node_id, then_remove):
            return f"{'remove' if then_remove else 'drain'} node {named(node_id)}"
        case UndrainNode(node_id):
            return f"let node {named(node_id)} stay"
        case RemoveNode(node_id):
            return f"remove node {named(node_id)}"
        case UnsafeRecover(partition, node_id=node_id):
            return f"recover partition {partition} from node {named(node_id)}, whatever it lacks"
        case PauseQueue(queue):
            return f"pause queue {queue!r}"
        case ResumeQueue(queue):
            return f"resume queue {queue!r}"
        case PutToken(entry):
            return f"keep token {entry.name!r} with roles {', '.join(entry.roles)}"
        case RevokeToken(name):
            return f"end token {name!r}"
        case PutType(entry):
            return f"set defaults of type {entry.type!r}"
        case DeleteType(task_type):
            return f"forget the defaults of type {task_type!r}"
        case AnnounceTypes(types):
            return f"take the defaults of {len(types)} types as a worker has them"
        case Pause(entry):
            return f"pause {entry.target} {entry.name!r}"
        case Resume(target, name):
            return f"resume {target} {name!r}"
        case PutInvitation():
            return "invite a node"
    return "spread the partitions evenly"


def encode(command: AnyCommand) -> bytes:
    return bytes((FORMAT,)) + _encode(command)


def decode(data: bytes) -> AnyCommand:
    """A command out of ``encode``'s bytes; ``UnreadableCommand`` for damage or a newer kind."""
    if data[:1] != bytes((FORMAT,)):
        raise UnreadableCommand(f"format {data[:1].hex() or 'none'}, not {FORMAT}")
    try:
        return _decode(memoryview(data)[1:])
    except msgspec.DecodeError as why:
        raise UnreadableCommand(str(why)) from why
