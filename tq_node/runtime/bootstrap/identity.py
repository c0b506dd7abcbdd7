"""Who this node is, its directory's cluster, its number of starts: the store's named values.

A directory is *formatted* once: node id and name. It *belongs* to a cluster once the node has
founded or joined one, and never to another, whatever ``--join`` says (replication.md, section 2). A
record with both is that of release 0.1, whose node lived alone in the cluster that it founded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from tq_node.errors import StoreBroken
from tq_node.types import NodeId, NodeName

T = TypeVar("T")

SECRET_BYTES = 32
"""Length of a secret that a founder makes."""
_NODE_ID_BYTES = 16
_CLUSTER_ID_BYTES = 16
_SEED_BYTES = 4
_IDENTITY = "identity"
_BELONGING = "belonging"
_INCARNATION = "incarnation"
_COPY = "copy"

RandomBytes = Callable[[int], bytes]
Values = dict[str, bytes | None]
"""Named values to be made durable, for ``Batch.meta``."""


class WrongName(Exception):
    """The data directory belongs to a node of another name. The text is one line."""


class NeverJoined(Exception):
    """The node of this directory never became a member of the cluster it was to join. One line."""


class IsCopy(Exception):
    """This directory was found to be a copy, or an older state, of a member's. One line."""


class NoSecret(Exception):
    """This start lacks the cluster's secret, which is kept elsewhere. The text is one line."""


class Formatted(msgspec.Struct, frozen=True):
    """Whose directory this is, written once. ``node_id``: 128 random bits; the name is a label."""

    node_id: NodeId
    node_name: NodeName


class Birth(msgspec.Struct, frozen=True):
    """The founder's fixed settings, known to others by the map; ``seed``: of ``partition_of``."""

    seed: int
    partition_count: int
    replication_factor: int


class Belonging(msgspec.Struct, frozen=True):
    """Which cluster a directory belongs to.

    ``secret``: None where operators keep it in a file, or certificates stand for it. ``born_us``:
    when this node founded or joined. ``birth``: None in a node that joined. ``is_newborn``: founded
    here, and the birth guard has not passed; durable, so that a restart does not pass it (F15a)."""

    cluster_id: str
    secret: bytes | None
    born_us: int
    birth: Birth | None = None
    is_newborn: bool = False

    def __repr__(self) -> str:
        """Without the secret: this ends up in logs and tracebacks."""
        return f"Belonging({self.cluster_id!r}, born_us={self.born_us}, birth={self.birth}, newborn={self.is_newborn})"


class _Alone(msgspec.Struct, frozen=True):
    """What the identity's record of release 0.1 has besides id and name."""

    cluster_id: str
    seed: int
    partition_count: int
    replication_factor: int
    born_us: int


# --- formatted ---
def new_node(node_name: NodeName, random_bytes: RandomBytes) -> Formatted:
    """A new node; ``next_start`` returns what makes it durable."""
    return Formatted(NodeId(random_bytes(_NODE_ID_BYTES).hex()), node_name)


def formatted_in(meta: Mapping[str, bytes], node_name: NodeName) -> Formatted | None:
    """Whose directory this is; None: nobody's.

    :raises WrongName: another node's.
    :raises StoreBroken: unreadable."""
    raw = meta.get(_IDENTITY)
    if raw is None:
        return None
    formatted = _decoded(raw, Formatted)
    if formatted.node_name != node_name:
        raise WrongName(f"the data directory belongs to node {formatted.node_name!r}, not to {node_name!r}")
    return formatted


def next_start(meta: Mapping[str, bytes], formatted: Formatted) -> tuple[int, Values]:
    """The number of this start, and what must be durable before the node sends anything (F14).

    An identity is not written again: that of release 0.1 says which cluster its node founded.

    :raises StoreBroken: the number of the last start can't be read."""
    try:
        incarnation = int(meta.get(_INCARNATION, b"0")) + 1
    except ValueError as why:
        raise StoreBroken("the number of starts in the store can't be read") from why
    values: Values = {_INCARNATION: str(incarnation).encode()}
    if _IDENTITY not in meta:
        values[_IDENTITY] = msgspec.json.encode(formatted)
    return incarnation, values


def is_copy(meta: Mapping[str, bytes]) -> bool:
    """Whether ``copy_values`` were ever made durable here."""
    return _COPY in meta


def copy_values() -> Values:
    """Mark a directory as a copy for good: its incarnations would shut the original out (F14)."""
    return {_COPY: b"1"}


# --- belonging ---
def belonging_in(meta: Mapping[str, bytes]) -> Belonging | None:
    """The directory's cluster; None: founded or joined none; raises ``StoreBroken``: unreadable."""
    raw = meta.get(_BELONGING)
    if raw is not None:
        return _decoded(raw, Belonging)
    try:
        alone = msgspec.json.decode(meta.get(_IDENTITY, b""), type=_Alone)
    except msgspec.MsgspecError:
        return None
    return Belonging(
        alone.cluster_id, None, alone.born_us, Birth(alone.seed, alone.partition_count, alone.replication_factor)
    )


def founding_identity(
    *, partition_count: int, replication_factor: int, keeps_secret: bool, random_bytes: RandomBytes, now_us: int
) -> Belonging:
    """A new cluster. ``keeps_secret``: in its store; else a file or certificates stand for it."""
    return Belonging(
        cluster_id=random_bytes(_CLUSTER_ID_BYTES).hex(),
        secret=random_bytes(SECRET_BYTES) if keeps_secret else None,
        born_us=now_us,
        birth=Birth(int.from_bytes(random_bytes(_SEED_BYTES), "big"), partition_count, replication_factor),
        is_newborn=True,
    )


def joined(cluster_id: str, secret: bytes | None, now_us: int) -> Values:
    """Durable before the node registers. ``secret``: as handed over; None: a file's, not stored."""
    return belonging_values(Belonging(cluster_id, secret, now_us))


def belonging_values(belonging: Belonging) -> Values:
    return {_BELONGING: msgspec.json.encode(belonging)}


def past_birth_guard(belonging: Belonging) -> Belonging:
    """The record without ``is_newborn``, durable before ready: no later start waits again."""
    return msgspec.structs.replace(belonging, is_newborn=False)


def newborn_again(belonging: Belonging) -> Belonging:
    """The record with ``is_newborn``, durable before the node ends: its next start waits (F15a)."""
    return msgspec.structs.replace(belonging, is_newborn=True)


def with_secret(
    meta: Mapping[str, bytes],
    belonging: Belonging,
    *,
    from_file: bytes | None,
    has_certificates: bool,
    random_bytes: RandomBytes,
) -> tuple[bytes | None, Belonging]:
    """The secret of this start, and the record that the store is to hold from now on.

    A file's secret wins over the store's, so that operators can take it over. A node of release
    0.1 had none, for it lived alone: it gets one now.

    :raises NoSecret: it was in a file, or certificates stood for it, and this start has neither."""
    if from_file is not None:
        return from_file, belonging
    if belonging.secret is not None:
        return belonging.secret, belonging
    if has_certificates:
        return None, belonging
    if _BELONGING in meta:
        raise NoSecret(
            f"--secret-file: is missing, and so are certificates: cluster {belonging.cluster_id}, which this directory "
            "belongs to, does not keep its secret here"
        )
    made = msgspec.structs.replace(belonging, secret=random_bytes(SECRET_BYTES))
    return made.secret, made


def _decoded(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as why:
        raise StoreBroken("the identity in the store can't be read") from why
