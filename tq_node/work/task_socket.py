"""The tasks sent to one worker process and not taken by it: a message queue in the kernel from
which both sides can take.

Whoever takes a message has it alone. So a task that the node takes back has not begun and never
will, and one that it can't take back has begun. The answer is exact and immediate, whether the
process responds or not (it may hold the interpreter's lock, or be stopped)."""

from __future__ import annotations

import socket

from tq_node.work import protocol


class TaskSocket:
    """The node's end, and a duplicate of the process's end to take messages back from."""

    def __init__(self) -> None:
        """:raises OSError: no socket can be had."""
        # One message, one read: a stream would have to be cut, and two readers could not share it.
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)

    def fileno(self) -> int:
        """The end that the worker process inherits."""
        return self._theirs.fileno()

    def send(self, message: bytes) -> bool:
        """Send a message. False: there is no room now, or ``end`` was called."""
        try:
            self._ours.send(message)
        except OSError:
            return False
        return True

    def take_back(self) -> list[int]:
        """Take back all messages that the process has not taken; return their serials."""
        serials: list[int] = []
        # Not by a flag of the descriptor: the process shares it, and reads it blocking.
        try:
            while data := self._theirs.recv(protocol.MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT):
                serials.append(protocol.decode_message(data).serial)
        except OSError:
            pass
        return serials

    def end(self) -> None:
        """Send no further task: the process exits once it has taken what is there."""
        self._ours.close()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()
