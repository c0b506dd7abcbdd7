"""Replicates the partitions of this node: joins the pure cores of ``tq_node.partition`` to store,
peers and clock.

``Replication`` is the way in. It is given the recovered ``Replicas``, the link to peers and the
node's ``ReplicaEvents`` (``ports``), and is driven by records of the cluster map (``follow``), by
peers (``connected``, ``received``, ``asked``), by time (``round``) and by proposals
(``driver.propose``).

What always holds: an entry is reported committed before any caller is answered, and no
acknowledgement leaves before what it acknowledges is durable (R8, R16). Events of one partition
arrive in the order of its log. After a failure of the store nothing leaves any more (R18).

It never reads what is in a task, decides nothing about leadership (the controller does), and knows
neither tasks nor routing."""
