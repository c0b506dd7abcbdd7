"""Makes one node: credentials, directory, store, identity, queue, workers, HTTP site, ports.

All refusals come from here, before anything runs; what was opened by then is closed again."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from tq_node.api.assembly import make_site
from tq_node.api.http.site import ApiSite
from tq_node.api.settings import ApiSettings, connections_max
from tq_node.cli import tokens_file
from tq_node.cli.config import NodeSettings
from tq_node.cli.tokens_file import BadTokensFile
from tq_node.cluster.records import ClusterSettings
from tq_node.cluster.refusals import Refusal
from tq_node.distributions import version
from tq_node.facade import ReadyNote
from tq_node.node.https import https_files, secured
from tq_node.node.member import Birth, Credentials, Member, NodeIdentity, PeerPortTaken, identify, make_plane
from tq_node.node.process import check_files, check_free, listen_now, tcp_reactor, with_backlog
from tq_node.node.rereading import Rereading
from tq_node.node.systemd import Notifier
from tq_node.observe.loop_monitor import LoopMonitor
from tq_node.observe.metrics import Metrics
from tq_node.reread_files import RereadFiles
from tq_node.runtime.bootstrap.credentials import BadCredentials
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.access_tokens import FileTokens
from tq_node.runtime.routing.admin import ClusterAdmin
from tq_node.runtime.routing.cluster_queue import ClusterQueue
from tq_node.runtime.routing.node import Node, NodeHooks
from tq_node.runtime.routing.node_state import ClusterQueueSettings
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.local_queue import LocalQueue, QueueHooks, open_local_queue
from tq_node.runtime.tasks.type_defaults import TypeDefaultsTable
from tq_node.store.audit_files import AuditLocked
from tq_node.store.audit_log import AuditLog
from tq_node.store.private import replace, secure_directory
from tq_node.store.readmit import FAILED_MARK, set_store_aside, why_failed
from tq_node.store.sqlite.store import SqliteStore, open_store
from tq_node.tokens import TokenEntry
from tq_node.work.lease import WorkersLock
from tq_node.work.process_environment import Bounds, ProcessEnvironment, environment_for
from tq_node.work.registry import Registry
from tq_node.work.settings import WorkerSettings
from tq_node.work.worker import WorkerService

_log = Logger(namespace="taskqueue.node")


class StoreFailed(Exception):
    """One line: what became of the store, and what the operator can do."""


class AuditLogUnusable(Exception):
    """One line that names the option."""


class NodeEnds(Protocol):
    """What makes a node end; whoever has it built decides how."""

    def shutdown_asked(self) -> None:
        """An operator wants it to end, in order."""

    def end_with_line(self, line: str) -> None:
        """The node can't be what it was started as."""

    def refused_by_cluster(self, refusal: Refusal) -> None:
        """The cluster will not have this node."""

    def disk_full(self) -> None:
        """The disk is at its floor."""

    def store_broken(self, why: Exception) -> None:
        """A write has failed (R18)."""

    def promise_broken(self, why: BaseException) -> None:
        """An assertion has failed (R20)."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """A node that listens and does not run yet."""

    clock: Clock
    store: SqliteStore
    lock: WorkersLock
    member: Member
    node: Node
    queue: ClusterQueue
    worker: WorkerService
    loop_monitor: LoopMonitor
    notifier: Notifier
    rereading: Rereading
    site: ApiSite
    audit: AuditLog | None
    ports: Sequence[IListeningPort]


def build(settings: NodeSettings, registry: Registry, reactor: Any, umask: int, ends: NodeEnds) -> NodeParts:
    """Make the parts of one node. ``umask``: with which handlers in worker processes make files.

    :raises DirectoryLocked, SchemaTooNew, StoreBroken, StoreFailed: the store can't be opened.
    :raises WrongName, IsCopy, NoSecret, NeverJoined, BadCredentials: directory or credentials
        are another's.
    :raises AuditLogUnusable: its file can't be opened, or another process writes it.
    :raises PeerPortTaken, CannotListenError, TooFewFiles, OSError: of the surroundings."""
    metrics = Metrics(version=version(), node=settings.node_name, labels_max=settings.metrics_labels)
    credentials = Credentials.of(settings)
    certificates = https_files(settings)
    rereading = Rereading(_notes_of(settings))
    tokens = _tokens_of(settings)
    _look_around(settings, registry, rereading.standing)
    _look_for_failure(settings)
    with ExitStack() as undo:
        store = open_store(settings.data_dir, reactor=reactor, on_broken=ends.store_broken, on_commit=metrics.committed)
        undo.callback(store.close)
        clock = Clock(reactor)
        audit = _open_audit_log(settings, reactor, clock)
        if audit is not None:
            undo.callback(audit.close)
            metrics.sources.audit_lines, metrics.sources.audit_lines_lost = audit.lines_written, audit.lines_lost
        identity = identify(settings, credentials, store.meta(), clock.wall_us(), os.urandom, registry.announced.kind)
        for files in credentials.follow(identity.local):
            rereading.add(files)
        lock = WorkersLock(settings.data_dir / "workers.lock")
        undo.callback(lock.close)
        # Also takes it (shared) for this start: later ones must see that our workers live.
        workers_gone = lock.prove_alone()

        def has_tasks() -> bool:
            return node.has_tasks()

        birth = Birth(settings, store, clock, identity, has_tasks=has_tasks, on_older_cluster=ends.end_with_line)

        async def open_local(cluster: ClusterSettings) -> LocalQueue:
            hooks = QueueHooks(
                surroundings=node.state.plane,
                stop_elsewhere=node.stop_elsewhere,
                tell_worker=node.tell_worker,
                on_disk_floor=ends.disk_full,
                on_broken=ends.promise_broken,
                workers_are_gone=lambda: workers_gone or _prove_alone(lock),
            )
            return await open_local_queue(
                store,
                clock,
                _queue_settings(
                    settings, node.work.defaults, identity, cluster, lambda: node.state.tokens.table().is_checked
                ),
                metrics,
                hooks,
            )

        node = Node(
            clock,
            ClusterQueueSettings(
                node_id=identity.registration.node_id,
                node_name=settings.node_name,
                open_local=open_local,
                declared=registry.declared,
                no_handler_after_ms=settings.no_handler_after_ms,
                draw=random.random,
                secret_for_joiners=identity.secret_for_joiners,
                file_tokens=FileTokens(settings.asks_for_tokens, () if tokens is None else tokens.value),
                notes=lambda: (*rereading.notes(), *_audit_notes(audit)),
            ),
            partial(make_plane, settings, store, clock, identity),
            NodeHooks(
                guard=birth.guarded,
                on_greeted=birth.greeted,
                on_shutdown=ends.shutdown_asked,
                on_refused=ends.refused_by_cluster,
                on_broken=ends.promise_broken,
            ),
        )
        if tokens is not None:
            tokens.on_change.append(lambda value: node.state.tokens.tell_file(FileTokens(True, value)))
            rereading.add(tokens)
        member = Member(settings, store, clock, identity, node.state.plane, birth)
        admin = ClusterAdmin(node.state, clock, ends.shutdown_asked)
        queue = ClusterQueue(node.state, node.work, admin, clock)
        worker = WorkerService(
            queue,
            registry,
            WorkerSettings(
                concurrency=settings.concurrency,
                stop_timeout_s=settings.stop_timeout_ms / 1000,
                echo=settings.echo_handlers,
                environment=ProcessEnvironment(
                    variables=environment_for(os.environ, settings.worker_env),
                    umask=umask,
                    bounds=Bounds(settings.worker_memory_bytes),
                    lock_fd=lock.fd,
                ),
            ),
        )
        sources = metrics.sources
        sources.task_counts = admin.task_counts
        sources.is_leader = admin.is_leader
        sources.is_ready = lambda: not queue.not_ready()
        sources.nodes = admin.nodes_by_status
        sources.partitions_short = admin.partitions_short
        sources.disk_free_bytes = store.disk_free_bytes
        sources.store_bytes = store.bytes_on_disk
        sources.uncommitted_bytes = admin.uncommitted_bytes
        sources.moves = admin.moves
        sources.waiting = node.work.waiting
        sources.moves_waiting = admin.moves_waiting
        sources.copy_bytes_left = admin.copy_bytes_left
        sources.copied_bytes = admin.copied_bytes
        sources.workers = lambda: {
            "busy": worker.running_count,
            "idle": settings.concurrency - worker.running_count,
        }
        loop_monitor = LoopMonitor(metrics, reactor)
        site = make_site(
            queue,
            ApiSettings(
                version=version(),
                body_bytes_max=settings.body_bytes_max,
                payload_bytes_max=settings.payload_bytes_max,
                connections_max=connections_max(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
                host_names=settings.host_names,
                open_metrics=settings.open_metrics,
                redact=settings.redact,
            ),
            metrics,
            shutdown=ends.shutdown_asked,
            reactor=reactor,
            slices=clock.slices,
            audit=audit,
            wall_us=clock.wall_us,
        )
        served = secured(site, certificates, rereading)
        ports = []
        for listen in (settings.http, settings.http_compatible):
            if listen is not None:
                endpoint = serverFromString(tcp_reactor(reactor, settings), with_backlog(listen.endpoint))
                ports.append(listen_now(endpoint.listen(served)))
                undo.callback(ports[-1].stopListening)
        member.listen()
        undo.callback(member.stop_listening)
        replace(settings.pid_file, f"{os.getpid()}\n")
        notifier = Notifier.from_environment(os.environ, clock, queue, settings.stop_timeout_ms / 1000)
        undo.pop_all()
    return NodeParts(
        clock, store, lock, member, node, queue, worker, loop_monitor, notifier, rereading, site, audit, ports
    )


def _look_around(settings: NodeSettings, registry: Registry, notes: Sequence[ReadyNote]) -> None:
    """Refuse first what can be: ``TooFewFiles``, ``PeerPortTaken``, ``CannotListenError``."""
    check_files(settings.concurrency if registry.needs_processes else 0)
    for listen in (settings.http, settings.http_compatible):
        if listen is not None and not listen.is_inherited:
            check_free(listen.host, listen.port)
    try:
        check_free(settings.peer.host, settings.peer.port)
    except CannotListenError as why:
        raise PeerPortTaken(f"--peer: {why}") from None
    for warning in secure_directory(settings.data_dir):
        _log.warn("--data-dir: {warning}", warning=warning, event="directory_exposed")
    for note in notes:
        _log.warn("{note}", note=note.detail, event=note.code)


def _tokens_of(settings: NodeSettings) -> RereadFiles[tuple[TokenEntry, ...]] | None:
    path = settings.tokens_file
    if path is None:
        return None
    try:
        return RereadFiles("--tokens-file", [path], partial(tokens_file.read, path))
    except (BadTokensFile, OSError) as why:  # as it is now: the settings were read a moment ago
        raise BadCredentials(f"--tokens-file: {why}") from None


def _notes_of(settings: NodeSettings) -> tuple[ReadyNote, ...]:
    anybody = "whoever reaches {} may do whatever a node can do, without credentials"
    in_the_clear = "tokens go to {} in plain text, unless something in front of it does TLS"
    notes = []
    if settings.insecure_http:
        about = in_the_clear if settings.asks_for_tokens else anybody
        notes.append(ReadyNote("insecure_http", f"--insecure-http: {about.format(settings.http_public)}"))
    if settings.insecure_peers:
        notes.append(ReadyNote("insecure_peers", f"--insecure-peers: {anybody.format(settings.peer_public)}"))
    return tuple(notes)


def _open_audit_log(settings: NodeSettings, reactor: Any, clock: Clock) -> AuditLog | None:
    if settings.audit_log is None:
        return None
    try:
        return AuditLog(
            settings.audit_log, settings.node_name, reactor, clock.wall_us,
            bytes_max=settings.audit_file_bytes, kept=settings.audit_files_kept,
        )  # fmt: skip
    except (AuditLocked, OSError) as why:
        raise AuditLogUnusable(f"--audit-log: {why}") from None


def _audit_notes(audit: AuditLog | None) -> Sequence[ReadyNote]:
    if audit is None or not audit.failing:
        return ()
    said = f"--audit-log: it can't be written ({audit.failing}), and {audit.lines_lost()} lines are lost so far"
    return (ReadyNote("audit_log_failing", said),)


def _look_for_failure(settings: NodeSettings) -> None:
    """A store that has failed is not opened again (R18).

    :raises StoreFailed: ``--readmit`` is not given to set it aside.
    :raises DirectoryLocked: a node runs on it."""
    directory = settings.data_dir
    if settings.readmit:
        aside = set_store_aside(directory)
        if aside is not None:
            _log.warn("the failed store was set aside as {path}", path=str(aside), event="store_set_aside")
    elif (why := why_failed(directory)) is not None:
        raise StoreFailed(
            f"the store in {directory} has failed ({why}) and may lack what was acknowledged: start with --readmit and "
            f"--join to come back as a new node; one that is alone goes on with what is left once {FAILED_MARK} is deleted"
        )


def _queue_settings(
    settings: NodeSettings,
    defaults: TypeDefaultsTable,
    identity: NodeIdentity,
    cluster: ClusterSettings,
    counts_makers: Callable[[], bool],
) -> QueueSettings:
    return QueueSettings(
        node_id=identity.registration.node_id,
        node_name=settings.node_name,
        incarnation=identity.registration.incarnation,
        seed=cluster.seed,
        partition_count=cluster.partition_count,
        born_us=cluster.born_us,
        retention_ms=settings.retention_ms,
        dedupe_window_ms=settings.dedupe_window_ms,
        disk_free_bytes_min=settings.disk_free_bytes_min,
        copy_rate_bytes_s=settings.copy_rate_bytes_s,
        snapshot_dir=str(settings.snapshot_dir),
        snapshots_kept=settings.snapshots_kept,
        defaults_of=defaults.of,
        declared_queues=lambda: defaults.queues,
        counts_makers=counts_makers,
        random_bytes=os.urandom,
        draw=random.random,
    )


def _prove_alone(lock: WorkersLock) -> bool:
    try:
        return lock.prove_alone()
    except OSError as why:
        _log.error("can't ask for the workers' lock: {why}", why=str(why), event="workers_lock_failed")
        return False  # then the lease has to pass
