"""Where a call goes: to the primary of the task's partition, at this node or over the wire.

How it is driven: the composition root makes a ``Node``, from whose ``state`` and ``work`` a
``ClusterAdmin`` and a ``ClusterQueue``, the implementation of ``facade.TaskQueue``. The control
plane calls the ``Node`` back when the cluster map, the peers or their handlers change.

What always holds: a call travels one hop at most, and whoever serves it looks only at its own
partitions. A call that may have been done is never sent again, unless doing it twice does nothing
(section 9).

What it never does: it decides nothing about tasks, replication or membership; those have rooms of
their own."""
