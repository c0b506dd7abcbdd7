"""AMP made fit for peers that are slow, broken or hostile: one connection of it, without knowing what the commands mean.

What differs from ``twisted.protocols.amp.AMP`` (``replication.md`` section 12):

- bounds are held while bytes arrive (F33), and on all that waits: calls, commands under way, unsent bytes (F35);
- every call has a deadline; one that is not answered at all closes the connection (F35);
- an exception in a responder is an answer, never the end of the connection (F34);
- ``StartTLS``, protocol switches, file descriptors and ``amp_…`` methods can't be reached: only what is served is served (F37).
"""

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
from tq_node.wire.calls import BODY, MORE, Calls, Values
from tq_node.wire.deadlines import Deadlines
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
from tq_node.wire.inflight import Asked, Budget
from tq_node.wire.send_buffer import SendBuffer

WITHIN = "within_ms"
Log = Logger(namespace="taskqueue.wire")


class Responder(NamedTuple):
    """:param respond: takes the command's arguments; gives the answer's values, a Deferred of them, or a coroutine."""

    command: type[amp.Command]
    respond: Callable[..., Any]
    is_counted: bool = True
    """Refused as busy when too much is under way. Not so what must always go through and is done at once."""


class BoundedAMP(amp.AMP):
    """:param send_bytes_max: what may wait in the transport; past it calls are ``Busy`` and messages dropped.
    :param is_dialler: this side opened the connection; it asks, the other side answers.
    """

    transport: Any

    def __init__(self, reactor: IReactorTime, send_bytes_max: int, is_dialler: bool) -> None:
        super().__init__()
        self._reactor = reactor
        self._budget = Budget(bounds.BOX_BYTES_MAX)
        self.is_dialler = is_dialler
        self.ended: TaskQueueError | None = None
        """Why the connection is over; None while it is not."""
        self.broke = False
        """It ended by the peer or the network, not by this side (R5a)."""
        self.heard_at_s = 0.0
        self._served: Mapping[bytes, Responder] = {}
        self._parser = BoxParser(bounds.STRANGER)
        self._outbox = SendBuffer(reactor, send_bytes_max, self._drained)
        self._calls = Calls(reactor, lambda why: self.give_up(TooSlow(why)))
        self._asked: set[Asked] = set()
        self._asked_deadlines: Deadlines[Asked] = Deadlines(reactor, self._asked_expired)
        self._has_refused = False
        self._is_deaf = False
        self._lingering: IDelayedCall | None = None

    # --- for subclasses ---
    def opened(self) -> None:
        """The transport is there; nothing is authenticated."""

    def lost(self) -> None:
        """It is over, and ``ended`` says why."""

    def writable(self) -> None:
        """Something was refused for want of room, and there is room again."""

    def bug(self, what: str, failure: Failure) -> None:
        """A responder raised what it does not declare. It is logged and answered already."""

    def serve(self, *responders: Responder) -> None:
        """These commands from here on, and no others."""
        self._served = {responder.command.commandName: responder for responder in responders}

    def trust(self, budget: Budget) -> None:
        """The peer is authenticated: boxes of full size from here on, counted in ``budget`` while handlers work on them."""
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

        If ``grace_s`` later the peer has still not answered, be it that it knows no outcome, the connection is closed.

        Fails with ``PeerUnreachable`` or ``Busy`` (nothing was sent), ``OutcomeUnknown`` (no answer), or what the peer raised.
        """
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
        self._outbox.write(data)
        return waiter

    def tell(self, command: type[amp.Command], **arguments: Any) -> bool:
        """Send a command that wants no answer. False: there is no room, or no connection, and it was dropped."""
        if not self.is_open():
            return False
        data = serialize(self._command_box(command, arguments, 0.0))
        if not self._has_room(len(data)):
            return False
        self._outbox.write(data)
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
        if self._outbox.has_room(size):
            return True
        self._has_refused = True
        return False

    # --- being asked ---
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
            len(self._asked) >= bounds.COMMANDS_UNDER_WAY_MAX or not self._budget.has_room(size)
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
        if inspect.iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if not isinstance(result, Deferred):
            self._answer(tag, command, result)
            return
        asked = Asked(command, tag, size, self._budget)
        self._asked.add(asked)
        if (within_ms := arguments.get(WITHIN)) is not None and self.is_open():
            self._asked_deadlines.add(asked, within_ms / 1000)
        result.addCallbacks(self._finished, self._failed, callbackArgs=(asked,), errbackArgs=(asked,))

    def _finished(self, values: Any, asked: Asked) -> None:
        self._released(asked)
        self._answer(asked.tag, asked.command, values)

    def _failed(self, failure: Failure, asked: Asked) -> None:
        self._released(asked)
        self._refuse(asked.tag, failure.value or Internal(), asked.command, failure)

    def _released(self, asked: Asked) -> None:
        self._asked.discard(asked)
        asked.released()
        self._asked_deadlines.discard(asked)

    def _asked_expired(self, asked: Asked) -> None:
        """The handler is late. The caller hears that nobody knows; what the handler holds stays counted until it is done."""
        tag, asked.tag = asked.tag, None
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
        elif isinstance(error, MalformedBox):  # nobody waits to hear of it, and what comes next is no better
            self.give_up(error)
        if not self.is_trusted or (isinstance(error, WireRefusal) and error.closes):
            self.give_up(error, flush=True)

    # --- bytes ---
    def dataReceived(self, data: bytes) -> None:
        if not self.is_open():
            return
        self.heard_at_s = self._reactor.seconds()
        try:
            for box, size in self._parser.feed(data):
                self.ampBoxReceived(box, size)
                if self.ended is not None:
                    return
        except WireRefusal as why:
            self.give_up(why)
        except Exception:
            # A bug of ours. Left to the transport it would look as if the peer had broken the connection (R5a).
            Log.failure("the wire failed on what a peer sent", event="wire_bug")
            self.give_up(Internal("a bug of this side"))

    def ampBoxReceived(self, box: Box, size: int = 0) -> None:
        """:raises WireRefusal: the peer broke the protocol; the connection ends."""
        if (tag := box.get(amp.ANSWER)) is not None:
            self._calls.answered(tag, box, size, self)
        elif (tag := box.get(amp.ERROR)) is not None:
            self._calls.refused(tag, box)
        elif (name := box.get(amp.COMMAND)) is not None:
            self._command_received(name, box, size)
        else:
            raise MalformedBox("neither a command nor an answer")

    def _write_answer(self, pieces: list[bytes]) -> None:
        outbox = self._outbox
        for piece in pieces:
            outbox.write(piece)
        if outbox.unsent_bytes > bounds.ANSWERS_BYTES_MAX:
            self.give_up(Unread(f"{outbox.unsent_bytes} bytes of answers wait to be read"))
        elif outbox.is_blocked and outbox.unsent_bytes > bounds.ANSWERS_READ_ON_BYTES_MAX and not self._is_deaf:
            self._is_deaf = True
            self.transport.pauseProducing()

    def _drained(self) -> None:
        if self.ended is not None:
            return
        if self._is_deaf:
            self._is_deaf = False
            self.transport.resumeProducing()
        if self._has_refused:
            self._has_refused = False
            self.writable()

    # --- beginning and end ---
    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self.heard_at_s = self._reactor.seconds()
        self._outbox.attach(transport)
        self.opened()

    def give_up(self, reason: TaskQueueError, flush: bool = False) -> None:
        """End the connection from this side. All that waits for an answer fails now; ``lost`` follows from the transport.

        :param flush: let what is written reach the peer first, for ``bounds.LINGER_S`` at most.
        """
        if not self.is_open():
            return
        self.ended = reason
        self._outbox.detach()  # a producer that is paused would keep the transport from ever closing
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
        self._outbox.detach()
        self._parser = BoxParser(self._parser.caps)
        self._asked_deadlines.close()
        self._calls.end(reason)

    # --- what AMP has and this does not ---
    def sendBox(self, box: Box) -> None:
        self._outbox.write(serialize(box))

    def locateResponder(self, name: bytes) -> None:
        return None

    def unhandledError(self, failure: Failure) -> None:
        Log.failure("unhandled in the wire", failure=failure, event="wire_bug")

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self.give_up(MalformedBox("a file descriptor"))
