"""Who this node is, what its cluster fixed at birth, and how often it has been started: kept in the store's named values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from tq_node.errors import StoreBroken

_IDENTITY = "identity"
_INCARNATION = "incarnation"


class Identity(msgspec.Struct, frozen=True):
    """Written once, when the directory is formatted. ``node_id``: 128 random bits; the name is only a label (section 2)."""

    node_id: str
    node_name: str
    cluster_id: str
    seed: int
    partition_count: int
    replication_factor: int
    born_us: int


class WrongName(Exception):
    """The data directory belongs to a node of another name. The text is one line."""


def make_identity(
    *,
    node_name: str,
    partition_count: int,
    replication_factor: int,
    random_bytes: Callable[[int], bytes],
    now_us: int,
) -> Identity:
    """A new node that founds a cluster of its own."""
    return Identity(
        random_bytes(16).hex(),
        node_name,
        random_bytes(16).hex(),
        int.from_bytes(random_bytes(4), "big"),
        partition_count,
        replication_factor,
        now_us,
    )


def identity_in(meta: Mapping[str, bytes], node_name: str) -> Identity | None:
    """Whose directory this is; None for one that is not formatted yet.

    :raises WrongName: another node's. :raises StoreBroken: it can't be read.
    """
    raw = meta.get(_IDENTITY)
    if raw is None:
        return None
    try:
        identity = msgspec.json.decode(raw, type=Identity)
    except msgspec.MsgspecError as why:
        raise StoreBroken("the identity in the store can't be read") from why
    if identity.node_name != node_name:
        raise WrongName(f"the data directory belongs to node {identity.node_name!r}, not to {node_name!r}")
    return identity


def next_start(meta: Mapping[str, bytes], identity: Identity) -> tuple[int, dict[str, bytes | None]]:
    """The number of the start that begins now, and what must be durable before it sends anything."""
    incarnation = int(meta.get(_INCARNATION, b"0")) + 1
    return incarnation, {_IDENTITY: msgspec.json.encode(identity), _INCARNATION: str(incarnation).encode()}
