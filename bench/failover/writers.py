"""Clients that submit to one partition each, without a pause, and note when they are answered.

The next task leaves as soon as the last is acknowledged. A submit that is refused or lost is sent again after ``AGAIN_S``, under
the same id, to the next node; a call is given up after ``CALL_S``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

AGAIN_S = 0.025
CALL_S = 1.0
LOOK_S = 0.01
END_S = 10.0


class Gap(NamedTuple):
    """The longest time without an acknowledgement that one writer saw."""

    writer: int
    seconds: float
    calls: int
    """Tries of the write that ended it."""


class Asked:
    """One connection to each node; a call that fails in any way closes its own."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._ports = ports
        self._streams: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def submit(self, node: str, task_id: str) -> int:
        """:raises OSError, EOFError, ValueError, asyncio.TimeoutError: whatever it is, the outcome is not known."""
        body = json.dumps({"type": "noop", "id": task_id, "delay": 3600}).encode()
        head = f"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        try:
            async with asyncio.timeout(CALL_S):
                stream = self._streams.get(node)
                if stream is None:
                    stream = self._streams[node] = await asyncio.open_connection("127.0.0.1", self._ports[node])
                reader, writer = stream
                writer.write(head + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                (length,) = (line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                return int(answer.split(None, 2)[1])
        except BaseException:
            self._drop(node)
            raise

    def _drop(self, node: str) -> None:
        stream = self._streams.pop(node, None)
        if stream is not None:
            stream[1].close()

    async def close(self) -> None:
        for node in list(self._streams):
            _, writer = self._streams.pop(node)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Writer:
    """:param ids: of one partition. :param first: the node that is asked first; after a failure, the others in turn."""

    def __init__(self, number: int, ports: dict[str, int], ids: Iterator[str], first: str) -> None:
        self.number = number
        self.acks: list[tuple[float, int]] = []
        """(when, how many tries it took)"""
        self._asked = Asked(ports)
        self._nodes = [first, *(name for name in ports if name != first)]
        self._ids = ids

    async def write(self, over: asyncio.Event) -> None:
        turn = 0
        try:
            while not over.is_set():
                task_id, tries = next(self._ids), 0
                while True:
                    tries += 1
                    try:
                        if await self._asked.submit(self._nodes[turn % len(self._nodes)], task_id) in (200, 201):
                            break
                    except (OSError, EOFError, ValueError, TimeoutError):
                        pass
                    if over.is_set():
                        return
                    turn += 1
                    await asyncio.sleep(AGAIN_S)
                self.acks.append((time.monotonic(), tries))
        finally:
            await self._asked.close()

    def is_acknowledged_after(self, at_s: float) -> bool:
        return bool(self.acks) and self.acks[-1][0] > at_s

    def gap(self, hurt_s: float) -> Gap | None:
        """Acknowledgements that were under way when it hurt belong to the time before it: the longest pause counts.

        None: nothing was acknowledged before, or nothing after.
        """
        before = [at_s for at_s, _ in self.acks if at_s <= hurt_s]
        after = [one for one in self.acks if one[0] > hurt_s]
        if not after or not before:
            return None
        pauses = [(b_s - a_s, tries) for (a_s, _), (b_s, tries) in zip([(before[-1], 0), *after], after, strict=False)]
        seconds, tries = max(pauses)
        return Gap(self.number, seconds, tries)


@contextlib.contextmanager
def writing(writers: Sequence[Writer]) -> Iterator[None]:
    """All of them write, in a thread of their own, until the end of the block."""
    begun = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def write_all() -> None:
        over = asyncio.Event()
        loops.append((asyncio.get_running_loop(), over))
        begun.set()
        await asyncio.gather(*(writer.write(over) for writer in writers))

    thread = threading.Thread(target=lambda: asyncio.run(write_all()), name="writers", daemon=True)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        ((loop, over),) = loops
        with contextlib.suppress(RuntimeError):  # they have ended, with an error that the thread has shown
            loop.call_soon_threadsafe(over.set)
        thread.join(CALL_S + END_S)
        assert not thread.is_alive(), "the writers end with their last call"


def wait_acknowledged(writers: Sequence[Writer], since_s: float, deadline_s: float) -> list[Writer]:
    """Until each has been acknowledged after ``since_s``; returns those that have not by the deadline."""
    while time.monotonic() < since_s + deadline_s:
        if all(writer.is_acknowledged_after(since_s) for writer in writers):
            return []
        time.sleep(LOOK_S)  # polls what the writers have been answered
    return [writer for writer in writers if not writer.is_acknowledged_after(since_s)]
