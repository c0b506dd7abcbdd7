"""The worker API as calls: requests and answers as values, sent to whichever node answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from tq_node import limits
from tq_node.client.calls import Trials, call
from tq_node.client.engine import Settings
from tq_node.client.roster import Roster

FINISH_S = 10.0
"""How long a request to end or extend attempts is tried, all nodes together."""
ANSWER_S = 10.0
"""So much longer than its wait a claim's answer may take."""


class Worker(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says of itself with each claim."""

    worker: str
    lease: float
    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | dict[str, int] | None = None
    slots: int | None = None
    version: str | None = None


class Problem(msgspec.Struct):
    """Why one attempt of a request was refused."""

    code: str
    detail: str = ""
    status: int = 0


class Claimed(msgspec.Struct):
    """A claimed task as the API says it."""

    task_id: str
    type: str
    queue: str
    payload: msgspec.Raw
    attempt: int
    max_attempts: int
    token: str
    lease: float
    created_at: str
    timeout: float | None = None
    tags: dict[str, str] | None = None
    attempts_left: int | None = None


class Claims(msgspec.Struct):
    state: str
    claims: list[Claimed]
    waited: float = 0.0


class Result(msgspec.Struct):
    """What became of one attempt of an ``extend`` or ``finish``."""

    lease: float = 0.0
    cancelled: bool = False
    success: bool = False
    error: Problem | None = None


class _Results(msgspec.Struct):
    results: list[Result]


_encode = msgspec.json.Encoder().encode
_claims = msgspec.json.Decoder(Claims).decode
_results = msgspec.json.Decoder(_Results).decode


class WorkApi:
    """Used and closed in one asyncio loop."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._roster = Roster(
            self._loop, settings.addresses, credentials=settings.credentials, discover=settings.discover
        )

    def close(self) -> None:
        self._roster.close()

    async def claim(self, worker: Worker, claim_id: str, limit: int, wait_s: float) -> Claims:
        """Claim once, at one node after the other until one answers; the same id again gives the
        same claims. Raises ``client.errors.TaskQueueError``."""
        fields = msgspec.structs.asdict(worker)
        body = {name: value for name, value in fields.items() if value is not None}
        body |= {"claim_id": claim_id, "limit": limit, "wait": wait_s}
        return _claims(await self._post(b"/work/claim", body, wait_s + ANSWER_S, waits=True))

    async def extend(self, worker: str, claims: Sequence[dict[str, Any]]) -> list[Result]:
        """Extend leases; one result each."""
        return _results(await self._post(b"/work/extend", {"worker": worker, "claims": claims}, FINISH_S)).results

    async def finish(self, worker: str, claims: Sequence[dict[str, Any]]) -> list[Result]:
        """End attempts; one result each."""
        return _results(await self._post(b"/work/finish", {"worker": worker, "claims": claims}, FINISH_S)).results

    async def announce(self, worker: str, types: Sequence[dict[str, Any]]) -> None:
        """Say which defaults the worker's handlers have."""
        await self._post(b"/workers/announce", {"worker": worker, "types": types}, FINISH_S)

    async def _post(self, path: bytes, body: dict[str, Any], within_s: float, *, waits: bool = False) -> bytes:
        # Each of these is safe to send again, so a lost answer is no unknown outcome.
        trials = Trials(changes=False)
        return await call(
            self._roster, b"POST", path, end_s=self._loop.time() + within_s, trials=trials, attempt_s=within_s,
            waits=waits, body=_encode(body),
        )  # fmt: skip


BATCH_MAX = limits.WORKER_CLAIMS_MAX
"""Attempts in one request."""
