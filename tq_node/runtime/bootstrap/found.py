"""The first map of a cluster: makes a store that of its first node (replication.md, section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tq_node.cluster.commands import FoundCluster, Registration
from tq_node.cluster.map import EMPTY, apply, encode
from tq_node.cluster.records import ClusterMap, ClusterSettings
from tq_node.limits import CLUSTER_NAME
from tq_node.runtime.bootstrap.identity import Belonging
from tq_node.runtime.control.control_plane import TOKENS_SEEN
from tq_node.runtime.control.raft_driver import HARD_STATE, SNAPSHOT, founding_values
from tq_node.store.api import Store
from tq_node.tokens import TokenEntry
from tq_node.types import Epoch, HandledType, PauseEntry

PAUSED = "paused_queues"
"""The paused queues: where release 0.1 (one node alone) and ``node.restore`` leave them."""

HANDLERS_SEEN = "handlers_seen"
"""There where ``node.restore`` found that a node of the old cluster had handlers of its own."""

TOKENS = "restored_tokens"
"""The access tokens of the old cluster, where ``node.restore`` leaves them."""
_encode_tokens = msgspec.msgpack.Encoder().encode
_decode_tokens = msgspec.msgpack.Decoder(tuple[TokenEntry, ...]).decode


def token_values(tokens: Sequence[TokenEntry]) -> dict[str, bytes | None]:
    """What a store that is to found a cluster holds of access tokens: from its first moment on they
    are checked."""
    return {TOKENS: _encode_tokens(tokens), TOKENS_SEEN: b"1"}


class KeptTypes(msgspec.Struct, frozen=True, array_like=True):
    """What the old cluster knew of types, and of its pauses."""

    put: tuple[HandledType, ...] = ()
    announced: tuple[HandledType, ...] = ()
    pauses: tuple[PauseEntry, ...] = ()


TYPES = "restored_types"
"""``KeptTypes`` of the old cluster, where ``node.restore`` leaves them."""
_encode_types = msgspec.msgpack.Encoder().encode
_decode_types = msgspec.msgpack.Decoder(KeptTypes).decode


def type_values(old: ClusterMap) -> dict[str, bytes | None]:
    """What a store that is to found a cluster holds of types and pauses."""
    return {TYPES: _encode_types(KeptTypes(old.type_settings, old.announced_types, old.pauses))}


def is_founded(meta: Mapping[str, bytes]) -> bool:
    """Whether the store has a cluster map, or Raft state of one."""
    return HARD_STATE in meta or SNAPSHOT in meta


async def first_table(
    store: Store, belonging: Belonging, registration: Registration, voters: int
) -> dict[str, bytes | None]:
    """Named values to be made durable with the node's identity, before Raft starts. A store of
    release 0.1 has led partitions already: its map begins above the epochs that it has promised
    (R6)."""
    birth = belonging.birth
    assert birth is not None, "only the founder writes the first table"
    settings = ClusterSettings(birth.partition_count, birth.replication_factor, birth.seed, voters, belonging.born_us)
    born = apply(EMPTY, 1, FoundCluster(belonging.cluster_id, CLUSTER_NAME, settings, registration))
    assert not born.refused, f"a cluster can't be founded like that: {born.refused}"
    partitions = list(born.map.partitions)
    for known in await store.partitions():
        entry = partitions[known.partition]
        partitions[known.partition] = msgspec.structs.replace(entry, epoch=Epoch(max(entry.epoch, known.promised + 1)))
    paused = msgspec.json.decode(store.meta().get(PAUSED, b"[]"), type=list[str])
    types = _decode_types(store.meta().get(TYPES, _encode_types(KeptTypes())))
    table = msgspec.structs.replace(
        born.map,
        type_settings=types.put,
        announced_types=types.announced,
        pauses=types.pauses,
        partitions=tuple(partitions),
        paused_queues=tuple(sorted(paused)),
        handlers_seen=born.map.handlers_seen or HANDLERS_SEEN in store.meta(),
        tokens=_decode_tokens(store.meta().get(TOKENS, _encode_tokens(()))),
        tokens_seen=TOKENS_SEEN in store.meta(),
    )
    return {
        **founding_values(registration.node_id, encode(table)),
        PAUSED: None,
        HANDLERS_SEEN: None,
        TOKENS: None,
        TYPES: None,
    }
