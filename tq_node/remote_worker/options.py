"""The command line of ``tq-worker``."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from tq_node import distributions, limits
from tq_node.cli.parse import duration, parse_module, size
from tq_node.client.addresses import BadAddress
from tq_node.client.engine import Settings, make_settings

EPILOGUE = """\
ADDRESS is HOST:PORT or https://HOST:PORT of any node; several as localhost:8080,8081,8082 or apart. The others are learnt from
them. Environment: TQ_URL for ADDRESS, TQ_TOKEN, TQ_CA, and TQ_… for each option. SIGTERM: takes no more work, lets handlers end
within --stop-timeout, gives the rest back, exits 0.

  tq-worker --handlers shop.tasks localhost:8080,8081,8082
  tq-worker --handlers shop.tasks --queues mail,default --concurrency 32 https://queue.example.org:8443 --token-file token
"""
CONCURRENCY_MAX = 10_000
LEASE_S_DEFAULT = 15.0


class WorkerOptions(msgspec.Struct, frozen=True):
    """What ``tq-worker`` was told."""

    settings: Settings
    name: str
    handlers: tuple[str, ...]
    concurrency: int
    queues: tuple[str, ...] | dict[str, int] | None
    """In this order, or in turn by weight; None: all."""
    lease_s: float
    stop_timeout_s: float
    memory_bytes: int | None
    echo: bool
    watch: bool
    status_port: tuple[str, int] | None
    """Where ``/health`` and ``/metrics`` are answered."""
    version: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message}\n")


def read_options(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> WorkerOptions:
    """What command line and environment say; exits with 1 and one line where it is wrong."""
    parser = _parser(environment)
    given = parser.parse_args(arguments)
    words = given.addresses or environment.get("TQ_URL", "").split() or ["localhost:8080"]
    try:
        settings = make_settings(
            " ".join(words), token=None, token_file=given.token_file, tls=False, ca=given.ca, deadline=30.0,
            batching=True, discover=True,
        )  # fmt: skip
        modules = tuple(_module(name) for text in given.handlers for name in text.split(",") if name)
        queues = _queues(given.queues)
        status_port = None if given.metrics is None else _port(given.metrics)
        memory = None if given.worker_memory is None else _named("--worker-memory", size(1, 2**50), given.worker_memory)
        stop_ms = _named("--stop-timeout", duration(0, 86_400), given.stop_timeout)
    except (ValueError, BadAddress) as why:
        parser.error(str(why))
    if not modules:
        parser.error("--handlers is missing: which modules have the handlers")
    if not 1 <= given.concurrency <= CONCURRENCY_MAX:
        parser.error(f"--concurrency: {given.concurrency} is not from 1 to {CONCURRENCY_MAX}")
    if not limits.WORKER_LEASE_MS_MIN <= given.lease * 1000 <= limits.WORKER_LEASE_MS_MAX:
        parser.error("--lease: from 5 to 300 seconds")
    name = given.name or f"{socket.gethostname()}-{os.getpid()}"
    if len(name) > limits.WORKER_CHARS_MAX or not name.isprintable():
        parser.error(f"--name: at most {limits.WORKER_CHARS_MAX} characters that can be shown")
    return WorkerOptions(
        settings, name, modules, given.concurrency, queues, given.lease, stop_ms / 1000, memory, given.echo_handlers,
        given.watch, status_port, given.version_of_code,
    )  # fmt: skip


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    def said(name: str, default: Any = None) -> Any:
        return environment.get(f"TQ_{name}") or default

    parser = _Parser(
        prog="tq-worker",
        description="Runs tasks of a taskqueue cluster, on any machine.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("addresses", nargs="*", metavar="ADDRESS")
    add("--handlers", action="append", default=[said("HANDLERS")] if said("HANDLERS") else [], metavar="MODULE",
        help="dotted module(s) with task handlers, also from the working directory")  # fmt: skip
    add("--concurrency", type=int, default=int(said("CONCURRENCY", limits.CONCURRENCY_DEFAULT)), metavar="N",
        help="how many tasks run at once")  # fmt: skip
    add("--queues", default=said("QUEUES"), metavar="a,b",
        help="only these queues, in this order; mail:3,default:1 in turn by weight")  # fmt: skip
    add("--name", default=said("WORKER_NAME"), help="shown to operators; the host's name and the process's number")
    add("--lease", type=float, default=float(said("LEASE", LEASE_S_DEFAULT)), metavar="SECONDS",
        help="after so long without a sign of this worker its tasks are given to others")  # fmt: skip
    add("--stop-timeout", default=said("STOP_TIMEOUT", "25"), metavar="TIME", help="how long handlers may go on")
    add("--worker-memory", default=said("WORKER_MEMORY"), metavar="SIZE", help="most memory of one process of handlers")
    add("--echo-handlers", action="store_true", help="what handlers print and log goes to the log here, too")
    add("--watch", action="store_true", help="load the handlers anew when their files change, for development")
    add("--metrics", default=said("METRICS"), metavar="[HOST:]PORT", help="answer /health and /metrics there")
    add("--token-file", default=said("TOKEN_FILE"), metavar="FILE", help="the token that nodes ask for")
    add("--ca", default=None, metavar="FILE", help="authority of the nodes' certificates")
    add("--code-version", dest="version_of_code", default=said("CODE_VERSION", ""), metavar="TEXT",
        help="shown to operators")  # fmt: skip
    add("--version", action="version", version=f"tq-worker {distributions.version()}")
    return parser


def _module(name: str) -> str:
    return str(_named("--handlers", parse_module, name.strip()))


def _named(option: str, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as why:
        raise ValueError(f"{option}: {text!r} {why}") from None


def _queues(text: str | None) -> tuple[str, ...] | dict[str, int] | None:
    if not text:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not any(":" in part for part in parts):
        return tuple(dict.fromkeys(parts))
    weights = {}
    for part in parts:
        name, colon, weight = part.rpartition(":")
        if not colon or not weight.isdigit() or not 1 <= int(weight) <= 100:
            raise ValueError(f"--queues: {part!r} has no weight from 1 to 100, and others have one")
        weights[name] = int(weight)
    return weights


def _port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 <= int(port) < 65_536:
        raise ValueError(f"--metrics: {text!r} names no port")
    return host or "127.0.0.1", int(port)
