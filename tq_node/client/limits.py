"""Every default and bound of the client, and their relations. Times in seconds, sizes in bytes."""

from __future__ import annotations

KIB = 1_024
MIB = 1_024 * KIB

# --- time ---
DEADLINE_S = 30.0
"""Default deadline of a call."""
ATTEMPT_S = 5.0
"""Bound of one request to one node; then the next is asked. Sending again is safe: the id stays."""
CONNECT_S = 1.0
"""Bound of connecting."""
WAIT_S = 20.0
"""How long one request waits for a task to end; then any node is asked again."""
WAIT_CROWDED_S = 1.0
"""In place of ``WAIT_S`` while requests queue for a connection, so that all get their turn."""
IDLE_S = 30.0
"""A connection that was idle for longer is not used again: a node closes its own after 75 s."""
CLOSE_S = 5.0
"""How long ``close`` waits for open submits."""

# --- trying again ---
AGAIN_S = 0.025
"""Pause before the next node, doubled each time; a failover takes a fraction of a second."""
AGAIN_S_MAX = 1.0
"""The longest pause between two tries."""
JITTER = 0.5
"""Least share of a pause; the rest is random, so that clients do not return all at once."""
DOWN_S = 0.1
"""How long an unreachable node is skipped, doubled each time; then tried in the background."""
DOWN_S_MAX = 5.0
"""The longest time that an unreachable node is skipped."""
RETRY_AFTER_S_MAX = 10.0
"""Longest ``Retry-After`` kept: a proxy that says an hour excludes no node for an hour."""

# --- the cluster ---
LEARN_EVERY_S = 30.0
"""How often a client in use asks for the members of the cluster."""
LEARN_AGAIN_S = 1.0
"""In place of ``LEARN_EVERY_S`` after a node could not be reached."""
NODES_MAX = 256
"""Members that a client discovers."""

# --- connections ---
CONNECTIONS_MAX = 64
"""Connections to one node, for requests that are answered at once."""
WAITING_CONNECTIONS_MAX = 256
"""Connections to one node for calls that await a task's end: separate, to block no others."""
HEAD_BYTES_MAX = 64 * KIB
"""Status line and headers of an answer."""
ANSWER_BYTES_MAX = 256 * MIB
"""A page of a list is some 4 MiB and one task more; past this it is no answer of a node."""

# --- tokens ---
TOKEN_LOOK_S = 1.0
"""Between two looks whether the file of a token has changed."""

# --- batches ---
GATHER_S = 0.005
"""How long a submit waits for others in its batch while a request is in flight; else not."""
BATCH_TASKS_MAX = 1_000
BATCH_BYTES_MAX = 4 * MIB
"""A batch is as large as the first of these allows; a single task may be larger."""
FLIGHTS_MAX = 8
"""Batches in flight at once, over all nodes."""
SINGLES_MAX = 128
"""Requests in flight at once with ``batching=False``."""
CHUNKS_MAX = 4
"""Chunks of ``submit_many`` submitted and without outcome; it reads on when the first has one."""

# --- what may wait ---
OPEN_TASKS_MAX = 10_000
"""Submits that have begun and not ended; the next ones wait for room."""
OPEN_BYTES_MAX = 64 * MIB
"""Bodies of the submits that have begun and not ended."""
OUTSIDE_TASKS_MAX = 100_000
"""Submits that wait for room; one more is refused at once (``TooManyWaiting``)."""
OUTSIDE_BYTES_MAX = 256 * MIB
"""Bodies of the submits that wait for room."""

assert ATTEMPT_S < DEADLINE_S, "a node that hangs leaves time to ask another"
assert CONNECT_S < ATTEMPT_S
assert AGAIN_S < AGAIN_S_MAX
assert BATCH_TASKS_MAX <= OPEN_TASKS_MAX <= OUTSIDE_TASKS_MAX
assert BATCH_BYTES_MAX <= OPEN_BYTES_MAX <= OUTSIDE_BYTES_MAX
