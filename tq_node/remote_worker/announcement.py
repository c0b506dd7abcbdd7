"""Tells the cluster which defaults this worker's handlers have, until a node has taken them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.client import errors as client_errors
from tq_node.remote_worker.work_api import WorkApi
from tq_node.types import HandledType

_log = Logger(namespace="taskqueue.worker")
AGAIN_FIRST_S, AGAIN_S_MAX = 1.0, 60.0
"""Pause after a request that no node answered as it should: doubled from the first to the last."""


class Announcement:
    """``say`` at the start and whenever the handlers have changed; the latest word counts. Tasks
    are run all the same where it is refused: only their defaults are not the handlers' then."""

    def __init__(self, api: WorkApi, worker: str) -> None:
        self._api = api
        self._worker = worker
        self._saying: asyncio.Task[None] | None = None

    def say(self, types: Sequence[HandledType]) -> None:
        """To be called in the running asyncio loop."""
        self.stop()
        telling = [_body(one) for one in types if one != HandledType(one.type)]
        if telling:
            self._saying = asyncio.ensure_future(self._say(telling))
            self._saying.add_done_callback(_bug)

    def stop(self) -> None:
        if self._saying is not None:
            self._saying.cancel()
            self._saying = None

    async def _say(self, types: list[dict[str, Any]]) -> None:
        pause_s = AGAIN_FIRST_S
        while True:
            try:
                await self._api.announce(self._worker, types)
            except client_errors.Refused as why:
                _log.warn("the defaults of the handlers are not taken: {why}", why=why.detail, event="announce_refused")
                return
            except client_errors.TaskQueueError:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, AGAIN_S_MAX)
            else:
                return


def _body(handled: HandledType) -> dict[str, Any]:
    backoff = handled.backoff
    fields = {
        "type": handled.type,
        "queue": handled.queue,
        "max_attempts": handled.max_attempts,
        "timeout": None if handled.timeout_ms is None else handled.timeout_ms / 1000,
        "backoff": None
        if backoff is None
        else {
            "kind": backoff.kind,
            "base": backoff.base_ms / 1000,
            "cap": backoff.cap_ms / 1000,
            "jitter": backoff.jitter,
        },
    }
    return {name: value for name, value in fields.items() if value is not None}


def _bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (why := task.exception()) is not None:
        _log.failure("announcing the handlers failed", failure=Failure(why), event="announce_failed")
