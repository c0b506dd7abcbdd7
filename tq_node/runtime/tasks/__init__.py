"""The tasks of the partitions that this node leads: submitted, claimed, run, ended, purged.

How it is driven: ``open_local_queue`` recovers what is on disk and puts the parts together;
``LocalQueue.follow`` says which partitions to lead; replication reports what is committed, applied,
activated and stepped down from (``ReplicaEvents``).

What always holds: a row changes only while it is in memory here, and only through ``TaskTable``.
Nobody is answered before what the answer says is committed (R11). Only rows of partitions that are
led and active here are in memory (R12).

What it never does: it sends nothing to other nodes and knows no cluster map. A call about a
partition that this node does not lead fails as ``NotPrimary``; ``runtime.routing`` finds the
primary."""
