"""The control plane of a node: the Raft group that agrees on the cluster map, and this node's part
in the cluster.

``ControlPlane`` assembles it. It is driven by peers (it is the handler of ``wire``), by time, and
by proposals; it reports changes of the map to the node through ``Outside``.

What always holds: the map changes only by committed entries, in one order on all nodes. A node is
dead by evidence or silence, but another leads its partitions only once the map says so (R2, R5,
R5a). What comes from a node that is no member has no effect.

It never touches a task, and sees partitions only as records of the map."""
