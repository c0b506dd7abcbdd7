"""The node as a service of twistd: starts and stops what ``build`` made, decides how it ends.

``twistd taskqueue`` calls ``makeService``. ``NodeService`` has everything built that can be
refused before anything runs, starts it in order, and stops it in the reverse order of trust: no
more work, handlers, partitions, connections, store."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.cli.options import Options, refuse, say
from tq_node.cluster.commands import UnreadableCommand
from tq_node.cluster.map import UnreadableMap
from tq_node.cluster.refusals import Refusal
from tq_node.errors import StoreBroken
from tq_node.node.build import AuditLogUnusable, NodeParts, StoreFailed, build
from tq_node.node.member import PeerPortTaken
from tq_node.node.process import (
    EXIT_DISK_FULL,
    EXIT_REFUSED,
    EXIT_SOFTWARE,
    EXIT_STORE_BROKEN,
    TooFewFiles,
    calm_the_collector,
    end_at_once,
    set_up,
)
from tq_node.node.signals import Ending, Signals, stop_once
from tq_node.runtime.bootstrap.credentials import BadCredentials
from tq_node.runtime.bootstrap.identity import IsCopy, NeverJoined, NoSecret, WrongName
from tq_node.runtime.bootstrap.invitation import JoinRefused
from tq_node.runtime.bootstrap.join import refusal_line
from tq_node.runtime.clock import make_reactor_monotonic
from tq_node.store.lock import DirectoryLocked
from tq_node.store.readmit import mark_failed
from tq_node.store.sqlite.upgrade import SchemaTooNew
from tq_node.work.handler_output import wrap_streams
from tq_node.work.handlers import HandlerError
from tq_node.work.registry import Registry

_log = Logger(namespace="taskqueue.node")

SITE_CLOSE_S = 5.0
READY_LOOK_S = 0.05


def makeService(options: Options) -> NodeService:
    """Opens nothing: a daemon forks between this and the start, and threads don't survive that."""
    from twisted.internet import reactor

    settings = options.settings
    ending = Ending(settings.stop_timeout_ms / 1000)

    def reload() -> None:
        made.reload()  # made by then: the reactor runs

    signals = Signals(reactor, ending, EXIT_SOFTWARE, reload)
    signals.outlive()
    working_dir = str(settings.working_dir)
    if working_dir not in sys.path:
        sys.path.append(working_dir)  # a daemon changes directory later. Last, as ``load_handlers`` promises
    wrap_streams()
    try:
        registry = Registry.load(settings.handlers, may_simulate=settings.is_for_this_machine)
    except HandlerError as why:
        refuse(f"--handlers: {why}")
    made = NodeService(options, registry, reactor, ending, signals)
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
    """One node. Bad surroundings end the process with one line; what breaks later, with a code."""

    name = "taskqueue"

    def __init__(self, options: Options, registry: Registry, reactor: Any, ending: Ending, signals: Signals) -> None:
        self._refuse_start = options.refuse_start
        self._remove_pid_file = options.remove_pid_file
        self._settings = options.settings
        self._registry = registry
        self._reactor = reactor
        self._ending = ending
        self._signals = signals
        self._parts: NodeParts | None = None
        """None: not started, or refused."""
        self._starting = _done()
        self._is_stopping = False
        self._exit_code = 0
        self._umask = _user_umask(options.parent)
        """Of the user, before daemon and node take a stricter one: handlers make files with it."""

    # --- start ---
    def startService(self) -> None:
        super().startService()
        make_reactor_monotonic(self._reactor)
        set_up()
        try:
            parts = build(self._settings, self._registry, self._reactor, self._umask, self)
        except (
            HandlerError, DirectoryLocked, SchemaTooNew, StoreBroken, StoreFailed, WrongName, IsCopy, NoSecret, NeverJoined,
            BadCredentials, AuditLogUnusable, PeerPortTaken, CannotListenError, TooFewFiles, OSError,
        ) as why:  # fmt: skip
            self._refuse_start(_named(why))
        self._parts = parts
        parts.notifier.start()
        self._reactor.callWhenRunning(self._signals.end_in_order)
        self._starting = Deferred.fromCoroutine(self._start(parts))
        self._starting.addErrback(self._failed_to_start)

    async def _start(self, parts: NodeParts) -> None:
        parts.loop_monitor.startService()
        parts.rereading.start(self._reactor)
        await parts.member.start()
        parts.node.start()
        parts.worker.startService()
        try:
            await parts.member.join()
        except JoinRefused as why:
            self.end_with_line(str(why))
            return
        self._say_ready(parts)

    def _say_ready(self, parts: NodeParts) -> None:
        if self._is_stopping:
            return
        if parts.queue.not_ready():
            parts.clock.call_later(READY_LOOK_S, self._say_ready, parts)
            return
        calm_the_collector()
        _log.info(
            "node {node} is ready: {http}", node=self._settings.node_name, http=self._settings.http_url, event="node_ready",
        )  # fmt: skip

    def _failed_to_start(self, why: Failure) -> None:
        if why.check(UnreadableMap, UnreadableCommand):
            line = f"taskqueue: {why.getErrorMessage()}; a release that can read it goes on with this directory"
            _log.critical("{line}", line=line, event="node_refused")
            say(line)
            end_at_once(EXIT_REFUSED)
        _log.failure("the node could not start", failure=why, event="start_failed")
        end_at_once(EXIT_STORE_BROKEN if why.check(StoreBroken) else EXIT_SOFTWARE)

    # --- again ---
    def reload(self) -> None:
        """SIGHUP: import the modules of ``--handlers`` anew; one that can't be stays as it was."""
        if self._parts is None or self._is_stopping or not self.running:
            return
        _log.info("SIGHUP: the handlers are loaded anew", event="reloaded")
        if self._parts.worker.running:
            self._parts.worker.reload_handlers().addBoth(lambda _: None)  # the worker says what there is to say

    # --- end ---
    def stopService(self) -> Deferred[None]:
        """Take no more work, give handlers their time, hand over, flush; only the store is left."""
        super().stopService()
        self._is_stopping = True
        self._ending.begun(EXIT_SOFTWARE)
        parts = self._parts
        if parts is None:
            return _done()
        parts.notifier.stopping()
        parts.node.begin_to_stop()
        parts.member.stop_joining()
        stopping = Deferred.fromCoroutine(self._stop(parts))
        # twistd would drop it without a word, and end with 0.
        return stopping.addErrback(self._failed_to_stop)

    async def _stop(self, parts: NodeParts) -> None:
        await self._starting
        handlers_ended = parts.worker.stopService() if parts.worker.running else _done()
        await parts.node.transfer_partitions()
        parts.node.refuse_work()
        await handlers_ended
        await parts.node.transfer_partitions()  # also what has come here since
        await parts.member.leave_gracefully()
        for port in parts.ports:
            await cast("Deferred[object]", port.stopListening() or _done())
        await parts.node.stop()
        await parts.site.close(SITE_CLOSE_S)
        if parts.audit is not None:
            await parts.audit.close()
        await parts.member.stop()
        parts.loop_monitor.stopService()
        parts.rereading.stop()
        await parts.store.close()
        parts.notifier.stop()
        parts.lock.close()
        self._settings.pid_file.unlink(missing_ok=True)
        _log.info("node {node} has stopped", node=self._settings.node_name, event="node_stopped")
        if self._exit_code:
            end_at_once(self._exit_code)
        self._ending.closed(0, self._remove_pid_file)

    def _failed_to_stop(self, why: Failure) -> None:
        _log.failure("the node could not stop in order", failure=why, event="stop_failed")
        end_at_once(EXIT_SOFTWARE)

    # --- build.NodeEnds ---
    def shutdown_asked(self) -> None:
        # A moment, so that the answer reaches whoever asked.
        self._reactor.callLater(0.1, stop_once, self._reactor)

    def refused_by_cluster(self, refusal: Refusal) -> None:
        line = refusal_line(refusal, self._settings.node_name)
        if refusal is Refusal.STORE_CLONED and self._parts is not None and not self._is_stopping:
            self._parts.node.refuse_work()
            # A store that fails says so itself (R18).
            self._parts.member.remember_copy().addBoth(lambda _: self.end_with_line(line))
        else:
            self.end_with_line(line)

    def end_with_line(self, line: str) -> None:
        """Say so in one line, stop in order, exit with 1."""
        if not self._is_stopping:
            self._end_in_order(EXIT_REFUSED, line, "node_refused")
            say(line)

    def disk_full(self) -> None:
        if not self._is_stopping:
            self._end_in_order(EXIT_DISK_FULL, "the disk is full; the node stops in order", "disk_floor")

    def _end_in_order(self, exit_code: int, line: str, event: str) -> None:
        _log.critical("{line}", line=line, event=event)
        self._exit_code = exit_code
        if self._parts is not None:
            self._parts.node.refuse_work()
        self._reactor.callLater(0, stop_once, self._reactor)

    def store_broken(self, why: Exception) -> None:
        """The first failed write ends the process: no retry, no further message (R18)."""
        mark_failed(self._settings.data_dir, str(why))
        _log.critical("the store is broken, the node ends: {why}", why=str(why), event="store_broken")
        end_at_once(EXIT_STORE_BROKEN)

    def promise_broken(self, why: BaseException) -> None:
        """An assertion stays on in production, and one that fails stops the process (R20)."""
        if isinstance(why, StoreBroken):
            self.store_broken(why)
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
