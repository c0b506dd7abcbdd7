"""Who this node is, what its cluster fixed at birth, and how often it has been started: kept in the store's named values."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred

from tq_node.errors import StoreBroken
from tq_node.store.api import Batch, Store

_KEY = "identity"
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


async def start_incarnation(
    store: Store,
    *,
    node_name: str,
    partition_count: int,
    replication_factor: int,
    random_bytes: Callable[[int], bytes],
    now_us: int,
) -> tuple[Identity, int]:
    """Format the store if it is empty; count this start, durably, before anything is sent. Returns who this is, and the count.

    :raises WrongName: the directory is another node's.
    """
    meta = store.meta()
    writes: dict[str, bytes | None] = {}
    raw = meta.get(_KEY)
    if raw is None:
        identity = Identity(
            random_bytes(16).hex(),
            node_name,
            random_bytes(16).hex(),
            int.from_bytes(random_bytes(4), "big"),
            partition_count,
            replication_factor,
            now_us,
        )
        writes[_KEY] = msgspec.json.encode(identity)
    else:
        try:
            identity = msgspec.json.decode(raw, type=Identity)
        except msgspec.MsgspecError as why:
            raise StoreBroken("the identity in the store can't be read") from why
        if identity.node_name != node_name:
            raise WrongName(f"--data-dir: belongs to node {identity.node_name!r}, not to {node_name!r}")
    incarnation = int(meta.get(_INCARNATION, b"0")) + 1
    writes[_INCARNATION] = str(incarnation).encode()
    done: Deferred[None] = store.commit(Batch(meta=writes))
    await done
    return identity, incarnation
