"""Raft consensus for the metadata log. Its entries' data are opaque bytes.

Pure: nothing here has a clock, a disk, a socket or a random source (``seed`` is given), and all
calls come from one thread. ``core.RaftCore`` is one node's consensus. Its driver must

1. build it from what the disk has (hard state, snapshot, entries), or from ``core.founding`` for
   the first node of a cluster, or from nothing for a node that joins;
2. call ``tick`` every 0.1 s, ``wake`` at ``wake_at_ms``, ``step`` with each message of an
   authenticated peer, and ``leader_died`` with evidence of a leader's death;
3. after every call take ``ready()`` while ``has_ready``, and do what ``messages.Ready`` says, in
   its order: send, write in one synced transaction, call ``persisted``, send what waited for the
   write, apply what is committed;
4. give ``snapshot_at`` and ``compact`` a snapshot from time to time, so that the log stays short;
5. stop the process on a failed assertion: a promise of Raft is broken (R20). ``Unsound`` means that
   a peer broke the protocol; at most the term has changed.

``propose``, ``propose_change``, ``transfer_leadership`` and ``read_index`` raise ``NotLeader`` or
``Busy`` where nothing was done. That an entry was proposed does not mean that it will be committed.

Words are those of the dissertation (Ongaro 2014), whose sections the code cites as (3.4): term,
vote, pre-vote, leader, follower, learner, match index, read index. docs/explanation/raft.md draws
it.

What always holds: at most one leader in a term; nothing is sent that rests on a write before it is
durable; committed entries are handed out in order, exactly once in a run of the process; one change
of membership at a time, in effect when appended (4.1).

What it never does: read the data of an entry, decide who should be a member or a voter (``cluster``
does), or treat a time-out as evidence of a death."""
