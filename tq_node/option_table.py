"""The options of a node, one row each: what help, environment, file and reference page are made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tq_node import limits


class Option(NamedTuple):
    """One row of ``OPTIONS``."""

    name: str
    metavar: str
    """Empty for a flag."""
    help: str
    default: str | None = None
    also: tuple[str, ...] = ()
    """Environment variables besides ``TQ_…``."""
    many: bool = False
    """May be given several times, or with commas."""

    @property
    def environment(self) -> tuple[str, ...]:
        return (f"TQ_{self.name.upper().replace('-', '_')}", *self.also)


OPTIONS: tuple[Option, ...] = (
    Option("node-id", "NAME", "Name of the node.", "node-1", ("NODE_ID",)),
    Option(
        "http",
        "ADDRESS",
        "PORT, :PORT, HOST:PORT or a Twisted endpoint string; no host means 127.0.0.1.",
        "8080",
        ("HTTP_ADDR",),
    ),
    Option("peer", "ADDRESS", "Where other nodes connect; in the same forms. [default: HTTP port + 1000]"),
    Option("join", "ADDRESS", "HTTP address of any member; may be given several times.", None, ("JOIN_ADDR",), True),
    Option("advertise", "HOST", "Host name that other nodes and clients use. [default: the host bound]"),
    Option(
        "http-name",
        "NAME",
        "Another host name that clients use; may be given several times. Requests for other names are refused.",
        None,
        (),
        True,
    ),
    Option("data-dir", "DIR", "Everything that the node keeps. [default: ./data/<node-id>]"),
    Option(
        "handlers",
        "MODULE",
        "Dotted module(s) with task handlers, or simulated. [default: simulated, on loopback, where no node ever had others]",
        None,
        (),
        True,
    ),
    Option("no-handler-after", "TIME", "Fail a task that has waited so long for a handler: never, 1h, 90s.", "never"),
    Option("concurrency", "N", "How many tasks run at once.", str(limits.CONCURRENCY_DEFAULT)),
    Option("worker-memory", "SIZE", "Most memory of one worker process. [default: no bound]"),
    Option("worker-env", "NAME", "Variables for worker processes. [default: all but the node's own]", None, (), True),
    Option("echo-handlers", "", "Write what handlers print and log to the node's log too."),
    Option("replication-factor", "N", "Copies of each task; fixed at birth.", str(limits.REPLICATION_FACTOR_DEFAULT)),
    Option("partitions", "N", "Number of partitions; fixed at birth.", str(limits.PARTITIONS_DEFAULT)),
    Option("voters", "N", "Nodes that elect the leader: 1, 3 or 5.", "3"),
    Option("config", "FILE", "TOML file with the same names; command line > environment > file > default."),
    Option("secret-file", "FILE", "Shared secret of the peers."),
    Option("tokens-file", "FILE", "Access tokens of the HTTP side. Not in this version, which refuses the option."),
    Option("peer-cert", "FILE", "Certificate of this node towards its peers."),
    Option("peer-key", "FILE", "Private key of that certificate."),
    Option("peer-ca", "FILE", "Authority that signed the certificates of the peers."),
    Option("retention", "TIME", "How long a task that has ended is kept: 24h, 90m, 30s.", "24h"),
    Option("dedupe-window", "TIME", "How long after that its id is remembered.", "24h"),
    Option("stop-timeout", "TIME", "How long a running handler may go on after SIGTERM.", str(limits.STOP_TIMEOUT_S)),
    Option("max-body", "SIZE", "Largest HTTP body.", "16MiB"),
    Option("max-payload", "SIZE", "Largest payload of one task.", "1MiB"),
    Option("min-free-disk", "SIZE", "Below it new work is refused.", "256MiB"),
    Option(
        "snapshot-dir",
        "DIR",
        "Where snapshots go, each node's into a folder of its name. [default: the data directory]",
    ),
    Option(
        "snapshots-kept", "N", "How many snapshots stay; with one more the oldest goes.", str(limits.SNAPSHOTS_KEPT)
    ),
    Option("copy-rate", "SIZE", "Most a second for copies that are being made or catch up; 0: no bound.", "0"),
    Option(
        "metrics-labels",
        "N",
        "Queues, and types, that have metrics of their own; the rest is other.",
        str(limits.METRICS_LABELS),
    ),
    Option("insecure-http", "", "Allow an HTTP address that is not loopback without credentials."),
    Option("insecure-peers", "", "Allow a peer address that is not loopback without credentials."),
    Option("insecure", "", "Both --insecure-http and --insecure-peers."),
    Option("readmit", "", "Set a failed store aside and join as a new node; needs --join."),
)
BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}
