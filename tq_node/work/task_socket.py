"""Tasks on their way to one worker process: a queue of messages in the kernel, from which both sides can take.

Whoever takes a message has it alone. So what the node takes back has not begun and never will, and what it can't take back
has begun: exactly, at once, and whether the process answers or not (it may hold the interpreter's lock, or be stopped).
"""

from __future__ import annotations

import socket

from tq_node.work import protocol


class TaskSocket:
    """The node's side, and a hold on the other end."""

    def __init__(self) -> None:
        """:raises OSError: no socket can be had."""
        # One message, one read: a stream would have to be cut, and two readers could not share it.
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)

    def fileno(self) -> int:
        """The end of the worker process, to inherit."""
        return self._theirs.fileno()

    def send(self, message: bytes) -> bool:
        """False: there is no room for it now, or the channel has been ended."""
        try:
            self._ours.send(message)
        except OSError:
            return False
        return True

    def take_back(self) -> list[int]:
        """The serials of what the process has not taken, which it never will now."""
        serials: list[int] = []
        # Not by a flag of the descriptor, which the process shares: it waits for its next task in a read.
        try:
            while data := self._theirs.recv(protocol.MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT):
                serials.append(protocol.decode_message(data).serial)
        except OSError:
            pass
        return serials

    def end(self) -> None:
        """No further task: the process ends once it has taken what is there."""
        self._ours.close()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()
