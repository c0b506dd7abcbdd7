"""Attempts of partitions that are led here which run at other nodes: renewed, or lost once their
lease is over (section 8).

Some were claimed here for a node that helps (``routing.work_stealing``); the others are an earlier
primary's, or its helpers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import NotPrimary
from tq_node.facade import Claim
from tq_node.partition.lifecycle import Lose
from tq_node.runtime.clock import Clock
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.task_table import Elsewhere, Found, Slot, TaskTable
from tq_node.types import State, Token

_log = Logger(namespace="taskqueue.running")


class RemoteAttempts:
    """Attempts granted to other nodes. ``claims``: those of this node's own worker, by task id."""

    def __init__(self, table: TaskTable, clock: Clock, settings: QueueSettings, claims: Mapping[str, Claim]) -> None:
        self._table = table
        self._clock = clock
        self._settings = settings
        self._claims = claims
        self._renewed: dict[str, tuple[Token, int]] = {}
        """By task id the token, and the end of its lease as granted or renewed (monotonic ms)."""
        self._granted: dict[str, Token] = {}
        """Attempts claimed here for others' workers and not ended: the token by task id."""

    # --- granted to a node that steals work ---
    def grant(self, task_id: str, token: Token) -> None:
        """Book a claim for another node's worker; its lease begins by now, for it asked before."""
        self._granted[task_id] = token
        self._renewed[task_id] = (token, self._clock.now_ms() + limits.LEASE_MS)

    def has_granted(self, task_id: str, token: Token) -> bool:
        return self._granted.get(task_id) == token

    def ended(self, task_id: str, token: Token) -> None:
        """Forget an attempt that holds its task no more."""
        if self._granted.get(task_id) == token:
            del self._granted[task_id]
        if self._renewed.get(task_id, (None, 0))[0] == token:
            del self._renewed[task_id]

    def lose_overdue(self, now_ms: int) -> None:
        """Lose granted attempts whose lease expired: their node ended them a margin earlier."""
        overdue: list[str] = []
        for task_id, token in list(self._granted.items()):
            if self._table.leading.get(self._table.partition_of(task_id)) != token.epoch:
                # Led elsewhere, or here again: another primary may have renewed it since. It is one
                # of the inherited now.
                del self._granted[task_id]
                continue
            known, until_ms = self._renewed.get(task_id, (token, 0))
            if known != token:
                del self._granted[task_id]  # a later attempt holds the task
            elif now_ms >= until_ms:
                overdue.append(task_id)
        self._renewed = {task_id: renewed for task_id, renewed in self._renewed.items() if now_ms < renewed[1]}
        if overdue:
            self.lose(overdue, None).addCallbacks(lambda _: None, _not_loaded)

    # --- renewed ---
    def renew(
        self, partition: int, attempts: Sequence[tuple[str, Token]], confirmed: Deferred[None] | None
    ) -> Deferred[list[bool]]:
        """Whether each still holds its task: then it is not queued again for one lease from now.

        :param confirmed: a round begun after the request came, which must be over before anything
            is granted."""
        self._table.must_lead(partition)

        def look(_: None = None) -> Deferred[list[bool]]:
            found = self._table.load([task_id for task_id, _ in attempts])
            return cast("Deferred[list[bool]]", found.addCallback(self._renew_found, attempts))

        return look() if confirmed is None else cast("Deferred[list[bool]]", confirmed.addCallback(look))

    def _renew_found(self, found: dict[str, Found], attempts: Sequence[tuple[str, Token]]) -> list[bool]:
        until_ms = self._clock.now_ms() + limits.LEASE_MS
        holds = []
        for task_id, token in attempts:
            one = found[task_id]
            row = one.row if isinstance(one, Slot) else None
            if isinstance(one, Elsewhere):
                raise NotPrimary("this node does not lead the task's partition", task_id=task_id)
            holds_it = row is not None and row.state is State.PROCESSING and row.token == token
            if holds_it:
                self._renewed[task_id] = (token, until_ms)
            holds.append(holds_it)
        return holds

    # --- lost ---
    def lose(self, task_ids: list[str], node: str | None) -> Deferred[list[str]]:
        """Book the present attempts of these tasks as lost, but those that this node's worker
        holds, or another's has renewed.

        Fires with the latter: they are to be looked at again.

        :param node: only those that ran there."""
        return self._table.load(task_ids).addCallback(self._lose_found, node)

    def _lose_found(self, found: dict[str, Found], node: str | None) -> list[str]:
        kept: list[str] = []
        count = 0
        now_us = self._clock.wall_us()
        for task_id, slot in found.items():
            if not isinstance(slot, Slot) or slot.row is None or slot.row.state is not State.PROCESSING:
                self._granted.pop(task_id, None)
                continue
            before = slot.row
            own = self._claims.get(task_id)
            is_own = own is not None and own.token == before.token  # one that holds it no more is still held there
            if before.token is None or is_own or node not in (None, before.worker):
                continue
            if before.lease is not None:
                continue  # a remote worker's: ``WorkerAttempts`` has adopted it
            token, until_ms = self._renewed.get(task_id, (None, 0))
            if token == before.token and self._clock.now_ms() < until_ms:
                kept.append(task_id)
                continue
            self.ended(task_id, before.token)
            self._table.change(slot, Lose(now_us, before.token, self._settings.draw()), now_us)
            count += 1
        if count:
            _log.info(
                "{count} attempts of an earlier primary, or at another node, are lost",
                count=count,
                event="attempts_lost",
            )
        return kept


def _not_loaded(why: Failure) -> None:
    # The store is broken and the process about to end (R18); who waits hears it from the driver.
    _log.error("could not load rows: {why}", why=why.getErrorMessage(), event="load_failed")
