"""The composition root: with ``member`` the only module that wires concrete classes together, and it decides how they end.

``twistd taskqueue`` calls ``makeService``. ``NodeService`` assembles everything that can be refused before anything runs, starts
it in order, and stops it in the reverse order of trust: no more work, handlers, partitions, connections, store.
"""

from __future__ import annotations

import os
import random
import resource
import sys
from collections.abc import Callable
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.api.assembly import make_site
from tq_node.api.http.site import ApiSite
from tq_node.api.settings import ApiSettings, connections_max
from tq_node.cli.config import NodeSettings
from tq_node.cli.options import Options, refuse, say, version
from tq_node.cluster.commands import UnreadableCommand
from tq_node.cluster.map import UnreadableMap
from tq_node.cluster.records import ClusterSettings
from tq_node.cluster.refusals import Refusal
from tq_node.errors import StoreBroken
from tq_node.facade import ReadyNote
from tq_node.node.member import Credentials, Member, PeerPortTaken, identify
from tq_node.node.process import (
    EXIT_DISK_FULL,
    EXIT_REFUSED,
    EXIT_SOFTWARE,
    EXIT_STORE_BROKEN,
    TooFewFiles,
    calm_the_collector,
    check_files,
    check_free,
    end_at_once,
    listen_now,
    set_up,
    with_backlog,
)
from tq_node.node.signals import Ending, Signals, stop_once
from tq_node.node.systemd import Notifier
from tq_node.observe.loop_monitor import LoopMonitor
from tq_node.observe.metrics import Metrics
from tq_node.runtime.bootstrap.credentials import BadCredentials
from tq_node.runtime.bootstrap.identity import IsCopy, NeverJoined, NoSecret, WrongName
from tq_node.runtime.bootstrap.invitation import JoinRefused
from tq_node.runtime.bootstrap.join import refusal_line
from tq_node.runtime.clock import Clock, make_reactor_monotonic
from tq_node.runtime.routing.admin import ClusterAdmin
from tq_node.runtime.routing.cluster_queue import ClusterQueue
from tq_node.runtime.routing.node import Node, NodeHooks
from tq_node.runtime.routing.node_state import ClusterQueueSettings
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.local_queue import LocalQueue, QueueHooks, open_local_queue
from tq_node.store.lock import DirectoryLocked
from tq_node.store.private import replace, secure_directory
from tq_node.store.readmit import FAILED_MARK, mark_failed, set_store_aside, why_failed
from tq_node.store.sqlite.store import SqliteStore, open_store
from tq_node.store.sqlite.upgrade import SchemaTooNew
from tq_node.work.handler_output import wrap_streams
from tq_node.work.handlers import HandlerError
from tq_node.work.lease import WorkersLock
from tq_node.work.process_environment import Bounds, ProcessEnvironment, environment_for
from tq_node.work.registry import Registry
from tq_node.work.settings import WorkerSettings
from tq_node.work.worker import WorkerService

_log = Logger(namespace="taskqueue.node")

SITE_CLOSE_S = 5.0
READY_LOOK_S = 0.05


class StoreFailed(Exception):
    """One line: what became of the store, and what the operator can do."""


def makeService(options: Options) -> NodeService:
    """The node as a service. Opens nothing: a daemon forks between this and the start, and threads don't survive that."""
    from twisted.internet import reactor

    settings = options.settings
    made = NodeService(settings, options, reactor)
    made.signals.outlive()
    working_dir = str(settings.working_dir)
    if working_dir not in sys.path:
        sys.path.append(working_dir)  # a daemon changes directory later. Last, as ``load_handlers`` promises
    wrap_streams()
    try:
        made.registry = Registry.load(settings.handlers, may_simulate=settings.is_for_this_machine)
    except HandlerError as why:
        refuse(f"--handlers: {why}")
    return made


def _user_umask(twistd: Any) -> int:
    """What ``twistd --umask`` says, else what the shell has set."""
    asked = None if twistd is None else twistd.get("umask")
    if asked is not None:
        return int(asked)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


class NodeService(Service):
    """One node. What is wrong with its surroundings ends the process with one line; what breaks later, with a code."""

    name = "taskqueue"
    registry: Registry

    def __init__(self, settings: NodeSettings, options: Options, reactor: Any) -> None:
        self._refuse_start = options.refuse_start
        self._remove_pid_file = options.remove_pid_file
        self._settings = settings
        self._reactor = reactor
        self._ending = Ending(settings.stop_timeout_ms / 1000)
        self.signals = Signals(reactor, self._ending, EXIT_SOFTWARE, self._reload)
        self._clock: Clock
        self._metrics: Metrics
        self._store: SqliteStore
        self._member: Member
        self._node: Node
        self._admin: ClusterAdmin
        self._queue: ClusterQueue
        self._worker: WorkerService
        self._loop_monitor: LoopMonitor
        self._notifier: Notifier
        self._site: ApiSite
        self._lock: WorkersLock
        self._workers_gone = False
        self._exit_code = 0
        self._ports: list[IListeningPort] = []
        self._undo: list[Callable[[], object]] = []
        self._starting: Deferred[None] | None = None
        self._is_stopping = False
        self._umask = _user_umask(options.parent)
        """Before a daemon, and the node itself, take a stricter one: handlers make their files as the user does."""

    # --- start ---
    def startService(self) -> None:
        super().startService()
        make_reactor_monotonic(self._reactor)
        set_up()
        try:
            self._assemble()
        except (
            HandlerError, DirectoryLocked, SchemaTooNew, StoreBroken, StoreFailed, WrongName, IsCopy, NoSecret, NeverJoined,
            BadCredentials, PeerPortTaken, CannotListenError, TooFewFiles, OSError,
        ) as why:  # fmt: skip
            for undo in reversed(self._undo):
                undo()
            self._refuse_start(_named(why))
        stop_s = self._settings.stop_timeout_ms / 1000
        self._notifier = Notifier.from_environment(os.environ, self._clock, self._queue, stop_s)
        self._notifier.start()
        self._reactor.callWhenRunning(self.signals.end_in_order)
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._failed_to_start)

    def _assemble(self) -> None:
        """Everything that can be refused: credentials, directory, identity, ports."""
        settings = self._settings
        self._metrics = metrics = Metrics(
            version=version(), node=settings.node_name, labels_max=settings.metrics_labels
        )
        credentials = Credentials.of(settings)
        self._look_around()
        self._look_for_failure()
        self._store = open_store(
            settings.data_dir, reactor=self._reactor, on_broken=self._store_broken, on_commit=metrics.committed
        )
        self._undo.append(self._store.close)
        self._clock = Clock(self._reactor)
        identity = identify(
            settings, credentials, self._store.meta(), self._clock.wall_us(), os.urandom, self.registry.announced.kind
        )
        member = self._member = Member(
            settings, self._reactor, self._store, self._clock, identity, on_older_cluster=self._end_with_line
        )
        self._lock = WorkersLock(settings.data_dir / "workers.lock")
        self._undo.append(self._lock.close)
        # Also takes it (shared) for this start: whoever comes after us must be able to tell that our workers live.
        self._workers_gone = self._lock.prove_alone()
        node = self._node = Node(
            self._clock,
            ClusterQueueSettings(
                node_id=member.node_id,
                node_name=settings.node_name,
                open_local=self._open_local_queue,
                no_handler_after_ms=settings.no_handler_after_ms,
                draw=random.random,
                secret_for_joiners=member.secret_for_joiners,
                notes=self._notes(),
            ),
            member.assemble,
            NodeHooks(
                guard=member.guarded,
                on_greeted=member.greeted,
                on_shutdown=self._shutdown_asked,
                on_refused=self._refused_by_cluster,
                on_broken=self._promise_broken,
            ),
        )
        self._admin = ClusterAdmin(node.state, self._clock, self._shutdown_asked)
        self._queue = ClusterQueue(node.state, node.work, self._admin, self._clock)
        self._worker = WorkerService(
            self._queue,
            self.registry,
            WorkerSettings(
                concurrency=settings.concurrency,
                stop_timeout_s=settings.stop_timeout_ms / 1000,
                echo=settings.echo_handlers,
                environment=ProcessEnvironment(
                    variables=environment_for(os.environ, settings.worker_env),
                    umask=self._umask,
                    bounds=Bounds(settings.worker_memory_bytes),
                    lock_fd=self._lock.fd,
                ),
            ),
        )
        self._assemble_site(metrics)
        member.listen()
        self._undo.append(member.stop_listening)
        replace(settings.pid_file, f"{os.getpid()}\n")

    def _look_around(self) -> None:
        """What can be refused before anything is made on disk.

        :raises TooFewFiles, PeerPortTaken, CannotListenError:
        """
        settings = self._settings
        check_files(settings.concurrency if self.registry.needs_processes else 0)
        for listen in (settings.http, settings.http_compatible):
            if listen is not None and not listen.is_inherited:
                check_free(listen.host, listen.port)
        try:
            check_free(settings.peer.host, settings.peer.port)
        except CannotListenError as why:
            raise PeerPortTaken(f"--peer: {why}") from None
        for warning in secure_directory(settings.data_dir):
            _log.warn("--data-dir: {warning}", warning=warning, event="directory_exposed")
        for note in self._notes():
            _log.warn("{note}", note=note.detail, event=note.code)

    def _notes(self) -> tuple[ReadyNote, ...]:
        settings = self._settings
        said = (
            ("insecure_http", settings.insecure_http, "--insecure-http", settings.http_public),
            ("insecure_peers", settings.insecure_peers, "--insecure-peers", settings.peer_public),
        )
        return tuple(
            ReadyNote(code, f"{option}: whoever reaches {address} may do whatever a node can do, without credentials")
            for code, is_said, option, address in said
            if is_said
        )

    def _look_for_failure(self) -> None:
        """A store that has failed is not opened again (R18).

        :raises StoreFailed: and ``--readmit`` is not there to set it aside. :raises DirectoryLocked:
        """
        directory = self._settings.data_dir
        if self._settings.readmit:
            aside = set_store_aside(directory)
            if aside is not None:
                _log.warn("the failed store was set aside as {path}", path=str(aside), event="store_set_aside")
        elif (why := why_failed(directory)) is not None:
            raise StoreFailed(
                f"the store in {directory} has failed ({why}) and may lack what was acknowledged: start with --readmit and "
                f"--join to come back as a new node; one that is alone goes on with what is left once {FAILED_MARK} is deleted"
            )

    def _assemble_site(self, metrics: Metrics) -> None:
        settings = self._settings
        metrics.sources.task_counts = self._admin.task_counts
        metrics.sources.is_leader = self._admin.is_leader
        metrics.sources.is_ready = lambda: not self._queue.not_ready()
        metrics.sources.nodes = self._admin.nodes_by_status
        metrics.sources.partitions_short = self._admin.partitions_short
        metrics.sources.disk_free_bytes = self._store.disk_free_bytes
        metrics.sources.store_bytes = self._store.bytes_on_disk
        metrics.sources.uncommitted_bytes = self._admin.uncommitted_bytes
        metrics.sources.moves = self._admin.moves
        metrics.sources.moves_waiting = self._admin.moves_waiting
        metrics.sources.copy_bytes_left = self._admin.copy_bytes_left
        metrics.sources.copied_bytes = self._admin.copied_bytes
        metrics.sources.workers = lambda: {
            "busy": self._worker.running_count,
            "idle": settings.concurrency - self._worker.running_count,
        }
        self._loop_monitor = LoopMonitor(metrics, self._reactor)
        self._site = make_site(
            self._queue,
            ApiSettings(
                version=version(),
                body_bytes_max=settings.body_bytes_max,
                payload_bytes_max=settings.payload_bytes_max,
                connections_max=connections_max(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
                host_names=settings.host_names,
            ),
            metrics,
            shutdown=self._shutdown_asked,
            reactor=self._reactor,
            slices=self._clock.slices,
        )
        for listen in (settings.http, settings.http_compatible):
            if listen is not None:
                endpoint = serverFromString(self._reactor, with_backlog(listen.endpoint))
                self._ports.append(listen_now(endpoint.listen(self._site)))
                self._undo.append(self._ports[-1].stopListening)

    async def _open_local_queue(self, cluster: ClusterSettings) -> LocalQueue:
        settings = self._settings
        return await open_local_queue(
            self._store,
            self._clock,
            QueueSettings(
                node_id=self._member.node_id,
                node_name=settings.node_name,
                incarnation=self._member.identity.registration.incarnation,
                seed=cluster.seed,
                partition_count=cluster.partition_count,
                born_us=cluster.born_us,
                retention_ms=settings.retention_ms,
                dedupe_window_ms=settings.dedupe_window_ms,
                disk_free_bytes_min=settings.disk_free_bytes_min,
                copy_rate_bytes_s=settings.copy_rate_bytes_s,
                snapshot_dir=str(settings.snapshot_dir),
                snapshots_kept=settings.snapshots_kept,
                defaults_of=self.registry.defaults,
                declared_queues=self.registry.queues,
                random_bytes=os.urandom,
                draw=random.random,
            ),
            self._metrics,
            QueueHooks(
                surroundings=self._node.state.plane,
                stop_elsewhere=self._node.stop_elsewhere,
                on_disk_floor=self._disk_floor,
                on_broken=self._promise_broken,
                workers_are_gone=lambda: self._workers_gone or self._prove_alone(),
            ),
        )

    async def _start(self) -> None:
        self._loop_monitor.startService()
        await self._member.start()
        self._node.start()
        self._worker.startService()
        try:
            await self._member.join()
        except JoinRefused as why:
            self._end_with_line(str(why))
            return
        self._say_ready()

    def _say_ready(self) -> None:
        if self._is_stopping:
            return
        if self._queue.not_ready():
            self._clock.call_later(READY_LOOK_S, self._say_ready)
            return
        calm_the_collector()
        _log.info(
            "node {node} is ready: http://{http}", node=self._settings.node_name,
            http=str(self._settings.http_public), event="node_ready",
        )  # fmt: skip

    def _failed_to_start(self, why: Failure) -> None:
        if why.check(UnreadableMap, UnreadableCommand):
            line = f"taskqueue: {why.getErrorMessage()}; a release that can read it goes on with this directory"
            _log.critical("{line}", line=line, event="node_refused")
            say(line)
            end_at_once(EXIT_REFUSED)
        _log.failure("the node could not start", failure=why, event="start_failed")
        end_at_once(EXIT_STORE_BROKEN if why.check(StoreBroken) else EXIT_SOFTWARE)

    def _prove_alone(self) -> bool:
        try:
            return self._lock.prove_alone()
        except OSError as why:
            _log.error("can't ask for the workers' lock: {why}", why=str(why), event="workers_lock_failed")
            return False  # then the lease has to pass

    # --- again ---
    def _reload(self) -> None:
        """SIGHUP: read again what can be; whatever does not do then stays as it was."""
        if self._is_stopping or not self.running:
            return
        _log.info("SIGHUP: the handlers are loaded anew", event="reloaded")
        self.reload_handlers()

    def reload_handlers(self) -> Deferred[None]:
        """Import the modules of ``--handlers`` anew, and say in the log what became of it. Never fails; fires when it is done.

        Where a module can't be imported the handlers of before go on.
        """
        done: Deferred[None] = Deferred()
        if self._is_stopping or not self._worker.running:
            done.callback(None)
        else:
            self._worker.reload_handlers().addBoth(
                lambda _: done.callback(None)
            )  # the worker says what there is to say
        return done

    # --- end ---
    def stopService(self) -> Deferred[None]:
        """Take no more work, give handlers their time, hand over, flush, and leave nothing behind but the store."""
        super().stopService()
        self._is_stopping = True
        self._ending.begun(EXIT_SOFTWARE)
        self._notifier.stopping()
        self._node.begin_to_stop()
        self._member.stop_joining()
        stopping = Deferred.fromCoroutine(self._stop())
        # twistd would drop it without a word, and end with 0.
        return stopping.addErrback(self._failed_to_stop)

    async def _stop(self) -> None:
        if self._starting is not None:
            await self._starting
        handlers_ended = self._worker.stopService() if self._worker.running else _done()
        await self._node.transfer_partitions()
        self._node.refuse_work()
        await handlers_ended
        await self._node.transfer_partitions()  # also what has come here since
        await self._member.leave_gracefully()
        for port in self._ports:
            await cast("Deferred[object]", port.stopListening() or _done())
        await self._node.stop()
        await self._site.close(SITE_CLOSE_S)
        await self._member.stop()
        self._loop_monitor.stopService()
        await self._store.close()
        self._notifier.stop()
        self._lock.close()
        self._settings.pid_file.unlink(missing_ok=True)
        _log.info("node {node} has stopped", node=self._settings.node_name, event="node_stopped")
        if self._exit_code:
            end_at_once(self._exit_code)
        self._ending.closed(0, self._remove_pid_file)

    def _failed_to_stop(self, why: Failure) -> None:
        _log.failure("the node could not stop in order", failure=why, event="stop_failed")
        end_at_once(EXIT_SOFTWARE)

    def _shutdown_asked(self) -> None:
        # A moment, so that the answer reaches whoever asked.
        self._reactor.callLater(0.1, stop_once, self._reactor)

    def _refused_by_cluster(self, refusal: Refusal) -> None:
        line = refusal_line(refusal, self._settings.node_name)
        if refusal is Refusal.STORE_CLONED and not self._is_stopping:
            self._node.refuse_work()
            self._member.remember_copy().addBoth(
                lambda _: self._end_with_line(line)
            )  # a store that fails says so itself (R18)
        else:
            self._end_with_line(line)

    def _end_with_line(self, line: str) -> None:
        """The node can't be what it was started as: say so in one line, stop in order, exit with 1."""
        if self._is_stopping:
            return
        _log.critical("{line}", line=line, event="node_refused")
        say(line)
        self._exit_code = EXIT_REFUSED
        self._node.refuse_work()
        self._reactor.callLater(0, stop_once, self._reactor)

    def _disk_floor(self) -> None:
        if not self._is_stopping:
            _log.critical("the disk is full; the node stops in order", event="disk_floor")
            self._exit_code = EXIT_DISK_FULL
            self._node.refuse_work()
            self._reactor.callLater(0, stop_once, self._reactor)

    def _store_broken(self, why: Exception) -> None:
        """The first failed write ends the process: no retry, no further message (R18)."""
        mark_failed(self._settings.data_dir, str(why))
        _log.critical("the store is broken, the node ends: {why}", why=str(why), event="store_broken")
        end_at_once(EXIT_STORE_BROKEN)

    def _promise_broken(self, why: BaseException) -> None:
        """An assertion stays on in production, and one that fails stops the process (R20)."""
        if isinstance(why, StoreBroken):
            self._store_broken(why)
        _log.critical("a promise is broken, the node ends: {why!r}", why=why, event="promise_broken")
        end_at_once(EXIT_SOFTWARE)


def _named(why: Exception) -> str:
    """One line that names the option whose value did not do."""
    if isinstance(why, CannotListenError):
        return f"--http: {why}"
    return f"--data-dir: {why}" if isinstance(why, OSError) else str(why)


def _done() -> Deferred[None]:
    done: Deferred[None] = Deferred()
    done.callback(None)
    return done
