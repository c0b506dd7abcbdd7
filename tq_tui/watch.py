"""Watching one node: poll, listen to events, retry with back-off. Reports only, changes nothing.

Nothing here knows Textual: the console runs a ``watch`` for each node, ``--once`` a ``look``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tq_tui.client.api import ClientError, NodeClient, Refused, Unreachable
from tq_tui.client.models import ClusterInfo, Event
from tq_tui.state.cluster_view import Failed, Observation, Polled

T = TypeVar("T")
LOOK_EVERY_S = 1.0
BACKOFF_S = (0.25, 0.5, 1.0, 1.0, 2.0)
"""Pauses after failed polls, the last one repeated: a node that comes back is seen within it."""
PATIENCE_S = 1.5
"""Deadline of one poll; a node that hangs is shown as down after it."""
METRICS_SHARE = 0.05
"""Metrics of a node with very many queues are large: at most so much of the time goes into them."""


async def look(
    client: NodeClient, address: str, clock: Callable[[], float] = time.time, *, metrics: bool = True
) -> Polled:
    """Ask a node all that the overview shows, less before it joined; raises ``ClientError``."""
    began_s = time.monotonic()
    stats = await client.stats()
    latency_s = time.monotonic() - began_s
    cluster, readiness, partitions, numbers = await asyncio.gather(
        _or(client.cluster(), ClusterInfo()),
        _or(client.readiness(), None),
        _or(client.partitions(), None),
        _or(client.metrics(), None) if metrics else _nothing(),
    )
    return Polled(address, clock(), stats, cluster, readiness, numbers, partitions, latency_s)


async def _or(asked: Awaitable[T], instead: T) -> T:
    """``instead`` where the node refuses to answer; that it does not answer at all is raised."""
    try:
        return await asked
    except Refused:
        return instead


async def _nothing() -> None:
    return None


class Watch:
    """``on_observation`` gets each poll, ``on_events`` events, or none: some were missed."""

    def __init__(
        self,
        client: NodeClient,
        address: str,
        on_observation: Callable[[Observation], object],
        on_events: Callable[[Sequence[Event]], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._address = client, address
        self._on_observation, self._on_events, self._clock = on_observation, on_events, clock
        self._nudge = asyncio.Event()
        self._is_up = False
        self._metrics_due_s = 0.0

    def nudge(self) -> None:
        """Poll the node now instead of at the end of the pause."""
        self._nudge.set()

    async def run(self) -> None:
        """Until cancelled."""
        listening = asyncio.create_task(self._listen())
        try:
            await self._look_for_ever()
        finally:
            listening.cancel()

    async def _look_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                seen = await asyncio.wait_for(self._look(), PATIENCE_S)
            except (ClientError, TimeoutError) as why:
                pause_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                failures += 1
                self._is_up = False
                now_s = self._clock()
                self._on_observation(Failed(self._address, now_s, str(why) or "no answer in time", now_s + pause_s))
            else:
                pause_s, failures = LOOK_EVERY_S, 0
                self._is_up = True
                self._on_observation(seen)
            await self._rest(pause_s)

    async def _look(self) -> Polled:
        metrics = time.monotonic() >= self._metrics_due_s
        began_s = time.monotonic()
        seen = await look(self._client, self._address, self._clock, metrics=metrics)
        if metrics:
            self._metrics_due_s = time.monotonic() + (time.monotonic() - began_s) / METRICS_SHARE - LOOK_EVERY_S
        return seen

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._nudge.wait(), seconds)
        except TimeoutError:
            return
        self._nudge.clear()
        # Many nudges are one look, and nobody is asked in a tight loop.
        await asyncio.sleep(0.05)

    async def _listen(self) -> None:
        """The stream while it lasts. Its end is the first sign that a node went: look at once.
        Polling goes on beside it all the time, and is what remains where streams are refused or cut
        by a proxy."""
        while True:
            try:
                async for events in self._client.events():
                    self._on_events(events)
            except Unreachable:
                pass
            except Refused:
                await asyncio.sleep(BACKOFF_S[-1])
            if self._is_up:
                self.nudge()
            await asyncio.sleep(BACKOFF_S[1] if self._is_up else BACKOFF_S[2])
