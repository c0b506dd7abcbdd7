"""RabbitMQ: a quorum queue on three nodes, publisher confirms. Each node has ports, data, cookie and epmd of the bench's own."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.peers.amqp import Channel
from bench.peers.base import Drain
from bench.peers.brokers import NODES, Broker, BrokerPeer
from bench.peers.debian import unpacked
from bench.peers.raw import Wrong
from bench.processes import PEER_OFFSET, Failed, free_port, running, tail

START_S = 120.0
STOP_S = 0.5
"""It takes longer to stop in order; nothing of it is needed any more."""
_ERLANG = (
    "erlang-base", "erlang-asn1", "erlang-crypto", "erlang-eldap", "erlang-ftp", "erlang-inets", "erlang-mnesia",
    "erlang-os-mon", "erlang-parsetools", "erlang-public-key", "erlang-runtime-tools", "erlang-snmp", "erlang-ssl",
    "erlang-syntax-tools", "erlang-tftp", "erlang-tools", "erlang-xmerl",
)  # fmt: skip
_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = bench1@localhost
cluster_formation.classic_config.nodes.2 = bench2@localhost
cluster_formation.classic_config.nodes.3 = bench3@localhost
"""
_ERL = """\
#!/bin/sh
export ROOTDIR={erlang} BINDIR={emulator} EMU=beam PROGNAME=erl
exec {emulator}/erlexec "$@"
"""
"""Debian's own script knows only where it would be installed."""


class RabbitQuorum(BrokerPeer):
    name = "rabbitmq"
    requirements = ()
    distribution = ""
    speaks = "amqp"
    about = (
        "quorum queue on three nodes, persistent messages, publisher confirms; consumers on all three, prefetch 500, "
        "each message acknowledged; nothing is recorded of a message that was acknowledged"
    )
    drains = (Drain("rabbitmq", "consumers", is_fast=True, beside=(False, True)),)

    def prepare(self) -> None:
        installed = Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists() and Path("/usr/lib/erlang").is_dir()
        self._root = Path("/") if installed else unpacked("rabbitmq", ("rabbitmq-server", *_ERLANG))
        self._erlang = self._root / "usr/lib/erlang"
        (self._emulator,) = (path.parent for path in self._erlang.glob("erts-*/bin/erlexec"))
        (home,) = (self._root / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")
        self.version = home.name.partition("-")[2]

    @contextlib.contextmanager
    def broker(self, directory: Path) -> Iterator[Broker]:
        epmd, cookie = free_port(), secrets.token_hex(16)
        programs = directory / "bin"
        programs.mkdir()
        erl = programs / "erl"
        erl.write_text(_ERL.format(erlang=self._erlang, emulator=self._emulator))
        erl.chmod(0o700)
        with ExitStack() as stack:
            # Ours runs in the foreground: one that a node starts by itself would stay for ever.
            address = {"ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(epmd)}
            stack.enter_context(
                running(
                    [str(self._emulator / "epmd"), "-port", str(epmd)], directory=directory,
                    log=directory / "epmd.log", extra=address,
                )
            )  # fmt: skip
            broker = Rabbits(directory)
            begun = time.monotonic()
            for number in range(1, NODES + 1):
                port = free_port()
                home = directory / f"node-{number}"
                home.mkdir()
                extra = {**address, **self._environment(home, number, port, cookie, programs)}
                command = ["sh", str(self._root / "usr/lib/rabbitmq/bin/rabbitmq-server")]
                process = stack.enter_context(
                    running(command, directory=home, log=home / "node.log", wait_s=STOP_S, extra=extra)
                )
                broker.ports.append(port)
                broker.pids.append(process.pid)
            broker.wait_ready(begun)
            stack.callback(broker.close)
            yield broker

    def _environment(self, home: Path, number: int, port: int, cookie: str, programs: Path) -> dict[str, str]:
        (home / "rabbitmq.conf").write_text(_CONFIGURATION.format(port=port))
        (home / "enabled_plugins").write_text("[].\n")
        return {
            "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"bench{number}@localhost",
            "RABBITMQ_DIST_PORT": str(port + PEER_OFFSET),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "none.config"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "none.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "db"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_LOGS": "-",
            # Its script then replaces itself by the server, which so is our own child and gets our signals.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-noinput -setcookie {cookie} -kernel inet_dist_use_interface {{127,0,0,1}}"
            ),
        }


class Rabbits(Broker):
    """See its base."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports: list[int] = []
        self.pids: list[int] = []
        self._channel: Channel | None = None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def wait_ready(self, begun: float) -> None:
        """Until they are one cluster: a queue made on one is seen by the others. Then the quorum queue is made."""
        while not self._are_one():
            if time.monotonic() - begun > START_S:
                said = tail(self.directory / "node-1" / "node.log")
                raise Failed(f"rabbitmq: no cluster of three in {START_S:g} s; the first said:\n{said}")
            time.sleep(0.2)  # polls until the nodes have found one another
        self._channel = Channel(self.ports[0])
        self._channel.declare(copies=NODES)

    def _are_one(self) -> bool:
        channels: list[Channel] = []
        try:
            for port in self.ports:
                channels.append(Channel(port))  # noqa: PERF401 -- those opened so far are closed
            channels[0].declare("probe")
            for channel in channels[1:]:
                channel.declare("probe", passive=True)
        except (OSError, Wrong):
            return False
        finally:
            for channel in channels:
                channel.close()
        return True

    def stored(self) -> int:
        assert self._channel is not None
        return self._channel.declare(passive=True)

    def verify_copies(self) -> None:
        """Each member of a quorum queue keeps a directory for it."""
        found = [list(self.directory.glob(f"node-{number}/db/*/quorum/*/*/config")) for number in range(1, NODES + 1)]
        if not all(len(one) == 1 for one in found):
            raise Failed(f"rabbitmq: its queue has {sum(map(len, found))} members, not one on each node")
