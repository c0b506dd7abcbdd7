"""Links between nodes: cut, one-way, slow, flapping, losing what is on its way. Each directed link is a proxy of its own."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

from tests.chaos.kills import SESSION_S
from tests.chaos.scenario import scenario
from tests.chaos.stage import Stage
from tests.cluster.replicated import ids_in, led_by, seed_of
from tests.support.harness import until
from tests.support.history import Call
from tests.support.load import Client
from tests.support.proxy import Direction

CUT_S = 3.0
"""Longer than a session: pings have gone unanswered, and whoever is not heard is taken for dead."""


@scenario("cut-each-link", links=True)
def cut_each_link(stage: Stage) -> str:
    """Each of the six directed links is cut alone for 3 s, one after another (F5)."""
    waits = []
    for source, sink in stage.rolls.sample(list(itertools.permutations(stage.names, 2)), 6):
        stage.links.cut(source, sink)
        time.sleep(CUT_S)  # cut
        waits.append(stage.wait_acknowledged())
        stage.links.heal()
        time.sleep(0.5)  # healed
    return f"with a link cut, five submits acknowledged within {max(waits):.1f} s"


@scenario("lose-each-link", links=True)
def lose_each_link(stage: Stage) -> None:
    """As above, and what was on its way is lost: the connections break when the link heals."""
    for source, sink in stage.rolls.sample(list(itertools.permutations(stage.names, 2)), 6):
        stage.links.cut(source, sink, Direction.drop)
        time.sleep(CUT_S)  # cut
        stage.links.heal()
        time.sleep(0.5)  # healed


@scenario("deaf-and-mute", links=True)
def deaf_and_mute(stage: Stage) -> None:
    """Asymmetric partitions: the Raft leader is heard by nobody, then hears nobody; then the same with a follower."""
    for of_leader in (True, False):
        for is_mute in (True, False):
            victim = stage.leader() if of_leader else stage.follower()
            for other in stage.others(victim):
                source, sink = (victim, other) if is_mute else (other, victim)
                stage.links.cut(source, sink)
            time.sleep(CUT_S)  # cut
            stage.wait_acknowledged()
            stage.links.heal()
            stage.cluster.wait_whole()


@scenario("chain", links=True)
def chain(stage: Stage) -> str:
    """The link between two nodes is cut both ways for 6 s; both hear the third. Once with the leader in the middle, once at an
    end."""
    waits = []
    for in_the_middle in (True, False):
        leader = stage.leader()
        one, other = stage.others(leader)
        end = one if in_the_middle else leader
        stage.links.isolate(end, [other])
        time.sleep(6.0)  # cut
        waits.append(stage.wait_acknowledged())
        stage.links.heal()
        stage.whole()
    return f"five submits acknowledged within {max(waits):.1f} s"


@scenario("flapping-link", links=True)
def flapping_link(stage: Stage) -> None:
    """One node's links to both others are cut and healed some forty times, for 0.05 s to 0.6 s each."""
    victim = stage.follower()
    for turn in range(40):
        if turn % 2:
            stage.links.heal()
        else:
            stage.links.isolate(victim, [stage.rolls.choice(stage.others(victim))])
        time.sleep(stage.rolls.uniform(0.05, 0.6))  # cut, or healed
    stage.links.heal()


@scenario("breaking-connections", links=True)
def breaking_connections(stage: Stage) -> None:
    """Every connection between nodes is reset, again and again for 10 s, at random moments: old and new ones deliver at once
    (F42)."""
    end_s = time.monotonic() + 10.0
    while time.monotonic() < end_s:
        stage.rolls.choice(list(stage.links.proxies.values())).break_all()
        time.sleep(stage.rolls.uniform(0.02, 0.4))  # until the next reset


@scenario("slow-link", links=True)
def slow_link(stage: Stage) -> str:
    """All that one node says and hears takes 150 ms longer for 10 s: nobody is taken for dead, and nothing times out."""
    victim = stage.follower()
    others = stage.others(victim)
    for other in others:
        stage.links.cut(victim, other, lambda direction: direction.delay(0.15))
        stage.links.cut(other, victim, lambda direction: direction.delay(0.15))
    waited_s = stage.wait_acknowledged(30)
    time.sleep(10.0)  # slow
    view = stage.cluster.view(others[0])
    assert view is not None
    assert view.statuses[victim] in ("active", "suspect"), view
    stage.links.heal()
    return f"thirty submits in {waited_s:.1f} s"


OWN_S = 15.0
"""Of a client that waits for whatever the node has to say: it gives a write up after 10 s itself."""


class _OwnClient(threading.Thread):
    """It knows only the node that is cut off, and goes on asking it: for a task, or to take one more, of one partition."""

    def __init__(self, stage: Stage, kind: str, name: str, ids: Iterator[str]) -> None:
        super().__init__(name=f"own-{kind}", daemon=True)
        self.kind = kind
        self.over = threading.Event()
        self.alone_s = float("inf"), float("inf")
        """From when to when the node is alone."""
        self.heard_alone = 0
        self.done_alone = 0
        """Calls that were answered as done, though they began when the node had been alone for a while."""
        self.error: BaseException | None = None
        self._client = Client(f"own-{kind}", stage.cluster.ports, stage.history, timeout_s=OWN_S)
        self._node, self._ids = name, ids
        self._first = next(ids)

    def run(self) -> None:
        try:
            self._client.submit(self._node, self._first, type="noop", delay=1)
            while not self.over.wait(0.03):
                self._count(self._ask())
        except BaseException as why:
            self.error = why
        finally:
            self._client.close()

    def _ask(self) -> Call:
        if self.kind == "submit":
            return self._client.submit(self._node, next(self._ids), type="noop", delay=1)
        return self._client.status(self._node, self._first)

    def _count(self, call: Call) -> None:
        since_s, until_s = self.alone_s
        if call.began_s > since_s and time.monotonic() < until_s:
            self.heard_alone += 1
            self.done_alone += call.outcome == "ok"


@scenario("isolated-primary", links=True)
def isolated_primary(stage: Stage) -> str:
    """A primary is cut off together with clients of its own, which go on asking it: no strong read and no submit is answered as
    done there, while the others choose another primary (F24)."""
    victim = stage.follower()
    partition = led_by(stage.cluster, victim)[0]
    seed = seed_of(stage.cluster)
    own = [
        _OwnClient(stage, kind, victim, ids_in(seed, partition, f"own-{kind}", stage.one.partitions))
        for kind in ("submit", "status")
    ]
    for client in own:
        client.start()
    time.sleep(1.0)  # they ask while all is well
    stage.links.isolate(victim, stage.others(victim))
    time.sleep(0.5)  # what had left before arrives
    since_s = time.monotonic()
    for client in own:
        client.alone_s = since_s, float("inf")
    waited_s = stage.wait_acknowledged(30)
    time.sleep(SESSION_S + 1.0)  # others lead by now
    assert stage.cluster.partitions(stage.others(victim)[0])[partition]["primary"] != victim
    for client in own:
        until(lambda client=client: client.heard_alone, deadline_s=2 * OWN_S, what=f"an answer to {client.name}")  # type: ignore[misc]
        client.alone_s = since_s, time.monotonic()
    stage.links.heal()
    for client in own:
        client.over.set()
        client.join(2 * OWN_S)
        assert not client.is_alive(), f"{client.name} hangs"
        if client.error is not None:
            raise client.error
        assert not client.done_alone, f"{client.name}: {client.done_alone} answered as done by a node that was alone"
    told = ", ".join(f"{client.heard_alone} of {client.name}" for client in own)
    return f"thirty submits elsewhere within {waited_s:.1f} s; answered by the node alone: {told}, none as done"
