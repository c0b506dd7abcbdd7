"""Every default and bound of the client, with the relations between them. Times in seconds, sizes
in bytes.
"""

from __future__ import annotations

KIB = 1_024
MIB = 1_024 * KIB

# --- time ---
DEADLINE_S = 30.0
"""How long a call may take where the caller does not say."""
ATTEMPT_S = 5.0
"""How long one node may take for one request; then the next is asked. Sending again is safe: the id
is the same."""
CONNECT_S = 1.0
"""For a connection."""
WAIT_S = 20.0
"""One question "tell me when the task has ended" to a node; then it is asked again, of any node."""
WAIT_CROWDED_S = 1.0
"""The same while others wait for a connection, so that many waiters get their turn."""
IDLE_S = 30.0
"""A connection that was idle for longer is not used again: a node closes its own after 75 s."""
CLOSE_S = 5.0
"""How long ``close`` waits for submits that are under way."""

# --- trying again ---
AGAIN_S = 0.025
"""Pause before the next node is asked; doubled each time. A failover takes a fraction of a
second."""
AGAIN_S_MAX = 1.0
"""The longest such pause."""
JITTER = 0.5
"""A pause is this share of itself at least, and random above, so that clients do not come back all
at once."""
DOWN_S = 0.1
"""How long a node that can't be reached is skipped; doubled each time. Then it is tried in the
background."""
DOWN_S_MAX = 5.0
"""The longest such time."""
RETRY_AFTER_S_MAX = 10.0
"""Of what a node may ask for: a proxy that says an hour does not take a node away for an hour."""

# --- the cluster ---
LEARN_EVERY_S = 30.0
"""How often a client that is in use asks who is in the cluster."""
LEARN_AGAIN_S = 1.0
"""The same after a node could not be reached."""
NODES_MAX = 256
"""That it learns of."""

# --- connections ---
CONNECTIONS_MAX = 64
"""To one node, for everything that is answered at once."""
WAITING_CONNECTIONS_MAX = 256
"""To one node, for calls that wait for the end of a task; apart, so that they never take the place
of others."""
HEAD_BYTES_MAX = 64 * KIB
"""Status line and headers of an answer."""
ANSWER_BYTES_MAX = 256 * MIB
"""A page of a list is some 4 MiB and one task more; past this it is no answer of a node."""

# --- batches ---
GATHER_S = 0.005
"""How long a submit waits for company while others are in flight. One that comes when nothing is in
flight never waits."""
BATCH_TASKS_MAX = 1_000
BATCH_BYTES_MAX = 4 * MIB
"""A batch is as large as the first of these allows; a single task may be larger."""
FLIGHTS_MAX = 8
"""Batches in flight at once, over all nodes."""
SINGLES_MAX = 128
"""The same where every submit is a request of its own (``batching=False``)."""
CHUNKS_MAX = 4
"""Heaps of so many tasks that ``submit_many`` has handed over and not heard of; it reads on when
the first of them has ended."""

# --- what may wait ---
OPEN_TASKS_MAX = 10_000
"""Submits that have begun and not ended; the next ones wait for room."""
OPEN_BYTES_MAX = 64 * MIB
"""The same in bytes."""
OUTSIDE_TASKS_MAX = 100_000
"""Submits that wait for room; one more is refused at once (``TooManyWaiting``)."""
OUTSIDE_BYTES_MAX = 256 * MIB
"""The same in bytes."""

assert ATTEMPT_S < DEADLINE_S, "a node that hangs leaves time to ask another"
assert CONNECT_S < ATTEMPT_S
assert AGAIN_S < AGAIN_S_MAX
assert BATCH_TASKS_MAX <= OPEN_TASKS_MAX <= OUTSIDE_TASKS_MAX
assert BATCH_BYTES_MAX <= OPEN_BYTES_MAX <= OUTSIDE_BYTES_MAX
