"""The composition root: the only module that names concrete classes. ``twistd taskqueue`` calls ``makeService``."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.api.assembly import make_site
from tq_node.api.settings import ApiSettings
from tq_node.api.site import ApiSite
from tq_node.config import Settings
from tq_node.errors import StoreBroken
from tq_node.observe.loop_lag import LoopLagService
from tq_node.observe.metrics import Metrics
from tq_node.options import Options, refuse, version
from tq_node.runtime.clock import Clock, make_reactor_monotonic
from tq_node.runtime.identity import WrongName, identity_in, make_identity, next_start
from tq_node.runtime.queue import NodeQueue
from tq_node.runtime.settings import QueueSettings
from tq_node.store.lock import DirectoryLocked
from tq_node.store.sqlite import SqliteStore, open_store
from tq_node.store.upgrades import SchemaTooNew
from tq_node.work.handlers import HandlerError
from tq_node.work.lease import WorkersLock
from tq_node.work.registry import Registry
from tq_node.work.worker import WorkerService

_log = Logger(namespace="taskqueue.node")

EXIT_SOFTWARE = 70
EXIT_DISK_FULL = 75
EXIT_STORE_BROKEN = 74
SITE_CLOSE_S = 5.0
GC_THRESHOLD = 100_000
"""Objects that may form cycles, made and not gone, before the youngest are looked at; 10 % less CPU in a drain."""
SWITCH_INTERVAL_S = 0.00002
"""Shorter than a turn of the reactor: a busy one lets go of the interpreter at each system call and takes it again at
once, so a writer thread with a longer interval (Python's default: 5 ms) never gets to demand it, and a commit took seconds."""


def makeService(options: Options) -> NodeService:
    """The node as a service. Opens nothing: a daemon forks between this and the start, and threads don't survive that."""
    working_dir = str(options.settings.working_dir)
    if working_dir not in sys.path:
        sys.path.insert(0, working_dir)
    try:
        registry = Registry.load(options.settings.handlers)
    except HandlerError as why:
        refuse(f"--handlers: {why}")
    return NodeService(options.settings, registry, options.refuse_start)


class NodeService(Service):
    """One node. What is wrong with its surroundings ends the process with one line; what breaks later, with a code."""

    name = "taskqueue"

    def __init__(self, settings: Settings, registry: Registry, refuse_start: Callable[[str], NoReturn]) -> None:
        self._registry = registry
        self._refuse_start = refuse_start
        self._settings = settings
        self._reactor: Any = None
        self._store: SqliteStore
        self._queue: NodeQueue
        self._worker: WorkerService
        self._lag: LoopLagService
        self._site: ApiSite
        self._lock: WorkersLock
        self._workers_gone: Callable[[], bool]
        self._exit_code = 0
        self._ports: list[IListeningPort] = []
        self._undo: list[Callable[[], object]] = []
        self._starting: Deferred[None] | None = None

    # --- start ---
    def startService(self) -> None:
        from twisted.internet import reactor

        super().startService()
        self._reactor = reactor
        make_reactor_monotonic(reactor)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        _raise_file_limit()
        try:
            first = self._assemble()
        except (
            HandlerError, DirectoryLocked, SchemaTooNew, StoreBroken, WrongName, CannotListenError, OSError,
        ) as why:  # fmt: skip
            for undo in reversed(self._undo):
                undo()
            self._refuse_start(_named(why))
        reactor.callWhenRunning(_end_in_order_on_signals, reactor)
        self._starting = Deferred.fromCoroutine(self._start(first))
        self._starting.addErrback(self._failed_to_start)

    def _assemble(self) -> dict[str, bytes | None]:
        """Everything that can be refused: handlers, directory, identity, ports."""
        settings = self._settings
        registry = self._registry
        metrics = Metrics(version=version(), node=settings.node_name)
        self._store = open_store(
            settings.data_dir,
            reactor=self._reactor,
            on_broken=self._store_broken,
            on_commit=metrics.committed,
        )
        self._undo.append(self._store.close)
        clock = Clock(self._reactor)
        meta = self._store.meta()
        identity = identity_in(meta, settings.node_name)
        if identity is None:
            if settings.join:
                # The store was made by a start that ended before it had an identity; such a node must not found a cluster either.
                self._refuse_start("--join: this version can't join a cluster yet, and this directory belongs to none")
            identity = make_identity(
                node_name=settings.node_name,
                partition_count=settings.partitions,
                replication_factor=settings.replication_factor,
                random_bytes=os.urandom,
                now_us=clock.wall_us(),
            )
        incarnation, first = next_start(meta, identity)
        queue_settings = QueueSettings(
            node_id=identity.node_id,
            node_name=settings.node_name,
            cluster_id=identity.cluster_id,
            http=str(settings.http_public),
            peer=str(settings.peer_public),
            incarnation=incarnation,
            seed=identity.seed,
            partition_count=identity.partition_count,
            replication_factor=identity.replication_factor,
            born_us=identity.born_us,
            retention_ms=settings.retention_ms,
            dedupe_window_ms=settings.dedupe_window_ms,
            disk_free_bytes_min=settings.disk_free_bytes_min,
            backup_dir=str(settings.data_dir),
            defaults_of=registry.defaults,
            random_bytes=os.urandom,
            draw=random.random,
        )
        self._queue = NodeQueue(
            self._store, clock, queue_settings, metrics, on_disk_floor=self._disk_floor, on_broken=self._promise_broken
        )
        self._lock = WorkersLock(settings.data_dir / "workers.lock")
        self._undo.append(self._lock.close)
        # Also takes it (shared) for this start: whoever comes after us must be able to tell that our workers live.
        workers_gone = self._lock.prove_alone()
        self._workers_gone = lambda: workers_gone or self._prove_alone()
        self._worker = WorkerService(
            self._queue,
            registry,
            concurrency=settings.concurrency,
            stop_timeout_s=settings.stop_timeout_ms / 1000,
            lock=self._lock,
        )
        metrics.sources.disk_free_bytes = self._store.disk_free_bytes
        metrics.sources.store_bytes = self._store.bytes_on_disk
        metrics.sources.uncommitted_bytes = self._queue.uncommitted_bytes
        metrics.sources.workers = lambda: {
            "busy": self._worker.running_count,
            "idle": settings.concurrency - self._worker.running_count,
        }
        self._lag = LoopLagService(metrics, self._reactor)
        self._site = make_site(
            self._queue,
            ApiSettings(
                version=version(),
                body_bytes_max=settings.body_bytes_max,
                payload_bytes_max=settings.payload_bytes_max,
            ),
            metrics,
            shutdown=self._shutdown_asked,
            reactor=self._reactor,
        )
        for listen in (settings.http, settings.http_compatible):
            if listen is not None:
                self._ports.append(
                    _listen_now(serverFromString(self._reactor, _with_backlog(listen.endpoint)).listen(self._site))
                )
                self._undo.append(self._ports[-1].stopListening)
        settings.pid_file.write_text(f"{os.getpid()}\n")
        return first

    async def _start(self, first: dict[str, bytes | None]) -> None:
        self._lag.startService()
        await self._queue.start(first=first, workers_are_gone=self._workers_gone)
        if not self._queue.is_stopping:
            _calm_the_collector()
            self._worker.startService()
            _log.info(
                "node {node} is ready: http://{http}", node=self._settings.node_name,
                http=str(self._settings.http_public), event="node_ready",
            )  # fmt: skip

    def _failed_to_start(self, why: Failure) -> None:
        _log.failure("the node could not start", failure=why, event="start_failed")
        self._end_at_once(EXIT_STORE_BROKEN)

    def _prove_alone(self) -> bool:
        try:
            return self._lock.prove_alone()
        except OSError as why:
            _log.error("can't ask for the workers' lock: {why}", why=str(why), event="workers_lock_failed")
            return False  # then the lease has to pass

    # --- end ---
    def stopService(self) -> Deferred[None]:
        """Take no more work, give handlers their time, flush, and leave nothing behind but the store."""
        super().stopService()
        self._queue.refuse_work()
        stopping = Deferred.fromCoroutine(self._stop())
        # twistd would drop it without a word, and end with 0.
        return stopping.addErrback(self._failed_to_stop)

    async def _stop(self) -> None:
        if self._starting is not None:
            await self._starting
        if self._worker.running:
            await self._worker.stopService()
        for port in self._ports:
            await cast("Deferred[object]", port.stopListening() or _done())
        await self._queue.stop()
        await self._site.close(SITE_CLOSE_S)
        await self._lag.stopService()
        await self._store.close()
        self._lock.close()
        self._settings.pid_file.unlink(missing_ok=True)
        _log.info("node {node} has stopped", node=self._settings.node_name, event="node_stopped")
        if self._exit_code:
            self._end_at_once(self._exit_code)

    def _failed_to_stop(self, why: Failure) -> None:
        _log.failure("the node could not stop in order", failure=why, event="stop_failed")
        self._end_at_once(EXIT_SOFTWARE)

    def _shutdown_asked(self) -> None:
        # A moment, so that the answer reaches whoever asked.
        self._reactor.callLater(0.1, _stop_once, self._reactor)

    def _disk_floor(self) -> None:
        if not self._queue.is_stopping:
            _log.critical("the disk is full; the node stops in order", event="disk_floor")
            self._exit_code = EXIT_DISK_FULL
            self._queue.refuse_work()
            self._reactor.callLater(0, _stop_once, self._reactor)

    def _store_broken(self, why: Exception) -> None:
        """The first failed write ends the process: no retry, no further message (R18)."""
        _log.critical("the store is broken, the node ends: {why}", why=str(why), event="store_broken")
        self._end_at_once(EXIT_STORE_BROKEN)

    def _promise_broken(self, why: BaseException) -> None:
        """An assertion stays on in production, and one that fails stops the process (R20)."""
        _log.critical("a promise is broken, the node ends: {why!r}", why=why, event="promise_broken")
        self._end_at_once(EXIT_SOFTWARE)

    def _end_at_once(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _named(why: Exception) -> str:
    """One line that names the option whose value did not do."""
    if isinstance(why, CannotListenError):
        return f"--http: {why}"
    return f"--data-dir: {why}" if isinstance(why, OSError) else str(why)


def _with_backlog(endpoint: str) -> str:
    is_tcp = endpoint.startswith(("tcp:", "tcp6:"))
    return f"{endpoint}:backlog={limits.HTTP_BACKLOG}" if is_tcp and "backlog=" not in endpoint else endpoint


def _listen_now(listening: Deferred[IListeningPort]) -> IListeningPort:
    """The port of an endpoint that answers at once, as TCP and UNIX ones do.

    :raises CannotListenError: the address is in use or not ours.
    """
    result: list[IListeningPort | Failure] = []
    listening.addBoth(result.append)
    if isinstance(result[0], Failure):
        result[0].raiseException()
    return result[0]


def _done() -> Deferred[None]:
    done: Deferred[None] = Deferred()
    done.callback(None)
    return done


def _end_in_order_on_signals(reactor: Any) -> None:
    """SIGTERM and SIGINT stop the node and it exits with 0; twistd's own handlers would end it by the signal once more."""

    def stop(number: int, frame: object) -> None:
        reactor.callFromThread(_stop_once, reactor)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _stop_once(reactor: Any) -> None:
    if reactor.running:
        with suppress(ReactorNotRunning):
            reactor.stop()


def _calm_the_collector() -> None:
    """What is here now stays; what comes by the thousand forms no cycles (``gc=False``), so looking for them seldom is enough."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 1_000)


def _raise_file_limit() -> None:
    """As many open files as we are allowed: each HTTP client is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
