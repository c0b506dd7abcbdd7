"""Every bound, timeout and retry interval in one place, with the relations between them asserted at
import.

Units are the last word of each name. What an option can change is a default here and says so."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

CLUSTER_NAME = "taskqueue"
"""Name of each cluster that this version founds."""

# --- what a submitter may send ---
TASK_ID_CHARS_MAX = 200
TASK_TYPE_CHARS_MAX = 100
QUEUE_CHARS_MAX = 100
TAGS_MAX = 20
TAG_CHARS_MAX = 200
PRIORITY_MAX = 9
PRIORITY_DEFAULT = 5
MAX_ATTEMPTS_DEFAULT = 3
MAX_ATTEMPTS_MAX = 100
TIMEOUT_S_MAX = 30 * 86_400
DELAY_S_MAX = 10 * 365 * 86_400
BACKOFF_S_MAX = 30 * 86_400
BATCH_TASKS_MAX = 10_000
BODY_BYTES_MAX = 16 * MIB
"""Default of ``--max-body``."""
PAYLOAD_BYTES_MAX = 1 * MIB
"""Default of ``--max-payload``."""
RESULT_BYTES_MAX = 1 * MIB
JSON_DEPTH_MAX = 200
PAYLOAD_VALUES_MAX = 100_000
"""Values of one payload, containers included: to read so many takes some 30 ms in one piece."""
ITEM_BYTES_MORE = 64 * KIB
"""What a task's other fields may take, as sent: each at its longest, written in escapes."""
ITEMS_WINDOW_BYTES = 256 * KIB
"""So much of a batch's body is cut into items in one piece."""
BATCH_REFUSALS_WITHIN_MAX = 100
"""In so many bad tasks of a batch the wrong value is looked for. Of the others only a field that is
unknown or missing has a pointer of its own; the rest point to the task."""
BATCH_SUBMITS_PER_TURN = 250
"""Tasks of a batch that are handed to the queue in one turn of the reactor, ..."""
BATCH_BYTES_PER_TURN = 512 * KIB
"""... or as many as come to so many bytes."""
BATCH_TURNS_GATHERED_MAX = 8
"""For so many turns a commit waits for the rest of a batch, unless somebody else waits for it."""
QUEUES_MAX = 1_000
"""Queues with unended tasks on one node; more are refused, but for ``default`` and handlers'."""
PAUSED_UNUSED_MAX = 900
"""Queues that may be paused although they have no open tasks; ``QUEUES_MAX`` in all."""
QUEUE_NAMES_MAX = 2_000
"""Queues that a node counts by name in a partition; past it those without open tasks are one."""
OPEN_TASKS_MAX = 2_000_000
"""Tasks on one node that have not ended; each costs some 100 bytes in the ready and due heaps."""
OPEN_TASKS_FEW = 200
"""The last of them are for queues that have no more than this: so many queues can't be kept out by
what others have piled up."""
OPEN_TASKS_FULL_RETRY_S = 10
"""When to come again where there are too many: it is not over in a second."""

# --- what is kept with a task ---
ERROR_TYPE_CHARS_MAX = 200
ERROR_MESSAGE_CHARS_MAX = 2_000
ERROR_TRACEBACK_CHARS_MAX = 8_000
ATTEMPTS_KEPT_MAX = 100
TRACEBACKS_KEPT_MAX = 5
"""Older attempts keep their error's type and message, not the traceback."""
PROGRESS_NOTE_CHARS_MAX = 500
LOG_LINES_MAX = 100
LOG_LINE_CHARS_MAX = 500
LOST_ATTEMPTS_MAX = 3

# --- ordering ---
AGE_STEP_MS = 60_000
"""A task waits at most (difference of priorities) times this behind tasks due after it."""

# --- waiting and reading ---
WAIT_S_MAX = 60
LIST_LIMIT_DEFAULT = 1_000
LIST_LIMIT_MAX = 10_000
LIST_SCAN_ROWS_MAX = 50_000
LIST_BYTES_MAX = 4 * MIB
EVENTS_KEPT_MAX = 10_000
EVENT_CLIENTS_MAX = 100
EVENT_CLIENTS_OF_ADDRESS_MAX = 50
EVENT_CHUNK_BYTES = 64 * KIB
"""So much of a stream is made at a time, once what was made before has gone."""
EVENT_TURN_BYTES = 512 * KIB
"""So much of all streams is made in one turn of the reactor: 2 to 4 ms of CPU, with the sending."""
EVENT_CACHED_SHARE = 4
"""A piece that was made for another stream already counts for its length by this."""
EVENT_PASSED_BYTES = 32
"""An event that is not the stream's to know counts for so much of what is made."""
EVENT_CLIENT_BACKLOG_MAX = 5_000
EVENT_COMMENT_S = 15.0
STATUS_WAITERS_MAX = 10_000

# --- log, store ---
ENTRY_BYTES_AIM = 256 * KIB
ENTRY_BYTES_MAX = PAYLOAD_BYTES_MAX + 64 * KIB
UNAPPLIED_BYTES_MAX = 64 * MIB
UNAPPLIED_ROWS_MAX = 100_000
"""Committed row effects not yet written to rows; past either bound submits are refused as busy."""
APPLY_ROWS_PER_COMMIT = 1_000
APPLY_BYTES_PER_COMMIT = 2 * MIB
"""A commit carries rows up to either, more if so many are waiting that they would outrun it."""
APPLY_LAG_MS = 50
COMMIT_BYTES_AIM = 4 * MIB
"""Bytes of entries at which a commit leaves; the other partitions wait for the next one."""
GATHER_CALLERS_MIN = 4
GATHER_MS = 1
"""While so many callers wait for commits, entries leave at once and the own write of them waits for
so long, so that it shares a sync with what peers are about to send (R21)."""
UNCOMMITTED_BYTES_MAX = 32 * MIB
"""Bytes of entries proposed, not yet durable on all copies; past it submits are refused as busy."""
UNCOMMITTED_MS_MAX = 1_000
"""After so long a wait for a commit, batches and long payloads are refused as busy, ..."""
UNCOMMITTED_BYTES_FREE = 4 * MIB
"""... unless no more than this waits: then it is not for the bytes that it takes long."""
ROW_CACHE_BYTES_MAX = 32 * MIB
INLINE_SPEC_BYTES_MAX = 2 * KIB
"""A longer spec is kept apart from the row, so that a change of state does not rewrite it."""
WAL_CHECKPOINT_BYTES = 64 * MIB
"""Copying costs the writer some 20 ms: at full load this is every few seconds."""
WAL_BYTES_MAX = 256 * MIB
MIN_FREE_DISK_BYTES = 256 * MIB
"""Default of ``--min-free-disk``: below it new work is refused, completions are still accepted."""
DISK_FLOOR_BYTES = 32 * MIB
"""Below it the node stops in order rather than failing in the middle of a commit."""
DISK_CHECK_S = 1.0
SNAPSHOTS_KEPT = 3
"""Default of ``--snapshots-kept``: with one more the oldest one goes."""
SNAPSHOTS_KEPT_MAX = 1_000
COMMIT_SLOW_MS = 1_000
DISK_SLOW_MS = 5_000
"""After so long of commits over ``COMMIT_SLOW_MS`` a node leads only what no other can (F12)."""
DISK_WELL_MS = 15_000
"""For so long none must have taken that, before it may lead again."""
RETENTION_S = 24 * 3600
DEDUPE_WINDOW_S = 24 * 3600
PURGE_EVERY_S = 5.0
PURGE_ROWS_PER_ROUND = 2_000

# --- running tasks ---
CONCURRENCY_DEFAULT = 16
SAFETY_NET_S = 2.0
"""Dispatch is by events; this loop finds what an event missed: due, lost, orphaned."""
LEASE_MS = 15_000
LEASE_MARGIN_MS = 1_000
LEASE_RENEW_MS = 4_000
WORKER_CHARS_MAX = 100
"""Of a remote worker's name."""
CLAIM_ID_CHARS_MAX = 100
WORKER_LEASE_MS_MIN = 5_000
WORKER_LEASE_MS_MAX = 300_000
WORKER_CLAIMS_MAX = 1_000
"""Of one request; and attempts in one of ``/work/extend`` or ``/work/finish``."""
WORKER_WAIT_S_MAX = 60
WORKER_POLL_S = 30.0
"""So long ``tq-worker`` has a node hold its request for work."""
WORKER_WAITS_MAX = 5_000
"""Requests of remote workers that wait for work at one node."""
WORKERS_KNOWN_MAX = 10_000
"""Remote workers that a node remembers; the one not seen for longest makes room."""
WORKER_FORGOTTEN_S = 300.0
"""After so long without a claim a remote worker is not shown any more, nor are its types."""
WORKER_LOOK_S = 0.5
"""How often leases and timeouts of remote workers' attempts, and their waits, are looked at."""
WORKER_ANSWER_S = 10.0
"""So much later than it asked a worker is answered empty, though a claim is under way for it."""
WORKER_AGAIN_S = 5.0
"""So long a request with a claim id waits for partitions without a primary: what it was granted of
them may be asked for again."""
WORKER_AGAIN_LOOK_S = 0.1
WORKER_STOP_WAIT_S = 1.0
"""So long a request of a worker waits that is to stop."""
WORKER_LINES_AT_ONCE = 32
"""Sets of types and queues that workers at one node wait for, before they are looked at less
often."""
WORKER_LINE_S = 20e-6
"""For each of them, once there are more: so long after a task came they are looked at."""
WORKER_MISS_MS = 50
"""Pause after a node had tasks of a worker's types and none of its queues: twice this at first,
then doubled up to ``HELP_QUIET_MS_MAX``."""
HELP_OFFER_MS = 100
"""After tasks have been ready this long without a free slot, peers are sent an offer."""
HELP_OFFER_APART_MS = 10
"""Tasks for which this node has no handler are offered at once, so often at most."""
HELP_OFFER_AGAIN_MS = 500
"""How often the offer is repeated while tasks still wait."""
HELP_OFFER_MS_MAX = 2_000
"""An offer of a peer counts for no longer than this."""
HELP_PEERS_MAX = 8
"""Peers that get an offer at a time; in a larger cluster the next ones get the next offer."""
HELP_CLAIMS_MAX = 1_000
HELP_BYTES_MAX = 2 * MIB
"""Bytes of payloads in one answer to a helper; the last payload may exceed it."""
HELP_WAIT_MS = 2_000
"""How long a helper keeps free slots for an answer. What comes later is given back."""
HELP_QUIET_MS_MAX = 5_000
"""Longest pause after answers without a task: twice ``HELP_OFFER_MS`` at first, then doubled."""
CLAIMS_AHEAD_MAX = 256
"""Claims beyond the slots, held while tasks in processes take less than the commit of a claim."""
CLAIMS_AHEAD_WAIT_MS = 250
"""One that has not begun by then is given back."""
CANCEL_GRACE_MS = 5_000
STOP_TIMEOUT_S = 25
STOP_MARGIN_S = 30.0
"""What an orderly end takes besides the handlers' time: handover, closing connections and store."""
THREADS_GRACE_S = 1.0
"""What handlers' threads may take once the store is closed; twistd's own end takes milliseconds."""
NOTE_INTERVAL_MS = 1_000
CHILD_START_MS_MAX = 30_000
CHILD_FRAME_BYTES_MAX = RESULT_BYTES_MAX + 64 * KIB
CHILD_OUTPUT_BYTES_PER_ATTEMPT_MAX = 1 * MIB
CHILD_TASKS_MAX = 100_000
"""Tasks after which a worker process is replaced, so that a leak in a handler stays bounded."""
CHILD_IDLE_S_MAX = 60.0
LOOP_ATTEMPTS = 16
"""Attempts in each worker process with an event loop from which on another one is started."""
CHILD_AHEAD_MAX = 16
"""Tasks queued in a worker process, no more than it ends in ``CHILD_AHEAD_MS``."""
CHILD_AHEAD_MS = 5
CHILD_LEFTOVERS_S = 1.0
"""How long a worker process waits for killed leftovers of a task to end, before it is replaced."""
WORKER_MEMORY_BYTES_MIN = 64 * MIB
WORKER_MEMORY_RESERVE_BYTES = 16 * MIB
"""Of ``--worker-memory``, kept back for the report that it was reached."""
NODE_VARIABLES = (
    "TQ_*",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)
"""Patterns of environment variables that no worker gets: the node's options, the supervisor's."""
CHILD_SPARES = 2
FILES_MIN = 128
"""Descriptors of a node beside its worker processes: store, peers, and some clients."""
FILES_PER_PROCESS = 8
"""Of a worker process: its pipes and its socket, and those of its start."""
CHILD_START_FAILURES_MAX = 3
"""Starts that fail in a row before a node claims no more than the processes that it has can run."""

HANDLED_TYPES_MAX = 1_000
"""Task types that a node may have handlers for; it announces all of them to the others."""
HANDLED_BYTES_MAX = 128 * KIB
"""Encoded size of such an announcement, with the defaults of each type."""
TYPE_SETTINGS_MAX = 1_000
"""Types whose defaults operators set, and types whose defaults remote workers announced, each."""
WAITS_FOR_SLOT_US = 200_000
"""A task that is ready for so long, and nothing else holds it back, is said to wait for a slot."""
PAUSE_REASON_CHARS_MAX = 200
PAUSED_TYPES_MAX = 1_000

# --- access tokens (section 12 of the contract) ---
TOKENS_MAX = 1_000
"""Tokens that the cluster's table keeps."""
TOKENS_OF_FILE_MAX = 100
"""Tokens that a tokens file may hold: the first one, and those for when the table can't be had."""
TOKENS_FILE_BYTES_MAX = 64 * KIB
TOKEN_QUEUES_MAX = 100
"""Queues that one token may be narrowed to."""
TOKENS_QUEUES_MAX = 10_000
"""Names of queues in all tokens of the table, which each node keeps, and a joiner gets whole."""
TOKEN_QUOTA_MAX = 2**31
TOKEN_EXPIRES_S_MAX = 100 * 365 * 86_400
TOKENS_FRESH_MS = 2_000
"""So long a table of tokens counts after the moment at which a majority confirmed it."""
TOKENS_CONFIRM_S = 0.5
"""How often a node has its table of tokens confirmed."""
TOKENS_CONFIRM_AGAIN_S = 0.1
"""The same while it is not confirmed."""

# --- HTTP ---
COMMIT_WAIT_S = 10.0
"""How long a caller waits for a commit before it hears that the outcome is not known."""
RETRY_AFTER_S = 1
HTTP_CONNECTIONS_MAX = 10_000
"""Fewer where descriptors are scarce; ``HTTP_PROBES_MAX`` more may ask for health alone."""
HTTP_PROBES_MAX = 50
HTTP_CONNECTIONS_OF_ADDRESS_MAX = 5_000
"""Of one source address; one more takes the place of that address's quietest."""
DESCRIPTORS_KEPT = 256
"""Descriptors that are not for clients: the store's, peers', workers' ..."""
DESCRIPTORS_PER_CONNECTION = 1.2
"""... and a fifth beside each connection, for connections that are ending."""
ANONYMOUS_BODY_BYTES_MAX = 4 * KIB
"""Body of a request without a token where tokens are checked: routes open to all read none, and
what may be held of all bodies together is for those who may send them."""
HTTP_HEAD_S = 10.0
"""A request's head must be whole within this time; ..."""
HTTP_BODY_BYTES_S_MIN = 1 * KIB
"""... and its body must come at this rate, from then on."""
HANDSHAKES_BEGUN_MAX = 500
"""Of TLS, begun and not ended yet, each some 50 KiB; past it the one begun longest ago is reset.
Who means it takes one round trip."""
TLS_CLOSED_MANY = 500
"""After so many fewer connections by TLS the memory of theirs is given back to the system, ..."""
TLS_UNSENT_MANY_BYTES = 16 * MIB
"""... and after so much that they have not sent when they closed, ..."""
TLS_FREE_S = 1.0
"""... a moment later, when all that belongs together has closed."""
UNSENT_UNCOUNTED_BYTES = 16 * KIB
"""Uncounted unsent bytes of each connection; with more than these no further request is taken."""
UNSENT_BYTES_MAX = 64 * MIB
"""Of all connections together; past it the one that has most is reset."""
UNSENT_STALL_S = 30.0
"""A connection whose peer takes nothing for this long is reset."""
HTTP_BACKLOG = 1_024
"""Connections that wait to be accepted; with Twisted's 50 a burst of clients waits for a second."""
HTTP_IDLE_S = 75
REQUEST_ID_CHARS_MAX = 200
TOKENS_LOOK_S = 0.05
"""So long a request may be judged by tokens as last seen; they are looked at again after that."""
CALLERS_CACHED_MAX = 2_048
"""Headers of which the caller is remembered."""
REQUESTS_IN_FLIGHT_MAX = 4_096
LOOP_LAG_SAMPLE_S = 0.25

# --- the reactor is never held: callers' work is cut (slices.py), every call is measured ---
SLICE_MS = 5
"""A job in slices gives the reactor back after so much time."""
LOOP_LOOK_MS = 10
"""Least time between looks at the CPU clock, at calls' ends: a hold is overstated by up to this."""
LOOP_HELD_MS = 100
"""CPU that one call of the reactor may take; a longer one is logged by name, and fails a test."""

# --- metrics (observe/metrics.py): what a caller can choose is bounded, and so is a scrape ---
METRICS_LABELS = 200
"""Default of ``--metrics-labels``: names of queues, and of types, with figures of their own."""
METRICS_LABELS_MAX = 1_000
METRICS_PAIRS_MAX = 200
"""Pairs of a queue and a type that have counters of their own."""
METRICS_LABEL_BYTES_MAX = 100
"""A longer name is cut."""
METRICS_LABEL_IDLE_S = 3_600
"""A name that was not used for this long makes room for a new one."""
METRICS_AGES_S = 2.0
"""So long a page waits for what the store says of the oldest tasks; then it goes without."""
METRICS_PAGE_S = 1.0
"""A page of metrics is served again to whoever asks within this time."""

# --- admission, to answer in time (api/http/concurrency_limit.py, decision 0015) ---
SUBMITS_AT_ONCE_MIN = 64
"""Single submits that a node works on at once, however slow; more may be refused as busy."""
SUBMITS_AT_ONCE_LEAST = 16
"""The same while a fifth or more of them is refused."""
SUBMITS_AT_ONCE = 512
"""At first, so no burst is an overload; up to ``REQUESTS_IN_FLIGHT_MAX`` if answered in time."""
SUBMIT_WAIT_TIMES = 3
"""In time is what takes so many times as long as on the idle node, on average; ..."""
SUBMIT_WAIT_MS_MIN = 15
SUBMIT_WAIT_MS_MAX = 1_000
"""... but not less and not more than this ..."""
SUBMIT_WAIT_MS = 100
"""... and this, while that is not known."""
LARGE_BODY_BYTES = 64 * KIB
"""A single submit with a longer body is let in like a batch: by its bytes."""
LARGE_AT_ONCE_BYTES = 4 * MIB
"""Bytes of batches that a node works on at once, however slow. A longer batch is let in alone."""
LARGE_TASK_BYTES = 256
"""Each task of a batch counts for so many bytes besides: many small ones are not little work."""
LARGE_AT_ONCE_BYTES_LEAST = 256 * KIB
"""The same while a fifth or more of them is refused."""
LARGE_AT_ONCE_BYTES_MAX = 64 * MIB
"""Where they are answered in time."""
LARGE_WAIT_MS = 250
"""In time is a batch that takes so long, on average."""
READS_AT_ONCE = 32
"""Lists of up to ``LIST_LIMIT_DEFAULT`` tasks made at once, however slow; at first twice this."""
LONG_READ_ROWS_AT_ONCE = 2 * LIST_LIMIT_MAX
"""Longer ones, by tasks asked for: apart, so that they don't take the place of short ones."""
READ_WAIT_MS = 1_000
"""In time is a list that takes so long, on average."""
FAIR_CALLERS_MAX = 10_000
"""Callers for whom it is kept what was finished, while others are refused; ..."""
BACKLOGGED_CALLERS_MAX = 2_000
"""... of them, those that compete for it because they were refused lately."""
BACKLOGGED_S = 2.0
"""So long, if they do not come again: longer than ``RETRY_AFTER_S``."""
OPEN_TASKS_ASK_S = 1.0
"""So often nodes ask one another what tokens with such quotas have open, ..."""
OPEN_TASKS_WANTED_S = 60.0
"""... for so long after the last submit of one."""
OPEN_TASKS_TOLD_S = 4.0
"""What a node has said counts for so long."""
OPEN_MAKERS_MAX = TOKENS_MAX
"""Tokens that are asked for at once."""
CENSUS_S = 0.25
"""So often it is looked, at most, which caller has how much of what all share."""
QUOTA_RETRY_AFTER_S_MAX = 60.0
"""The longest ``Retry-After`` of a token over its quota of requests."""
QUOTA_BUCKETS_MAX = 2 * TOKENS_MAX
"""Tokens whose requests are counted at once."""
REFUSALS_PER_S = 500
"""Requests a second that are refused at once for want of room; later ones wait for it, ..."""
REFUSAL_WAIT_MS_MAX = 1_000
"""... not longer than this."""
REFUSED_CALLERS_PER_S = 50
"""Requests a second without a token that would do that are refused at once; later ones wait."""
REFUSAL_BYTES = 16 * KIB
"""A refusal whose body is longer counts once more for each of these."""

# --- files that are read again ---
REREAD_S = 0.5
"""Between two looks whether certificates, keys, secrets or tokens have changed; counts at once."""

REDACT_CHARS_MAX = 100
"""Of one name or pattern of ``--redact``."""
REDACT_BYTES_MAX = 256 * KIB
"""Of a payload or result that is looked through for such fields, in one piece; a longer one that
may have some is hidden as a whole."""

# --- the audit log (store/audit_log.py) ---
AUDIT_FILE_BYTES = 64 * MIB
"""Default of ``--audit-size``: a file that would be larger is put aside, and a new one begun."""
AUDIT_FILE_BYTES_MIN = 64 * KIB
AUDIT_FILES_KEPT = 16
"""Default of ``--audit-kept``: with one more put aside the oldest is deleted."""
AUDIT_FILES_KEPT_MAX = 100_000
AUDIT_PATH_CHARS_MAX = 200
AUDIT_WHAT_CHARS_MAX = 4_000
"""Of ids and names in one line; those of a batch go on in a next one."""
AUDIT_HAND_OVER_MS = 10
"""What happens within this time is handed to the writing thread at once: it seldom wakes."""
AUDIT_SYNC_MS = 1_000
"""Lines are durable after this time; written, so that they outlive the process, before."""
AUDIT_RETRY_MS = 1_000
"""After a failed write (a full disk) the next try."""
AUDIT_HELD_BYTES_MAX = 8 * MIB
"""Of lines that are not written yet; later ones are lost, counted, and the next line says so."""
AUDIT_REFUSALS_PER_S = 100
"""Lines of refusals of one second; the rest of it is one line with their number: who floods a node
with refused requests can't push what others did out of the files that are kept."""
AUDIT_PAGE_BYTES_MAX = 1 * MIB
"""Bytes of lines in one answer of ``GET /audit``."""
AUDIT_READS_MAX = 8
"""Pages that are asked for at the same time; more are refused as busy."""

# --- who may join (cluster/rules_joining.py) ---
INVITATIONS_MAX = 100
"""Invitations that nobody has taken yet, over the cluster."""
INVITATION_S = 3_600
CERTIFICATES_OF_NODE_MAX = 4
"""Last certificates that the cluster map keeps of each node."""

# --- partitions ---
PARTITIONS_DEFAULT = 64
PARTITIONS_MAX = 1_024
REPLICATION_FACTOR_DEFAULT = 3

COPY_RATE_BYTES_S = 0
"""Default of ``--copy-rate``: bytes a second sent to copies that don't count yet; 0: no bound."""
COPY_RATE_BYTES_S_MIN = 64 * KIB
"""Slower than that a move would hardly end."""

assert BATCH_TURNS_GATHERED_MAX * BATCH_BYTES_PER_TURN <= COMMIT_BYTES_AIM, "what is gathered fits into a commit"
assert PAYLOAD_BYTES_MAX < BODY_BYTES_MAX, "a payload must fit into a body"
assert QUEUES_MAX * OPEN_TASKS_FEW < OPEN_TASKS_MAX
assert PAUSED_UNUSED_MAX < QUEUES_MAX
assert 2 * QUEUES_MAX <= QUEUE_NAMES_MAX, "names are not folded for each new one"
assert PAYLOAD_BYTES_MAX + ITEM_BYTES_MORE <= BODY_BYTES_MAX
assert TAGS_MAX * 2 * TAG_CHARS_MAX * 6 < ITEM_BYTES_MORE, "six bytes for an escaped character"
assert HTTP_CONNECTIONS_OF_ADDRESS_MAX < HTTP_CONNECTIONS_MAX, "one address leaves room for others"
assert EVENT_CLIENTS_OF_ADDRESS_MAX < EVENT_CLIENTS_MAX
assert UNSENT_UNCOUNTED_BYTES <= 256 * KIB < UNSENT_BYTES_MAX
assert ENTRY_BYTES_AIM < ENTRY_BYTES_MAX
assert ENTRY_BYTES_MAX < COMMIT_BYTES_AIM <= UNCOMMITTED_BYTES_FREE < UNCOMMITTED_BYTES_MAX
assert BODY_BYTES_MAX < LARGE_AT_ONCE_BYTES_MAX, "the longest body is let in with others"
assert LARGE_BODY_BYTES < LARGE_AT_ONCE_BYTES_LEAST <= LARGE_AT_ONCE_BYTES < LARGE_AT_ONCE_BYTES_MAX
assert SUBMITS_AT_ONCE_LEAST <= SUBMITS_AT_ONCE_MIN <= SUBMITS_AT_ONCE <= REQUESTS_IN_FLIGHT_MAX
assert 2 * BACKLOGGED_CALLERS_MAX < FAIR_CALLERS_MAX, "when it is full most of it can be forgotten"
assert RETRY_AFTER_S < BACKLOGGED_S
assert RESULT_BYTES_MAX < CHILD_FRAME_BYTES_MAX
assert LEASE_RENEW_MS * 3 < LEASE_MS - LEASE_MARGIN_MS, "a lease survives two lost renewals"
assert HELP_OFFER_MS < HELP_OFFER_AGAIN_MS * 3 < HELP_OFFER_MS_MAX, "an offer outlives two that were lost"
assert HELP_WAIT_MS < LEASE_MS - LEASE_MARGIN_MS, "what a helper still waits for may still be run"
assert CLAIMS_AHEAD_WAIT_MS < LEASE_RENEW_MS, "a claim ahead begins well within its first lease"
assert CHILD_AHEAD_MS * 4 <= CLAIMS_AHEAD_WAIT_MS, "what lies ready in a process can be taken back in time"
assert LIST_LIMIT_MAX <= LIST_SCAN_ROWS_MAX
assert TOKENS_CONFIRM_S * 1_000 * 3 <= TOKENS_FRESH_MS, "a table of tokens survives two lost confirmations"
assert SLICE_MS <= LOOP_LOOK_MS < LOOP_HELD_MS, "no slice comes near what counts as a hold"
assert DISK_FLOOR_BYTES < MIN_FREE_DISK_BYTES
