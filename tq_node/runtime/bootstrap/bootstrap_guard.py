"""The birth guard: a founder that an older cluster looks for is a member without its disk (F15a).

Members dial a lost member's address at least every 0.5 s, and greet it with cluster, name and
address (replication.md, section 2). A newborn cluster waits for such a greeting before it serves;
while it holds no task, a later one ends it too.

A greeting proves nothing by itself, for the two clusters have different secrets. It ends the node
only with a certificate of the authority that both have, or, where the secret is handed over on
loopback, when such greetings keep coming from processes of this node's own user, who could end it
anyway. After any other, the node is not ready and takes no task and no joiner until none has come
for some time: an older cluster's members never cease, so it never serves beside them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from tq_node.runtime.clock import Clock
from tq_node.wire import bounds
from tq_node.wire.handler import Greeting

_log = Logger(namespace="taskqueue.node")

STEPS = 8
"""Parts of the counted wait: a process that was paused loses one of them, not the rest (F40)."""


class Founder(msgspec.Struct, frozen=True):
    """A node that has just founded a cluster. ``address``: where its peers dial it."""

    cluster_id: str
    name: str
    address: str


def is_of_older_cluster(greeting: Greeting, founder: Founder) -> bool:
    """Whether the dialler belongs to another cluster and takes this node for a member of that. A
    dialler without a cluster is a joiner. Of two addresses only the ports are compared: a host is
    spelled in several ways, and the greeting did reach this node."""
    if greeting.cluster in ("", founder.cluster_id):
        return False
    return greeting.name == founder.name or _place(greeting.address) == _place(founder.address)


def _place(address: str) -> str:
    return address if address.startswith("unix:") else address.rpartition(":")[2]


class BootstrapGuard:
    """Judges greetings from ``watch`` on, which is called once the peer port listens.

    :param has_tasks: whether this node holds a task now; if so, no later greeting ends the cluster.
    :param on_older_cluster: called once, with one line for the operator; the process must end.
    :param guard_s: None: ``bounds.BIRTH_GUARD_S``.
    :param trusts_own_users: processes of this node's user are handed the secret, as members are."""

    def __init__(
        self,
        clock: Clock,
        founder: Founder,
        *,
        has_tasks: Callable[[], bool],
        on_older_cluster: Callable[[str], None],
        guard_s: float | None = None,
        trusts_own_users: bool = True,
    ) -> None:
        self._clock = clock
        self._founder = founder
        self._has_tasks = has_tasks
        self._on_older_cluster = on_older_cluster
        self._step_s = (bounds.BIRTH_GUARD_S if guard_s is None else guard_s) / STEPS
        self._steps_wanted = STEPS
        self._quiet_steps = max(STEPS, round(bounds.BIRTH_GUARD_QUIET_S / bounds.BIRTH_GUARD_S * STEPS))
        self._steps_done = 0
        self._trusts_own_users = trusts_own_users
        self._own_users: set[int] = set()
        """Numbers of the steps in which processes of this node's own user have greeted."""
        self._turn = 0
        self.doubt = ""
        """The unproven greeting for which the node is not ready, for the operator; empty: none."""
        self._timer: IDelayedCall | None = None
        self._passed: Deferred[bool] = Deferred()
        """What ``watch`` returns."""
        self._is_watching = False
        self._stopped = False
        self._is_disarmed = False

    @property
    def is_newborn(self) -> bool:
        """Whether submits are refused and joiners kept waiting: the guard has not passed."""
        return self._steps_done < self._steps_wanted and not self._is_disarmed

    def watch(self) -> Deferred[bool]:
        """Start; fires with True once passed, False if an older cluster or ``stop`` came first."""
        assert not self._is_watching, "begun twice"
        self._is_watching = True
        if self._stopped:
            self._settle(False)
        else:
            self._timer = self._clock.call_later(self._step_s, self._step)
        return self._passed

    def greeted(self, greeting: Greeting) -> None:
        """Judge a greeting: ignore it, begin the wait anew, or end the node."""
        if self._stopped or self._is_disarmed or not is_of_older_cluster(greeting, self._founder):
            return
        if self._has_tasks():
            self._is_disarmed = True  # real work was taken on: to end it now would be the greater harm
            return
        if not self._is_proven(greeting):
            self._begin_anew(greeting)
            return
        self.stop()
        self._on_older_cluster(
            f"{self._founder.name} was a member of cluster {greeting.cluster}, whose members (node {greeting.dialler} at "
            f"{greeting.source}) still look for it here; this directory holds no task: restore its disk, or remove "
            f"{greeting.name or self._founder.name} there and start with --join"
        )

    def _is_proven(self, greeting: Greeting) -> bool:
        if greeting.is_certified:
            return True
        if not self._trusts_own_users or not greeting.is_own_users():
            return False
        self._own_users.add(self._turn)
        return len(self._own_users) >= bounds.BIRTH_GUARD_GREETINGS

    def _begin_anew(self, greeting: Greeting) -> None:
        line = (
            f"node {greeting.dialler} at {greeting.source} says that {self._founder.name} was a member of cluster "
            f"{greeting.cluster}, and does not prove it: if it was, restore its disk or start it with --join"
        )
        if not self.doubt:
            _log.warn("{line}; not ready while it is said", line=line, event="birth_doubted")
        self.doubt = line
        self._steps_done, self._steps_wanted = 0, self._quiet_steps
        if self._timer is None and self._is_watching:
            self._timer = self._clock.call_later(self._step_s, self._step)

    def stop(self) -> None:
        """Stop: no timer, no decision any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._settle(False)

    def _step(self) -> None:
        self._timer = None
        self._turn += 1
        self._steps_done += 1
        if self.is_newborn and not self._has_tasks():
            self._timer = self._clock.call_later(self._step_s, self._step)
            return
        self._steps_done = self._steps_wanted
        self.doubt = ""
        self._settle(True)

    def _settle(self, passed: bool) -> None:
        if not self._passed.called:
            self._passed.callback(passed)
