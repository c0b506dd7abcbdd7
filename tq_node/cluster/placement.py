"""Where a task lives: a pure function of its id, so that the same id meets the same partition on every node."""

from __future__ import annotations

import mmh3


def partition_of(task_id: str, *, seed: int, partition_count: int) -> int:
    """The partition of ``task_id``: murmur3_32 over its UTF-8 bytes, unsigned, modulo the count.

    The function is part of the data format: values are pinned in a test, seed and count are fixed when the cluster is
    born. Source: replication.md, section 9.
    """
    return mmh3.hash(task_id, seed, signed=False) % partition_count
