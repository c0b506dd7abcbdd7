"""The birth guard: a founder that an older cluster still looks for is a member that has lost its disk (F15a).

Members dial a lost member's address at least every 0.5 s, and their first box says cluster, name and address
(replication.md, section 2). A newborn cluster waits for such a greeting before it takes itself for real; as long as it holds no
task, one that comes later ends it too.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from tq_node.runtime.clock import Clock
from tq_node.wire import bounds
from tq_node.wire.handler import Greeting

STEPS = 8
"""The wait is counted in so many parts: a process that is paused in the middle loses one of them, not the rest (F40)."""


class Founder(msgspec.Struct, frozen=True):
    """A node that has just founded a cluster. ``address``: where its peers dial it."""

    cluster_id: str
    name: str
    address: str


def is_of_older_cluster(greeting: Greeting, founder: Founder) -> bool:
    """Whether whoever greets belongs to another cluster, and looks there for this node.

    A dialler without a cluster is a joiner: it looks for nobody. Hosts are spelled in several ways (a name, an address), and the
    greeting did reach this node; so of two addresses only the ports are compared.
    """
    if greeting.cluster in ("", founder.cluster_id):
        return False
    return greeting.name == founder.name or _place(greeting.address) == _place(founder.address)


def _place(address: str) -> str:
    return address if address.startswith("unix:") else address.rpartition(":")[2]


class BirthGuard:
    """From ``watch`` on; to be begun once the peer port listens.

    :param has_tasks: whether this node holds any task now. Once it did, no greeting ends the cluster any more.
    :param on_older_cluster: called once, with one line for the operator; the process must end with it.
    :param guard_s: None: as long as the protocol says.
    """

    def __init__(
        self,
        clock: Clock,
        founder: Founder,
        *,
        has_tasks: Callable[[], bool],
        on_older_cluster: Callable[[str], None],
        guard_s: float | None = None,
    ) -> None:
        self._clock = clock
        self._founder = founder
        self._has_tasks = has_tasks
        self._on_older_cluster = on_older_cluster
        self._step_s = (bounds.BIRTH_GUARD_S if guard_s is None else guard_s) / STEPS
        self._steps_done = 0
        self._timer: IDelayedCall | None = None
        self._waiter: Deferred[bool] | None = None
        self._is_over = False
        self._is_disarmed = False

    @property
    def is_newborn(self) -> bool:
        """The cluster is not ready yet: refuse submits and keep joiners waiting."""
        return self._steps_done < STEPS and not self._is_disarmed

    def watch(self) -> Deferred[bool]:
        """Fires with True once the guard has passed, with False if it never will: it was tripped, or stopped."""
        assert self._waiter is None, "begun twice"
        self._waiter = Deferred()
        if self._is_over:
            self._waiter.callback(False)
        else:
            self._timer = self._clock.call_later(self._step_s, self._step)
        return self._waiter

    def greeted(self, greeting: Greeting) -> None:
        """Somebody, anybody, greets this node."""
        if self._is_over or self._is_disarmed or not is_of_older_cluster(greeting, self._founder):
            return
        if self._has_tasks():
            self._is_disarmed = True  # real work was taken on: to end it now would be the greater harm
            return
        self.stop()
        self._on_older_cluster(
            f"{self._founder.name} was a member of cluster {greeting.cluster}, whose members (node {greeting.dialler} at "
            f"{greeting.source}) still look for it here; this directory holds no task: restore its disk, or remove "
            f"{greeting.name or self._founder.name} there and start with --join"
        )

    def stop(self) -> None:
        """No more timers and no more decisions."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._settle(False)

    def _step(self) -> None:
        self._timer = None
        self._steps_done += 1
        if self.is_newborn and not self._has_tasks():
            self._timer = self._clock.call_later(self._step_s, self._step)
            return
        self._steps_done = STEPS
        self._settle(True)

    def _settle(self, passed: bool) -> None:
        assert self._waiter is not None
        self._waiter.callback(passed)
