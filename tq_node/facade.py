"""The queue as `api` and `work` see it: the Protocol ``TaskQueue``, and what goes in and out.

``runtime.routing.cluster_queue.ClusterQueue`` implements it. Every Deferred fires in the reactor
thread, belongs to its caller alone, and may be cancelled without harm to anybody else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred

from tq_node import limits
from tq_node.errors import TaskQueueError
from tq_node.tokens import Asker, TokenEntry
from tq_node.types import (
    Announced,
    Backoff,
    ClusterView,
    HandledType,
    LogLine,
    PartitionView,
    PauseEntry,
    Progress,
    State,
    TaskError,
    TaskRow,
    Token,
    Transition,
    WaitsFor,
)

# The decoder holds peers to these bounds; `api.requests` explains the same ones to callers.
_Id = Annotated[str, Meta(max_length=limits.TASK_ID_CHARS_MAX)]
_Type = Annotated[str, Meta(max_length=limits.TASK_TYPE_CHARS_MAX)]
_Queue = Annotated[str, Meta(max_length=limits.QUEUE_CHARS_MAX)]
_Tag = Annotated[str, Meta(max_length=limits.TAG_CHARS_MAX)]
_Tags = Annotated[dict[_Tag, _Tag], Meta(max_length=limits.TAGS_MAX)]
_Priority = Annotated[int, Meta(ge=0, le=limits.PRIORITY_MAX)]
_Attempts = Annotated[int, Meta(ge=1, le=limits.MAX_ATTEMPTS_MAX)]
_TimeoutMs = Annotated[int, Meta(ge=0, le=limits.TIMEOUT_S_MAX * 1_000)]
_DelayUs = Annotated[int, Meta(ge=0, le=limits.DELAY_S_MAX * 1_000_000)]
_TimeUs = Annotated[int, Meta(ge=-(2**60), le=2**60)]
"""Any year that RFC 3339 can write."""
_RetryMs = Annotated[int, Meta(ge=0, le=limits.BACKOFF_S_MAX * 1_000)]
_Hash = Annotated[bytes, Meta(max_length=64)]
_Number = Annotated[int, Meta(ge=0, le=2**62)]
_Partition = Annotated[int, Meta(ge=0, lt=limits.PARTITIONS_MAX)]


class Submission(msgspec.Struct, gc=False, array_like=True):
    """One submit, validated. None: not given, filled in from the defaults of the task's type.

    ``payload`` is compact JSON. ``id`` None: the node makes one; ``made``: it has just done so.
    ``delay_us`` and ``run_at_us`` exclude one another. ``content_hash`` covers the fields as sent,
    without the id. ``made_by``: the token that asks, by name. It may not know of a task of that id
    which another token submitted (``own_only``), or in another queue (``queue_only``)."""

    type: _Type
    payload: bytes
    id: _Id | None = None
    queue: _Queue | None = None
    priority: _Priority | None = None
    delay_us: _DelayUs | None = None
    run_at_us: _TimeUs | None = None
    max_attempts: _Attempts | None = None
    timeout_ms: _TimeoutMs | None = None
    backoff: Backoff | None = None
    tags: _Tags | None = None
    content_hash: _Hash = b""
    made: bool = False
    made_by: str = ""
    own_only: bool = False
    queue_only: bool = False


class Accepted(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An accepted submit; ``created`` is False for a repeat, ``node`` names the primary."""

    task_id: str
    state: State
    node: str
    created: bool


class TypeDefaults(msgspec.Struct, frozen=True):
    """Defaults that ``@task`` sets for its type; None: not set."""

    queue: str | None = None
    max_attempts: int | None = None
    timeout_ms: int | None = None
    backoff: Backoff | None = None


LIST_SORTS = frozenset({"id", "created_at", "run_at", "priority"})


class ListQuery(msgspec.Struct, frozen=True, array_like=True):
    """``/tasks/list`` after validation. Each ``_not`` flag turns its set into the complement."""

    states: frozenset[_Number] | None = None
    states_not: bool = False
    types: frozenset[str] | None = None
    types_not: bool = False
    queues: frozenset[str] | None = None
    queues_not: bool = False
    nodes: frozenset[str] | None = None
    nodes_not: bool = False
    text: str | None = None
    role: str | None = None
    sort: str = "id"
    descending: bool = False
    cursor: tuple[_TimeUs, str] | None = None
    limit: Annotated[int, Meta(ge=0, le=2 * limits.LIST_LIMIT_MAX)] = 1000
    cluster: bool = False
    waiting: tuple[str, str] | None = None
    """Kind and name of what the tasks wait for; an empty name: any."""


class ListedTask(msgspec.Struct, frozen=True, gc=False, array_like=True):
    row: TaskRow
    role: str
    """primary or replica"""
    node: str
    """name of the primary"""
    waits: tuple[WaitsFor, ...] = ()
    """Why it doesn't run yet, as the node knows that has listed it."""


class TaskPage(msgspec.Struct, frozen=True, array_like=True):
    """One page of tasks. ``missing``: nodes, ``partitions_missing``: partitions without an answer.
    ``led``: (partition, epoch) that the answering node leads; None: its release doesn't say."""

    tasks: list[ListedTask]
    next: tuple[int, str] | None
    missing: list[str] = []
    partitions_missing: list[int] = []
    led: list[tuple[int, int]] | None = None


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """Counts of rows, indexed by state, as primary and as replica; the rest as in ``TaskPage``."""

    primary: list[int]
    replica: list[int]
    missing: list[str] = []
    partitions_missing: list[int] = []
    led: list[tuple[int, int]] | None = None


class Read(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A task as read. ``age_s``: the row's greatest age in seconds; None: a strong read, fresh.
    ``waits``: why it doesn't run yet, as the node knows that has read it."""

    row: TaskRow
    node: str
    age_s: float | None = None
    waits: tuple[WaitsFor, ...] = ()


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """Transitions in order; ids count from ``first_id``. ``reset``: older ones are missing."""

    first_id: int
    transitions: list[Transition]
    reset: bool = False
    node: str | None = None
    """The node of the transitions, in a stream of several nodes."""


class Subscription(Protocol):
    def close(self) -> None: ...


class Claim(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The committed right to run an attempt. ``payload``: JSON; ``failures``: earlier failed ones.
    A node of an earlier release leaves ``queue`` empty, ``max_attempts`` and ``created_us`` 0."""

    task_id: str
    task_type: str
    payload: bytes
    partition: _Partition
    attempt: _Number
    token: Token
    timeout_ms: int | None
    queue: str = ""
    max_attempts: int = 0
    failures: int = 0
    created_us: int = 0
    tags: dict[str, str] | None = None


class Notes(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Progress and log lines of an attempt since the last. ``dropped``: lines over a bound."""

    progress: Progress | None = None
    lines: tuple[LogLine, ...] = ()
    dropped: int = 0


class Completed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=0):
    """The attempt succeeded. ``result`` is compact JSON, at most ``limits.RESULT_BYTES_MAX``."""

    result: bytes


class AttemptFailed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """The attempt failed. ``retry_in_ms``: delay that the handler wants (``Retry``). ``final``: no
    further attempt (``Reject``, no handler)."""

    error: TaskError
    retry_in_ms: _RetryMs | None = None
    final: bool = False


class Released(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """The attempt was given back and spends nothing: the node is stopping."""


class Lost(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """Lease expired, handler killed; counted apart from failures, and the third ends the task."""


Outcome = Completed | AttemptFailed | Released | Lost


class WorkerAsk(msgspec.Struct, frozen=True, array_like=True):
    """What a remote worker claims by. ``types`` None: any. ``queues``: (name, weight), served in
    this order or, where ``is_weighted``, in turn by weight; None: all."""

    worker: Annotated[str, Meta(min_length=1, max_length=limits.WORKER_CHARS_MAX)]
    lease_ms: Annotated[int, Meta(ge=1, le=limits.WORKER_LEASE_MS_MAX)]
    claim_id: Annotated[str, Meta(max_length=limits.CLAIM_ID_CHARS_MAX)] = ""
    """The same one again gets the same claims; empty: each asks anew."""
    types: tuple[_Type, ...] | None = None
    queues: tuple[tuple[_Queue, int], ...] | None = None
    is_weighted: bool = False


class WorkerGrant(msgspec.Struct, frozen=True):
    """The answer to a ``WorkerAsk``. ``state``: run, quiet or stop, as operators want it.
    ``waited_s``: how long the node held the request before it asked for these claims: leases count
    from so long after the request was sent."""

    state: str
    claims: Sequence[Claim]
    waited_s: float = 0.0


class HeldAttempt(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An attempt that a remote worker says it runs."""

    task_id: _Id
    partition: _Partition
    attempt: _Number
    token: Token


class Extended(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What became of one ``HeldAttempt``. ``lease_ms`` 0: it does not hold its task any more, for
    the task was cancelled (``is_cancelled``) or another attempt has it, or it has ended."""

    lease_ms: int
    is_cancelled: bool = False


class WorkerSeen(msgspec.Struct, frozen=True, array_like=True):
    """A remote worker as one node knows it: by its latest claim there, or by what it holds."""

    worker: str
    state: str = "run"
    slots: int = 0
    busy: int = 0
    """Attempts of partitions led at that node."""
    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    version: str = ""
    seen_us: int = 0
    """When it last claimed there, wall clock; 0: not lately."""
    node: str = ""
    """Where it last claimed."""


class Worker(Protocol):
    """What runs tasks, as the queue sees it: questions, and notifications that may not raise."""

    @property
    def slots_free(self) -> int:
        """Number of attempts that could start now."""

    @property
    def types(self) -> Collection[str] | None:
        """Types with a handler here; None: any."""

    @property
    def notes(self) -> Sequence[ReadyNote]:
        """Why it runs no tasks, or not all."""

    @property
    def announced(self) -> Announced:
        """The handlers, as announced to the other nodes."""

    def stand_in(self, may: bool) -> None:
        """Set whether the simulated handlers, which nobody asked for, may run tasks."""

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        """See ``TaskQueue.reload_handlers``."""

    def wake(self) -> None:
        """There may be something to claim."""

    def stop_attempt(self, task_id: str, token: Token) -> None:
        """The attempt no longer holds its task (cancelled): stop its handler."""


JOIN_SCHEME = "TaskQueue-Secret"
"""The scheme of ``Authorization`` by which a joiner proves the cluster's secret."""
INVITATION_SCHEME = "TaskQueue-Invitation"
"""The one by which it shows an invitation."""
CHALLENGE_BYTES = 40
PROOF_BYTES = 32
"""Of what a joiner proves the cluster's secret with; see ``TaskQueue.peers_for``."""


class Invitation(msgspec.Struct, frozen=True):
    """What a joiner needs: ``peer``, where to register, and ``secret`` in hexadecimal; empty:
    certificates stand for it. ``peers``: the other members."""

    cluster_id: str
    secret: str
    peer: str
    peers: Sequence[str] = ()


class NotReadyReason(msgspec.Struct, frozen=True):
    code: str
    detail: str


class ReadyNote(msgspec.Struct, frozen=True):
    """A condition of a node that serves all the same, for operators, such as `no_workers`."""

    code: str
    detail: str


class NodeHandlers(msgspec.Struct, frozen=True):
    """The handlers of a node that is up."""

    node: str
    announced: Announced


class HandlersReloaded(msgspec.Struct, frozen=True):
    """Types with a handler after a reload, and those that came and went with it."""

    types: list[str]
    added: list[str]
    removed: list[str]


class TokenTable(msgspec.Struct, frozen=True):
    """The access tokens that a node knows. The same object as long as nothing of it changes."""

    tokens: tuple[TokenEntry, ...] = ()
    """Of the cluster's table, in order of names."""
    is_fresh: bool = False
    """Whether the table was confirmed by a majority, since this start and within the last
    ``limits.TOKENS_FRESH_MS``. Else none of ``tokens`` counts."""
    is_checked: bool = False
    """Whether callers must show a token."""
    version: int = 0
    """Rises whenever ``tokens``, ``of_file`` or ``is_checked`` change; not with ``is_fresh``."""
    of_file: tuple[TokenEntry, ...] = ()
    """Of this node's tokens file: they count, fresh or not."""


class TypeTable(msgspec.Struct, frozen=True):
    """Defaults of types in the cluster map, in order of types, apart from those of nodes' handlers:
    as operators put them, and as remote workers announced them. The former go before all others."""

    put: tuple[HandledType, ...] = ()
    announced: tuple[HandledType, ...] = ()


class OpenOfMaker(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Tasks of one token that have not ended, and the queues that they are of."""

    tasks: _Number
    queues: Annotated[tuple[_Queue, ...], Meta(max_length=limits.QUEUES_MAX)]


class WorkQueue(Protocol):
    """What a worker asks of the queue, of its own node or of a cluster somewhere else."""

    def attach(self, worker: Worker) -> None: ...

    def handlers_changed(self) -> None:
        """Take note that the worker's types have changed."""

    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        """Claim up to ``limit`` due tasks, the highest rank first; fires once the claims are
        committed. From this node's partitions; where they have none, from a node that has more than
        it can start. Fires empty where there is no work, or the node is not ready or stopping."""

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        """End the attempt; fires once committed; raises ``StaleAttempt``: the token is outdated."""

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        """Keep progress and log lines with the task; raises ``StaleAttempt`` as ``finish`` does."""

    def lease_ms(self, claim: Claim) -> int:
        """Milliseconds until the attempt's lease expires unless renewed; 0: nobody confirmed it."""


class TaskQueue(WorkQueue, Protocol):
    """The whole cluster's queue. Any Deferred may fail with a ``TaskQueueError``, named or not."""

    @property
    def node_name(self) -> str: ...

    # --- for api/ ---
    def submit(self, submission: Submission) -> Deferred[Accepted]:
        """Submit a task; fires once it is durable on every in-sync copy.

        :raises IdConflict, IdTooOld, Busy, DiskReserve, NotReady, Draining, OutcomeUnknown:"""

    def submit_many(
        self, submissions: Sequence[Submission], *, has_more: bool = False
    ) -> Deferred[list[Accepted | TaskQueueError]]:
        """Submit many; one result each, in order. Fires once all accepted ones are durable; with
        ``has_more`` together with those of the caller's next call, in one of the next turns."""

    def queue_of(self, task_type: str) -> str:
        """The queue of a task of this type that names none."""

    def open_of(self, maker: str) -> OpenOfMaker:
        """What a token has open in the cluster; what other nodes have of it is as of the last
        seconds, and none of it where nobody has asked of late."""

    def get(
        self, task_id: str, *, wait_s: float = 0.0, local: bool = False, asker: Asker | None = None
    ) -> Deferred[Read]:
        """The committed state; with ``wait_s`` once the task is final, or after so many seconds.

        :param asker: who asks, where that may not know of every task; None: of all.
        :raises NoSuchTask, TaskPurged, NotConfirmed:
        :raises Upgrading: not every node can judge what an asker may know of; next three too."""

    def list(self, query: ListQuery) -> Deferred[TaskPage]: ...

    def stats(self, *, cluster: bool = False, queues: Collection[str] | None = None) -> Deferred[Stats]:
        """Counts; of these queues alone, where some are given: then of primaries alone, too."""

    def cancel(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        """Cancel a task; its primary judges in the same step whether the asker may know of it."""

    def retry(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]: ...

    def purge(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        """Forget an ended task, as retention would; returns it as it was; raises ``NotFinal``."""
        ...

    def pause(self, entry: PauseEntry) -> Deferred[None]:
        """Start no more tasks of a queue or a type, until it is resumed or ``until_us`` is over.
        ``by``: name of the token that asks, for the record; ``since_us`` is set here.

        :raises Upgrading: some node knows pauses of queues alone, without more."""

    def resume(self, target: str, name: str, by: str = "") -> Deferred[None]:
        """Start tasks of a queue or a type again."""

    def paused_queues(self) -> frozenset[str]: ...

    def pauses(self) -> Sequence[PauseEntry]:
        """What is paused now: queues first, in order of names."""

    # --- types ---
    def type_table(self) -> TypeTable: ...

    def put_type(self, entry: HandledType, by: str = "") -> Deferred[None]:
        """Set the defaults of a type's tasks, in place of those put before; fires once all nodes up
        know, or after a second.

        :raises ClusterRefused, Upgrading, NotReady, NoController, OutcomeUnknown: next two, too"""

    def delete_type(self, task_type: str, by: str = "") -> Deferred[None]:
        """Forget what was put and announced of a type; also raises ``NoSuchType``."""

    def announce_types(self, types: tuple[HandledType, ...], by: str = "") -> Deferred[None]:
        """Keep the defaults that a remote worker's handlers have; what was put goes before them."""

    def watch(
        self, observer: Callable[[EventBatch], None], *, after_id: int | None = None, cluster: bool = False
    ) -> Subscription:
        """Call ``observer`` with each batch of committed transitions of this node's primaries, from
        now or from behind ``after_id``: then at once, with ``reset`` where that is too old.

        :param cluster: of all nodes' primaries; ids are those of this node's cluster stream."""

    def cluster(self) -> ClusterView: ...

    def partition_views(self) -> Sequence[PartitionView]: ...

    def invite(self) -> Invitation:
        """Hand the cluster's generated secret to a joiner that the caller has found on loopback.

        :raises Denied: operators keep this cluster's secret in a file.
        :raises NotReady: not in a cluster yet."""

    def challenge(self) -> str:
        """What a joiner may prove over that it knows the cluster's secret, in hexadecimal; empty:
        the cluster has none. Says nothing of the cluster."""

    def peers_for(self, challenge: bytes, proof: bytes) -> Sequence[str]:
        """Peer addresses of the members, for a joiner that has proven the secret, the leader first.

        :raises Unauthorized: not proven.
        :raises NotReady: not in a cluster yet."""

    def put_invitation(self, hash_: bytes, by: str = "") -> Deferred[int]:
        """Keep an invitation for one node, by its SHA-256; fires as ``put_token``, with the wall
        clock's microsecond at which it ends.

        :raises ClusterRefused, Upgrading, NotReady, NoController, OutcomeUnknown:"""
        ...

    def take_invitation(self, hash_: bytes) -> Deferred[Invitation]:
        """Use an invitation up: of two callers one gets what a joiner needs.

        :raises Unauthorized: there is none such, no more or not yet here.
        :raises NotReady, NoController, OutcomeUnknown:"""
        ...

    # --- access tokens ---
    def token_table(self) -> TokenTable:
        """The tokens as this node knows them now; cheap: asked for each request."""

    def put_token(self, entry: TokenEntry) -> Deferred[None]:
        """Keep a token in the cluster's table, in place of one that has its name; fires once all
        nodes up know of it, or after a second. ``created_by`` names who asks.

        :raises ClusterRefused, Upgrading, NotReady, NoController, OutcomeUnknown:"""
        ...

    def revoke_token(self, name: str, by: str = "") -> Deferred[None]:
        """End a token; fires as ``put_token``; also raises ``NoSuchToken``."""
        ...

    # --- orders ---
    def drain(self, node: str, by: str = "") -> Deferred[None]:
        """Move everything off a node; fires once that is decided, not once it is done.

        :param by: as in ``pause``.
        :raises NoSuchNode, LastNode, ClusterRefused, NoController, OutcomeUnknown: next four too"""

    def undrain(self, node: str, by: str = "") -> Deferred[None]:
        """Take back ``drain``, or ``remove`` of a living node that is not empty yet."""

    def remove(self, node: str, by: str = "") -> Deferred[None]:
        """Take a node out: a living one is drained first, a dead one's store is given up."""

    def rebalance(self, by: str = "") -> Deferred[None]: ...

    def unsafe_recover(self, partition: int, node: str, by: str = "") -> Deferred[None]:
        """Make a node's copy the partition, whatever it lacks, on record for ever; also raises
        ``NoSuchPartition``."""

    def shutdown(self, node: str, by: str = "") -> Deferred[None]:
        """Stop a node as SIGTERM does; fires once it was told; also raises ``PeerUnreachable``."""

    def not_ready(self) -> Sequence[NotReadyReason]:
        """Why the node can't serve; empty when it can."""

    def notes(self) -> Sequence[ReadyNote]:
        """The node's ``ReadyNote``s."""

    def backup(self) -> Deferred[Sequence[str]]:
        """Snapshot this node's store, one at a time; fires with the kept paths, this one first."""

    def oldest_pending_age_s(self) -> Deferred[dict[str, float]]:
        """Seconds that each queue's oldest pending task, seen here, has waited; 0.0: none waits."""

    def handlers(self) -> Sequence[NodeHandlers]:
        """The handlers of all nodes up; raises ``Upgrading`` if one's release does not say."""

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        """Reload this node's handlers; raises ``HandlersUnusable`` and keeps the earlier ones."""

    # --- for remote workers, by api/ ---
    def claim_for(
        self, ask: WorkerAsk, limit: int, wait_s: float, *, slots: int = 0, version: str = ""
    ) -> Deferred[WorkerGrant]:
        """Claim up to ``limit`` tasks of the whole cluster for a remote worker; fires once claims
        are committed, and empty after ``wait_s``, or earlier where the worker should extend now.

        :raises Upgrading: not every node knows remote workers; next three too.
        :raises NotReady, Draining, Busy:"""

    def extend(self, worker: str, held: Sequence[HeldAttempt]) -> Deferred[Sequence[Extended | TaskQueueError]]:
        """Extend leases; one result each, in order. An error says that nobody could be asked."""

    def remote_workers(self) -> Deferred[Sequence[WorkerSeen]]:
        """The remote workers that any node which answers knows, in order of names."""

    def order_worker(self, worker: str, state: str) -> Deferred[None]:
        """Have a remote worker be told ``run``, ``quiet`` or ``stop`` with its next answer."""
