"""The cluster map: who is a member, which nodes hold which partition, and what should change next.

Pure: nothing here has a clock, a disk or a socket. The map is the state machine of the metadata log
that ``raft`` replicates. Its driver must

1. call ``map.apply`` with each committed entry, in order, on every node: it returns the next map,
   or the map as it was and a ``Refusal``;
2. on every member feed ``liveness.Liveness`` with heartbeats, evidence and each new map;
3. at the leader, at each tick and after each new map, call ``controller.decide`` and propose what
   it returns: commands for the log, and at most one change of the Raft group's voters;
4. for an operator's call take the command from ``admin_requests`` and propose it;
5. stop the process on ``UnreadableMap``: the map is damaged or of a newer feature level (F44).

Words: a *member* is a node that registered and was not removed; its *session* numbers its runs. A
partition's *copies* hold it, its *in-sync set* is what commits wait for, its *successor* is the
next primary by plan. *Evidence* is a voter's report of a death (R5a), *silence* the lack of
heartbeats (R5). docs/explanation/cluster.md tells it in order, replication.md has the rules R1 to
R5.

What always holds: ``apply`` is total and deterministic, so equal logs make equal maps; commands are
compare-and-set against the map at the moment they are applied; a primary is in its in-sync set, and
the set is never smaller than ``min_isr`` (I3); every move's intent is in the map, so that any later
leader goes on with it (F27).

What it never does: rest safety on liveness (a wrong death costs availability, never data), remember
between two calls of ``decide``, or trust a command because it was proposed."""
