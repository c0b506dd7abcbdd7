"""Settings of one node's queue, from the node's options and its store (composition root)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tq_node import limits
from tq_node.facade import TypeDefaults
from tq_node.types import NodeId


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the queue. ``incarnation``: this start's number. ``seed``, ``partition_count``:
    fixed at the founding."""

    node_id: NodeId
    node_name: str
    incarnation: int
    seed: int
    partition_count: int = limits.PARTITIONS_DEFAULT
    born_us: int = 0
    """When the cluster was founded; nothing is older, so the horizon begins there (section 9)."""
    retention_ms: int = limits.RETENTION_S * 1000
    dedupe_window_ms: int = limits.DEDUPE_WINDOW_S * 1000
    disk_free_bytes_min: int = limits.MIN_FREE_DISK_BYTES
    copy_rate_bytes_s: int = limits.COPY_RATE_BYTES_S
    snapshot_dir: str = ""
    snapshots_kept: int = limits.SNAPSHOTS_KEPT
    defaults_of: Callable[[str], TypeDefaults]
    """The defaults of a type's tasks."""
    declared_queues: Callable[[], frozenset[str]] = frozenset
    """Queues that handlers or operators name: open to tasks however many others there are."""
    counts_makers: Callable[[], bool] = lambda: False
    """Whether callers need tokens: then it is counted what each has open."""
    random_bytes: Callable[[int], bytes]
    """For the ids that the node makes."""
    draw: Callable[[], float]
    """Random numbers in [0, 1), for back-off."""
