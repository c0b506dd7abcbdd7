"""One node of a world of whole nodes: put together as ``service.py`` does it, by ``member.py`` itself.

Only the reactor, the store and the worker's processes are other ones; ``composition`` takes the reactor's sockets, the HTTP of
joiners and unseeded dice out of ``member.py``'s hands, and makes some bounds small.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

import tq_node.node.member as composition_root
from tests.simulation.cluster.net import ClientEndpoint, ServerEndpoint
from tests.simulation.cluster.store import Disk, DiskStore
from tests.simulation.cluster.time import SOCKET, NodeReactor
from tests.simulation.cluster.work import SimWorker
from tests.simulation.families import need
from tests.support.world import SECOND_US
from tq_node import limits
from tq_node.cli import config
from tq_node.cluster.commands import Registration
from tq_node.cluster.records import ClusterSettings
from tq_node.facade import TypeDefaults
from tq_node.node.member import Birth, Credentials, Member, identify, make_plane
from tq_node.node.service import SITE_CLOSE_S
from tq_node.observe.metrics import Metrics
from tq_node.partition.core import PartitionCore
from tq_node.runtime.bootstrap.invitation import Invited, NotInvited
from tq_node.runtime.bootstrap.join import Joiner
from tq_node.runtime.clock import Clock, WallClock
from tq_node.runtime.control import raft_driver
from tq_node.runtime.routing.admin import ClusterAdmin
from tq_node.runtime.routing.cluster_queue import ClusterQueue
from tq_node.runtime.routing.node import Node, NodeHooks
from tq_node.runtime.routing.node_state import ClusterQueueSettings
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.local_queue import LocalQueue, QueueHooks, open_local_queue

if TYPE_CHECKING:
    from tests.simulation.cluster.world import ClusterWorld

START_US = 1_700_000_000 * SECOND_US
HTTP_PORT, PEER_PORT = 8080, 8081
_ROWS_BYTES = 8_000


class SimulatedNode:
    """Its store, its disk and its clock's rate outlive its runs."""

    def __init__(self, world: ClusterWorld, index: int, partitions: int, replication_factor: int) -> None:
        self.world = world
        self.index = index
        self.name = f"n{index}"
        self.host = f"127.0.0.{index + 1}"
        source = world.rng("disk", index)
        self.disk = Disk(source)
        self.store = DiskStore()
        self.rate = 1.0 + world.rng("clock", index).uniform(-0.004, 0.004)
        self.wall_skew_us = world.rng("wall", index).choice([0, 0, -400_000, 300_000])
        self.runs = 0
        self.is_up = self.is_stopping = False
        self.reactor: NodeReactor
        self.member: Member
        self.node: Node
        self.queue: ClusterQueue
        self.worker: SimWorker
        self._starting: Deferred[None]
        self.graveyard: list[Any] = []
        """What earlier runs were: coroutines that are collected early would run their ends."""
        self._draws = world.rng("node", index)
        self._settings = self._make_settings(partitions, replication_factor)

    def _make_settings(self, partitions: int, replication_factor: int) -> config.NodeSettings:
        others = [str(index + 1) for index in range(self.world.node_count) if index != self.index]
        given = {
            "node-id": [self.name],
            "http": [f"{self.host}:{HTTP_PORT}"],
            "peer": [f"{self.host}:{PEER_PORT}"],
            "partitions": [str(partitions)],
            "replication-factor": [str(replication_factor)],
        }
        if self.index:
            given["join"] = [f"127.0.0.{other}:{HTTP_PORT}" for other in others]
        settings = config.load(given, {}, Path.cwd())
        return msgspec.structs.replace(settings, birth_guard_s=0.2)

    # --- life ---
    def boot(self) -> None:
        self.runs += 1
        self.is_up = True
        world = self.world
        reactor = self.reactor = NodeReactor(world.time, self.host, self.rate, 1_000.0 * self._draws.random())
        reactor.net = world.net
        world.net.dead_hosts.pop(self.host, None)
        world.by_reactor[id(reactor)] = self
        self.store.begin(reactor, self.disk, partial(self._broken, "the store"))
        broken = partial(self._broken, "a promise")
        clock = Clock(reactor, WallClock(self._wall_ns, lambda: int(reactor.seconds() * 1e9)))
        draw = self._draws.randbytes
        identity = identify(self._settings, Credentials.of(self._settings), self.store.meta(), clock.wall_us(), draw)
        birth = Birth(
            self._settings,
            self.store,
            clock,
            identity,
            has_tasks=lambda: node.has_tasks(),  # noqa: PLW0108 (made below)
            on_older_cluster=lambda line: self._broken("birth guard", RuntimeError(line)),
        )
        node = self.node = Node(
            clock,
            ClusterQueueSettings(
                node_id=identity.registration.node_id,
                node_name=self.name,
                open_local=partial(self._open_local_queue, clock, identity.registration, broken),
                draw=self._draws.random,
                secret_for_joiners=identity.secret_for_joiners,
            ),
            partial(make_plane, self._settings, self.store, clock, identity),
            NodeHooks(
                guard=birth.guarded,
                on_greeted=birth.greeted,
                on_shutdown=lambda: None,
                on_refused=lambda refusal: self._broken("the cluster refuses the node", RuntimeError(str(refusal))),
                on_broken=broken,
            ),
        )
        member = self.member = Member(self._settings, self.store, clock, identity, node.state.plane, birth)
        self.queue = ClusterQueue(node.state, node.work, ClusterAdmin(node.state, clock, lambda: None), clock)
        self.worker = SimWorker(self)
        member.listen()
        self._watch(self.queue)
        starting = self._starting = Deferred.fromCoroutine(self._start(member, node, self.worker))
        starting.addErrback(self._not_started)
        self.graveyard.append((reactor, member, node, self.queue, self.worker, starting, self.store))
        world.trace.add(f"{world.time.now_us} boot {self.name} {self.runs}")

    async def _start(self, member: Member, node: Node, worker: SimWorker) -> None:
        await member.start()
        node.start()
        worker.start()
        await member.join()

    def _not_started(self, why: Failure) -> None:
        self._broken("the start", why.value or RuntimeError("unknown"))

    def _wall_ns(self) -> int:
        return (START_US + self.world.time.now_us + self.wall_skew_us) * 1000

    async def _open_local_queue(
        self,
        clock: Clock,
        registration: Registration,
        broken: Callable[[BaseException], None],
        cluster: ClusterSettings,
    ) -> LocalQueue:
        """As ``build.open_local``."""
        local = await open_local_queue(
            self.store,
            clock,
            QueueSettings(
                defaults_of=lambda task_type: TypeDefaults(),
                node_id=registration.node_id,
                node_name=self.name,
                incarnation=registration.incarnation,
                seed=cluster.seed,
                partition_count=cluster.partition_count,
                born_us=cluster.born_us,
                retention_ms=self._settings.retention_ms,
                dedupe_window_ms=self._settings.dedupe_window_ms,
                disk_free_bytes_min=0,
                random_bytes=self._draws.randbytes,
                draw=self._draws.random,
            ),
            Metrics(),
            QueueHooks(
                surroundings=self.node.state.plane,
                stop_elsewhere=self.node.stop_elsewhere,
                tell_worker=self.node.tell_worker,
                on_disk_floor=lambda: None,
                on_broken=broken,
                workers_are_gone=lambda: not self.world.checkers.runs_at(self.host),
            ),
        )
        local.table.rows._bytes_max = _ROWS_BYTES
        return local

    def _watch(self, queue: ClusterQueue) -> None:
        checkers = self.world.checkers
        queue.watch(lambda batch: checkers.events_seen(batch) if self.queue is queue and self.is_up else None)

    def _broken(self, what: str, why: BaseException) -> None:
        self.world.failures.append(f"{self.name}: {what}: {why!r}")

    @property
    def local(self) -> LocalQueue | None:
        """The queue of its own partitions, once it is active."""
        return self.node.state.local if self.is_up else None

    # --- the end ---
    def stop(self, stopped: Callable[[], None]) -> None:
        """In the order of ``service.NodeService._stop``; nobody is left waiting, and no timer."""
        self.is_stopping = True
        self.world.trace.add(f"{self.world.time.now_us} stop {self.name}")
        reactor = self.reactor

        def over(_: None) -> None:
            self.is_stopping = self.is_up = False
            reactor.stopped_s = reactor.seconds()
            self.world.net.ports = {p: port for p, port in self.world.net.ports.items() if port.reactor is not reactor}
            self.store = self.store.crash(0)  # type: ignore[assignment]
            self.world.trace.add(f"{self.world.time.now_us} stopped {self.name}")
            stopped()

        stopping = Deferred.fromCoroutine(self._stop(self.member, self.node, self.worker, self.store))
        stopping.addCallback(over).addErrback(self._not_started)
        self.graveyard.append(stopping)

    async def _stop(self, member: Member, node: Node, worker: SimWorker, store: DiskStore) -> None:
        node.begin_to_stop()
        member.stop_joining()
        await self._starting
        handlers_ended = Deferred.fromCoroutine(worker.stop())
        await node.transfer_partitions()
        node.refuse_work()
        await handlers_ended
        await node.transfer_partitions()
        await member.leave_gracefully()
        await node.stop()
        await self._answered()
        await member.stop()
        await store.close()

    async def _answered(self) -> None:
        """As ``ApiSite.close``: connections stay until what was asked over them is answered, for so long at most."""
        run, reactor = self.runs, self.reactor
        for _ in range(round(SITE_CLOSE_S / 0.05)):
            if not self.world.clients.left_at(self, run):
                return
            passed: Deferred[None] = Deferred()
            reactor.callLater(0.05, passed.callback, None)
            await passed
        left = self.world.clients.left_at(self, run)
        need(not left, "a node that stops answers everybody", self.name, left)

    # --- trouble ---
    def crash(self, *, power: bool) -> None:
        """The process dies, or the machine under it. Of what was not durable a prefix is kept."""
        if not self.is_up:
            return
        self.is_up = self.is_stopping = False
        self.reactor.is_over = True
        draws = self.disk.random
        pending = self.store.pending
        keep = draws.randint(0, pending) if pending and draws.random() < 0.5 else 0
        self.store = self.store.crash(keep)  # type: ignore[assignment]
        if power:
            self.world.net.machine_died(self.reactor)
        else:
            self.world.net.process_died(self.reactor)
        self.worker.died(power=power)
        self.world.clients.node_died(self)
        self.world.trace.add(f"{self.world.time.now_us} crash {self.name} {power} {keep}/{pending}")

    @property
    def is_paused(self) -> bool:
        return self.is_up and self.reactor.frozen is not None


class VirtualInviter:
    """``invitations.Inviter`` without HTTP: the very answers of the member's queue."""

    def __init__(self, world: ClusterWorld, reactor: NodeReactor) -> None:
        self._world = world
        self._reactor = reactor

    async def ask(self, address: str) -> Invited:
        net, here = self._world.net, self._reactor.host
        there = address.rpartition(":")[0]
        node = next(node for node in self._world.nodes if node.host == there)
        await self._pass(net.delay(here, there))
        if not node.is_up or node.is_paused or net.is_cut(here, there) or net.is_cut(there, here):
            await self._pass(SECOND_US)
            raise NotInvited("no answer")
        view = node.queue.cluster()
        if not view.cluster_id:
            raise NotInvited("is not in a cluster itself yet")
        try:
            invitation = node.queue.invite()
        except Exception as why:
            raise NotInvited(str(why)) from None
        await self._pass(net.delay(there, here))
        listed = sorted(view.nodes, key=lambda one: (one.name != view.leader, one.status != "active"))
        peers = dict.fromkeys([invitation.peer, *(one.peer for one in listed)])
        names = frozenset(one.name for one in view.nodes)
        return Invited(view.cluster_id, bytes.fromhex(invitation.secret), tuple(peers), names)

    def _pass(self, delay_us: int) -> Deferred[None]:
        passed: Deferred[None] = Deferred()
        self._reactor.soon(delay_us, SOCKET, passed.callback, None)
        return passed


@contextmanager
def composition(world: ClusterWorld, small: dict[str, Any]) -> Iterator[None]:
    """:param small: ``pace`` of the partitions, ``snapshot_every`` and ``kept_behind`` of Raft, ``lease_ms`` with its margin."""
    dice = world.rng("dice")
    patches: list[tuple[Any, str, Any]] = [
        (composition_root, "serverFromString", lambda reactor, _: ServerEndpoint(reactor, PEER_PORT)),
        (composition_root, "client_endpoint", ClientEndpoint),
        (composition_root, "tcp_reactor", lambda reactor, _: reactor),
        (composition_root, "Inviter", lambda reactor, **_: VirtualInviter(world, reactor)),
        (composition_root, "Joiner", partial(Joiner, dice=dice)),
        (composition_root, "random", SimpleNamespace(Random=lambda: random.Random(dice.random()))),
        (raft_driver, "SNAPSHOT_EVERY", small["snapshot_every"]),
        (raft_driver, "KEPT_BEHIND", small["kept_behind"]),
        (limits, "GATHER_CALLERS_MIN", small.get("gather_callers", limits.GATHER_CALLERS_MIN)),
        (limits, "LEASE_MS", small["lease_ms"]),
        (limits, "LEASE_MARGIN_MS", small["margin_ms"]),
        (limits, "LEASE_RENEW_MS", small["lease_ms"] // 4),
    ]
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(
            mock.patch("tq_node.runtime.tasks.recovery.PartitionCore", partial(PartitionCore, settings=small["pace"]))
        )
        yield
