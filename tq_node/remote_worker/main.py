"""``tq-worker``: puts a worker together, runs it until a signal or an operator ends it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver

from tq_node.distributions import refuse_both
from tq_node.errors import TaskQueueError
from tq_node.remote_worker.announcement import Announcement
from tq_node.remote_worker.options import WorkerOptions, read_options
from tq_node.remote_worker.remote_queue import RemoteQueue
from tq_node.remote_worker.status_page import StatusSite
from tq_node.remote_worker.watch import Watch
from tq_node.remote_worker.work_api import WorkApi, Worker
from tq_node.work.handler_output import wrap_streams
from tq_node.work.handlers import HandlerError
from tq_node.work.process_environment import Bounds, ProcessEnvironment, environment_for
from tq_node.work.registry import Registry
from tq_node.work.settings import WorkerSettings
from tq_node.work.worker import WorkerService

_log = Logger(namespace="taskqueue.worker")
WATCH_S = 1.0


class RemoteWorker:
    """A worker from its options to its end; ``reactor`` runs on an asyncio loop."""

    def __init__(
        self, options: WorkerOptions, registry: Registry, reactor: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._options = options
        self._registry = registry
        self._reactor = reactor
        said = Worker(
            options.name, options.lease_s, registry.takes, options.queues, options.concurrency, options.version or None
        )
        api = WorkApi(options.settings, loop)
        self.queue = RemoteQueue(api, said, reactor, self._ordered)
        self._announcement = Announcement(api, options.name)
        environment = ProcessEnvironment(variables=environment_for(os.environ, ()), bounds=Bounds(options.memory_bytes))
        self.service = WorkerService(
            self.queue,
            registry,
            WorkerSettings(
                concurrency=options.concurrency,
                stop_timeout_s=options.stop_timeout_s,
                echo=options.echo,
                environment=environment,
            ),
            reactor=reactor,
        )
        self._watching: LoopingCall | None = None

    def start(self) -> None:
        """Begin to ask for work; call it in the running reactor."""
        options = self._options
        self.queue.begin()
        self.service.startService()
        self._announcement.say(self._registry.declared())
        if options.status_port is not None:
            host, port = options.status_port
            site = StatusSite(lambda: self.queue.is_connected, self._numbers)
            listening = self._reactor.listenTCP(port, site, interface=host)
            _log.info(
                "answers /health and /metrics at {where}",
                where=f"{host}:{listening.getHost().port}",
                event="status_page",
            )
        if options.watch:
            self._watching = LoopingCall(self._look, Watch(options.handlers))
            self._watching.start(WATCH_S, now=False)
        _log.info(
            "worker {name} runs up to {slots} tasks at once of {types}",
            name=options.name, slots=options.concurrency, types=", ".join(self._registry.types), event="worker_started",
        )  # fmt: skip

    def stop(self) -> Deferred[None]:
        """Take no more work, let handlers end, give the rest back; fires when nothing is left."""
        _log.info("worker {name} stops", name=self._options.name, event="worker_stops")
        if self._watching is not None:
            self._watching.stop()
        self._announcement.stop()
        self.queue.stop_claiming()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.service.stopService()
        await Deferred.fromFuture(asyncio.ensure_future(self.queue.close()))

    def _ordered(self, state: str) -> None:
        if state == "stop":
            self._reactor.callLater(0, self._reactor.stop)

    def _look(self, watch: Watch) -> None:
        if watch.has_changed():
            reloaded = self.service.reload_handlers()
            reloaded.addCallback(lambda _: self._announcement.say(self._registry.declared())).addErrback(
                lambda why: (
                    _log.warn(
                        "the handlers are those of before: {why}", why=why.getErrorMessage(), event="reload_failed"
                    )
                    if why.check(TaskQueueError)
                    else why
                )
            )

    def _numbers(self) -> dict[str, tuple[str, str, float]]:
        queue, service = self.queue, self.service
        return {
            "taskqueue_worker_claimed_total": ("counter", "Tasks claimed.", queue.claimed),
            "taskqueue_worker_finished_total": ("counter", "Attempts whose end a node has.", queue.finished),
            "taskqueue_worker_running": ("gauge", "Attempts that run.", service.running_count),
            "taskqueue_worker_slots": ("gauge", "Attempts that may run at once.", self._options.concurrency),
            "taskqueue_worker_connected": ("gauge", "Whether a node answers.", float(queue.is_connected)),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker as the command line says; the exit code."""
    options = read_options(sys.argv[1:] if arguments is None else arguments)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    from twisted.internet import asyncioreactor

    asyncioreactor.install(loop)
    from twisted.internet import reactor

    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    wrap_streams()
    try:
        registry = Registry.load(options.handlers)
    except HandlerError as why:
        sys.stderr.write(f"tq-worker: --handlers: {why}\n")
        return 1
    worker = RemoteWorker(options, registry, reactor, loop)
    running: Any = reactor
    # A turn later: asyncio says that its loop runs only once it does.
    running.callWhenRunning(running.callLater, 0, worker.start)
    running.addSystemEventTrigger("before", "shutdown", worker.stop)
    running.run()
    return 0


def command() -> None:
    """Entry point of ``tq-worker``."""
    refuse_both("tq-worker")
    sys.exit(main())
