"""For handlers that run in the reactor. Worker processes load them, too, and start in half the time without Twisted."""

from __future__ import annotations


async def seconds(count: float) -> None:
    """Wait so long in the node's reactor."""
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    await deferLater(reactor, count)
