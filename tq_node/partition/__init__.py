"""The data plane of one partition: primary/backup replication of its log, and its tasks' lifecycle.

Pure: nothing here has a clock, a disk, a socket or a random source, and all calls come from one
thread. ``core.PartitionCore`` is one node's copy of one partition. Its driver must

1. build it from what the store has (``replica_log.Stored``) and call ``follow`` with each version
   of the cluster map's record, in order, and whenever only ``up`` changes;
2. call ``connected``, ``disconnected`` and ``receive`` as peers come, go and send, and ``tick``
   about every 50 ms;
3. after every call take ``outbox()`` while ``has_outbox``: send ``messages``, hand ``committed`` to
   the rows, then handle ``events``, pass ``steps`` to the controller and ``requests`` to the store;
4. while ``has_ready`` take ``ready()`` and do what ``effects.Ready`` says, in its order: send,
   write in one transaction, call ``persisted``, then send ``messages_after``;
5. answer each ``StoreRequest`` by ``log_read``, ``snapshot_opened``, ``snapshot_chunk`` or
   ``snapshot_failed``, and call ``applied`` once rows are durable;
6. stop the process on ``Divergence`` or a failed assertion: a promise is broken (R20). ``Unsound``
   means that a peer broke the protocol; the core is unchanged, the connection should be closed.

Words: an *entry* is one position of the log and holds row *effects*; a *sequence* is its number. An
*epoch* is the reign of one *primary*; its first entry is the *barrier*. An entry is *committed*
once the *effective set* (the in-sync set last learned, and every set proposed since) has it
durably; *applied* once the rows show it. docs/explanation/replication.md has the rules R1 to R20.

What always holds: a promise never decreases, and what is committed is never cut (I5, I7). Two logs
that have one epoch at a position are equal up to it (I6). A primary sends nothing before its
promise is durable (R6), and a replica acknowledges nothing before it is durable (R16).

What it never does: choose a primary or a set (the cluster map does; a core only proposes), reject a
committed effect, or believe anything in a message beyond what its epoch allows.

The tasks' half knows nothing of replication: ``lifecycle`` (what an event does to a row),
``ready_queue`` (what may start next), ``apply_queue`` (committed effects that rows do not show
yet)."""
