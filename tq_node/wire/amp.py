"""One AMP connection for peers that may be slow, broken or hostile. It does not know what the
commands mean.

Of ``twisted.protocols.amp.AMP`` little is left: the box format on the wire, ``amp.Command`` with
its argument types, and the ``IBoxReceiver`` names that a transport or a command calls. Nearly every
method of it is overridden here, because AMP

- buffers a box until it is complete, whoever sends it: here bounds hold while bytes arrive (F33);
- keeps any number of questions, answers and unsent bytes: here calls, commands under way and unsent
  bytes are bounded, and every call has a deadline; a peer that does not answer at all loses its
  connection (F35);
- ends the connection where a responder raises: here an exception is an answer (F34);
- finds responders by attribute and serves ``StartTLS``, protocol switches and file descriptors:
  here a command that was not passed to ``serve`` can't be reached (F37).

To inherit all the same keeps ``callRemote``, interfaces and Twisted's documentation valid for
readers who know AMP. The price is the last section of ``BoundedAMP``: methods that exist only to
close what AMP would open. (``docs/explanation/replication.md``, section 12.)"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from tq_node.errors import Busy, OutcomeUnknown, TaskQueueError
from tq_node.wire import bounds, errors
from tq_node.wire.calls import BODY, MORE, ByteBudget, Deadlines, InboundCall, OutboundCalls, Values
from tq_node.wire.errors import (
    AnswerTooLarge,
    BoxTooLarge,
    Internal,
    MalformedBox,
    OutOfOrder,
    PeerUnreachable,
    Stopped,
    TooSlow,
    UnknownCommand,
    Unread,
    WireRefusal,
)
from tq_node.wire.framing import Box, BoxParser, cut, serialize
from tq_node.wire.send_buffer import SendBuffer

WITHIN = "within_ms"
Log = Logger(namespace="taskqueue.wire")


class Responder(NamedTuple):
    """Serves one command.

    :param respond: takes the command's arguments; returns the answer's values, a Deferred of them,
        or a coroutine."""

    command: type[amp.Command]
    respond: Callable[..., Any]
    is_counted: bool = True
    """Whether the bounds count it, and refuse it as busy past them. False: it is done at once."""


class BoundedAMP(amp.AMP):
    """One connection, in both roles.

    :param send_bytes_max: what may wait in the transport; past it calls fail with ``Busy`` and
        messages are dropped.
    :param is_dialler: this side opened the connection; it asks, the other side answers."""

    transport: Any

    def __init__(self, reactor: IReactorTime, send_bytes_max: int, is_dialler: bool) -> None:
        super().__init__()
        self._reactor = reactor
        self._now_s = reactor.seconds
        self._budget = ByteBudget(bounds.BOX_BYTES_MAX)
        self.is_dialler = is_dialler
        self.ended: TaskQueueError | None = None
        """Why the connection is over; None while it is not."""
        self.broke = False
        """The peer or the network ended it, not this side (R5a)."""
        self.heard_at_s = 0.0
        self._served: Mapping[bytes, Responder] = {}
        self._parser = BoxParser(bounds.UNAUTHENTICATED)
        self._send_buffer = SendBuffer(reactor, send_bytes_max, self._drained)
        self._calls = OutboundCalls(reactor, lambda why: self.give_up(TooSlow(why)))
        self._inbound: set[InboundCall] = set()
        self._inbound_deadlines: Deadlines[InboundCall] = Deadlines(reactor, self._inbound_expired)
        self._was_full = False
        self._is_reading_paused = False
        self._lingering: IDelayedCall | None = None

    # --- for subclasses ---
    def opened(self) -> None:
        """Hook: the transport is connected; nothing is authenticated."""

    def lost(self) -> None:
        """Hook: the connection has ended, ``ended`` says why."""

    def writable(self) -> None:
        """Hook: a call or message was refused for want of room, and there is room again."""

    def bug(self, what: str, failure: Failure) -> None:
        """Hook: a responder raised an undeclared exception. It is logged and answered already."""

    def serve(self, *responders: Responder) -> None:
        """Serve exactly these commands from here on."""
        self._served = {responder.command.commandName: responder for responder in responders}

    def trust(self, budget: ByteBudget) -> None:
        """The peer is authenticated: boxes may have full size; ``budget`` counts those in work."""
        self._parser.caps = bounds.PEER
        self._budget = budget

    @property
    def is_trusted(self) -> bool:
        return self._parser.caps is bounds.PEER

    def is_open(self) -> bool:
        return self.ended is None and self.transport is not None

    # --- asking ---
    def call(
        self,
        command: type[amp.Command],
        deadline_s: float = bounds.CALL_S_DEFAULT,
        grace_s: float = bounds.ANSWER_GRACE_S,
        **arguments: Any,
    ) -> Deferred[Values]:
        """Ask the peer. The Deferred may be cancelled; it fires within ``deadline_s``.

        If ``grace_s`` later the peer has still not answered, be it that it knows no outcome, the
        connection is closed.

        Fails with ``PeerUnreachable`` or ``Busy`` (nothing was sent), ``OutcomeUnknown`` (no
        answer), or what the peer raised."""
        if not self.is_open():
            return fail(PeerUnreachable())
        if len(self._calls) >= bounds.CALLS_OUTSTANDING_MAX:
            return fail(Busy("too many calls to this peer wait for an answer"))
        tag = self._calls.next_tag()
        try:
            box = self._command_box(command, arguments, deadline_s)
            box[amp.ASK] = tag
            data = serialize(box)
        except Exception:  # what the caller gave does not fit the command
            return fail()
        if not self._has_room(len(data)):
            return fail(Busy("too much waits to be sent to this peer"))
        waiter = self._calls.begin(tag, command, deadline_s, grace_s)
        self._send_buffer.write(data)
        return waiter

    def tell(self, command: type[amp.Command], **arguments: Any) -> bool:
        """Send a command that wants no answer. False: dropped, for want of room or connection."""
        if self.ended is not None or self.transport is None:
            return False
        data = serialize(self._command_box(command, arguments, 0.0))
        if not self._send_buffer.has_room(len(data)):
            self._was_full = True
            return False
        self._send_buffer.write(data)
        return True

    def callRemote(self, commandType: type[amp.Command], *a: Any, **kw: Any) -> Any:
        """AMP's own name for it, with the default deadline."""
        if commandType.requiresAnswer:
            return self.call(commandType, **kw)
        self.tell(commandType, **kw)
        return None

    def _command_box(self, command: type[amp.Command], arguments: Values, deadline_s: float) -> Box:
        if getattr(command, "is_timed", False):
            arguments.setdefault(WITHIN, round(deadline_s * 1000))
        box: Box = command.makeArguments(arguments, self)
        box[amp.COMMAND] = command.commandName
        return box

    def _has_room(self, size: int) -> bool:
        if self._send_buffer.has_room(size):
            return True
        self._was_full = True
        return False

    # --- being call ---
    def _command_received(self, name: bytes, box: Box, size: int) -> None:
        tag = box.get(amp.ASK)
        if tag is not None and len(tag) > bounds.TAG_BYTES_MAX:
            raise MalformedBox("a long tag")
        responder = self._served.get(name)
        if responder is None:
            if not self.is_trusted or self.is_dialler:
                raise OutOfOrder(f"{name[:40]!r} is not served here")
            self._refuse(tag, UnknownCommand(f"{name[:40]!r} is not served here"))
            return
        command = responder.command
        if responder.is_counted and (
            len(self._inbound) >= bounds.COMMANDS_UNDER_WAY_MAX or not self._budget.has_room(size)
        ):
            self._refuse(tag, Busy("too many calls of peers are under way"))
            return
        try:
            arguments = command.parseArguments(box, self)
        except MalformedBox as why:
            self._refuse(tag, why)
            return
        except Exception as why:  # a missing key, mostly
            self._refuse(tag, MalformedBox(f"{command.__name__}: {why!r}"))
            return
        try:
            result = responder.respond(**arguments)
        except Exception as why:
            self._refuse(tag, why, command)
            return
        if result is None and tag is None:
            return
        if inspect.iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if not isinstance(result, Deferred):
            self._answer(tag, command, result)
            return
        call = InboundCall(command, tag, size, self._budget)
        self._inbound.add(call)
        if (within_ms := arguments.get(WITHIN)) is not None and self.is_open():
            self._inbound_deadlines.add(call, within_ms / 1000)
        result.addCallbacks(self._finished, self._failed, callbackArgs=(call,), errbackArgs=(call,))

    def _finished(self, values: Any, call: InboundCall) -> None:
        self._release_call(call)
        self._answer(call.tag, call.command, values)

    def _failed(self, failure: Failure, call: InboundCall) -> None:
        self._release_call(call)
        self._refuse(call.tag, failure.value or Internal(), call.command, failure)

    def _release_call(self, call: InboundCall) -> None:
        self._inbound.discard(call)
        call.release()
        self._inbound_deadlines.discard(call)

    def _inbound_expired(self, call: InboundCall) -> None:
        """A handler is late: answer that the outcome is unknown. Its bytes count until it ends."""
        tag, call.tag = call.tag, None
        self._refuse(tag, OutcomeUnknown("not done in the time given"))

    def _answer(self, tag: bytes | None, command: type[amp.Command], values: Any) -> None:
        if tag is None or self.ended is not None:
            return
        try:
            box: Box = command.makeResponse({} if values is None else values, self)
            head = {amp.ANSWER: tag}
            if sum(map(len, box.values())) <= bounds.ANSWER_PART_BYTES and len(box) < bounds.BOX_KEYS_MAX:
                pieces = [serialize(head | box)]
            else:
                pieces = cut(box, head, MORE)
        except BoxTooLarge as why:
            self._refuse(tag, AnswerTooLarge(why.detail))
        except Exception as why:
            self._refuse(tag, why, command)
        else:
            self._write_answer(pieces)

    def _refuse(
        self,
        tag: bytes | None,
        error: BaseException,
        command: type[amp.Command] | None = None,
        failure: Failure | None = None,
    ) -> None:
        code = errors.declared_code(error)
        if code is None or not isinstance(error, TaskQueueError):
            failure = failure or Failure(error)
            what = "a command" if command is None else command.__name__
            Log.failure("{command} failed in the responder", failure=failure, command=what, event="responder_failed")
            self.bug(what, failure)
            code, error = errors.CODE_OF[Internal], Internal(f"{what} failed")
        if self.ended is not None:
            return
        if tag is not None:
            box = {
                amp.ERROR: tag,
                amp.ERROR_CODE: code.encode(),
                amp.ERROR_DESCRIPTION: error.detail[: bounds.DETAIL_CHARS_MAX].encode("utf-8", "replace"),
                BODY: errors.encode_error(error),
            }
            self._write_answer([serialize(box)])
        elif isinstance(error, MalformedBox):  # nobody waits for an answer, and what follows is no better
            self.give_up(error)
        if not self.is_trusted or (isinstance(error, WireRefusal) and error.closes):
            self.give_up(error, flush=True)

    # --- bytes ---
    def dataReceived(self, data: bytes) -> None:
        if not self.is_open():
            return
        self.heard_at_s = self._now_s()
        try:
            for box, size in self._parser.feed(data):
                self.ampBoxReceived(box, size)
                if self.ended is not None:
                    return
        except WireRefusal as why:
            self.give_up(why)
        except Exception:
            # A bug of ours. Left to the transport, it would look as if the peer had hung up (R5a).
            Log.failure("the wire failed on what a peer sent", event="wire_bug")
            self.give_up(Internal("a bug of this side"))

    def ampBoxReceived(self, box: Box, size: int = 0) -> None:
        """Dispatch a received box; raises ``WireRefusal``, which ends the connection."""
        if (tag := box.get(amp.ANSWER)) is not None:
            self._calls.answered(tag, box, size, self)
        elif (tag := box.get(amp.ERROR)) is not None:
            self._calls.refused(tag, box)
        elif (name := box.get(amp.COMMAND)) is not None:
            self._command_received(name, box, size)
        else:
            raise MalformedBox("neither a command nor an answer")

    def _write_answer(self, pieces: list[bytes]) -> None:
        buffer = self._send_buffer
        for piece in pieces:
            buffer.write(piece)
        if buffer.unsent_bytes > bounds.ANSWERS_BYTES_MAX:
            self.give_up(Unread(f"{buffer.unsent_bytes} bytes of answers wait to be read"))
        elif (
            buffer.is_blocked and buffer.unsent_bytes > bounds.ANSWERS_READ_ON_BYTES_MAX and not self._is_reading_paused
        ):
            self._is_reading_paused = True
            self.transport.pauseProducing()

    def _drained(self) -> None:
        if self.ended is not None:
            return
        if self._is_reading_paused:
            self._is_reading_paused = False
            self.transport.resumeProducing()
        if self._was_full:
            self._was_full = False
            self.writable()

    # --- beginning and end ---
    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self.heard_at_s = self._reactor.seconds()
        self._send_buffer.attach(transport)
        self.opened()

    def give_up(self, reason: TaskQueueError, flush: bool = False) -> None:
        """End the connection from this side. All that waits for an answer fails now; ``lost``
        follows from the transport.

        :param flush: let what is written reach the peer first, for ``bounds.LINGER_S`` at most."""
        if not self.is_open():
            return
        self.ended = reason
        self._send_buffer.detach()  # a producer that is paused would keep the transport from ever closing
        if flush:
            self._lingering = self._reactor.callLater(bounds.LINGER_S, self.transport.abortConnection)
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()
        self._release(reason)

    def close(self) -> None:
        """End it in order."""
        self.give_up(Stopped(), flush=True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        if self.ended is None:
            self.ended = PeerUnreachable(f"connection lost: {reason.getErrorMessage()}")
            self.broke = True
        self._release(self.ended)
        self.transport = None
        self.lost()

    def _release(self, reason: TaskQueueError) -> None:
        self._send_buffer.detach()
        self._parser = BoxParser(self._parser.caps)
        self._inbound_deadlines.close()
        self._calls.end(reason)

    # --- names of AMP that must not do what they do there ---
    def sendBox(self, box: Box) -> None:
        self._send_buffer.write(serialize(box))

    def locateResponder(self, name: bytes) -> None:
        return None

    def unhandledError(self, failure: Failure) -> None:
        Log.failure("unhandled in the wire", failure=failure, event="wire_bug")

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self.give_up(MalformedBox("a file descriptor"))
