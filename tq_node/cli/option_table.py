"""The options, one row each: source of help, environment, file and reference page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tq_node import limits


class OptionRow(NamedTuple):
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


OPTIONS: tuple[OptionRow, ...] = (
    OptionRow("node-id", "NAME", "Name of the node.", "node-1", ("NODE_ID",)),
    OptionRow("http", "ADDRESS",
              "PORT, :PORT, HOST:PORT or a Twisted endpoint string; no host means 127.0.0.1.", "8080", ("HTTP_ADDR",)),
    OptionRow("peer", "ADDRESS", "Where other nodes connect; in the same forms. [default: HTTP port + 1000]"),
    OptionRow("join", "ADDRESS", "HTTP or peer address of any member; may be given several times.", None, ("JOIN_ADDR",), True),
    OptionRow("invitation", "FILE", "Joins by it, once, in place of a secret: what tq-token invite has written."),
    OptionRow("advertise", "HOST", "Host name that other nodes and clients use. [default: the host bound]"),
    OptionRow("http-name", "NAME",
              "Another host name that clients use; may be given several times. Requests for other names are refused.",
              many=True),
    OptionRow("data-dir", "DIR", "Everything that the node keeps. [default: ./data/<node-id>]"),
    OptionRow("handlers", "MODULE",
              "Dotted module(s) with task handlers, or simulated. "
              "[default: simulated, on loopback, where no node ever had others]", many=True),
    OptionRow("no-handler-after", "TIME",
              "Fail a task that has waited so long for a handler: never, 1h, 90s.", "never"),
    OptionRow("concurrency", "N",
              "How many tasks run at once; 0: it keeps tasks and runs none.", str(limits.CONCURRENCY_DEFAULT)),
    OptionRow("worker-memory", "SIZE", "Most memory of one worker process. [default: no bound]"),
    OptionRow("worker-env", "NAME", "Variables for worker processes. [default: all but the node's own]", many=True),
    OptionRow("echo-handlers", "", "Write what handlers print and log to the node's log too."),
    OptionRow("replication-factor", "N",
              "Copies of each task; fixed at birth.", str(limits.REPLICATION_FACTOR_DEFAULT)),
    OptionRow("partitions", "N", "Number of partitions; fixed at birth.", str(limits.PARTITIONS_DEFAULT)),
    OptionRow("voters", "N", "Nodes that elect the leader: 1, 3 or 5.", "3"),
    OptionRow("config", "FILE", "TOML file with the same names; command line > environment > file > default."),
    OptionRow("secret-file", "FILE", "Shared secret of the peers."),
    OptionRow("tokens-file", "FILE", "Access tokens that count at this node, beside those of the cluster's table."),
    OptionRow("tokens", "", "Ask for a token from the first moment on; for a node that joins a cluster that has some."),
    OptionRow("redact", "NAME", "Fields of payloads and results that lists don't show; patterns such as *token*.", many=True),
    OptionRow("audit-log", "FILE", "A line of JSON for each change and each refusal. [default: none]"),
    OptionRow("audit-size", "SIZE", "At which size that file is put aside and a new one begun.", "64MiB"),
    OptionRow("audit-kept", "N",
              "How many files put aside stay; with one more the oldest goes.", str(limits.AUDIT_FILES_KEPT)),
    OptionRow("http-cert", "FILE", "Certificate of this node towards clients, who then use https://."),
    OptionRow("http-key", "FILE", "Private key of that certificate."),
    OptionRow("http-client-ca", "FILE", "Authority whose certificates clients must show. [default: they show none]"),
    OptionRow("ca", "FILE", "Authority of the nodes that this one asks by https://. [default: those of the system]"),
    OptionRow("peer-cert", "FILE", "Certificate of this node towards its peers."),
    OptionRow("peer-key", "FILE", "Private key of that certificate."),
    OptionRow("peer-ca", "FILE", "Authority that signed the certificates of the peers."),
    OptionRow("peer-crl", "FILE", "List of certificates that the authority has revoked."),
    OptionRow("retention", "TIME", "How long a task that has ended is kept: 24h, 90m, 30s.", "24h"),
    OptionRow("dedupe-window", "TIME", "How long after that its id is remembered.", "24h"),
    OptionRow("stop-timeout", "TIME",
              "How long a running handler may go on after SIGTERM.", str(limits.STOP_TIMEOUT_S)),
    OptionRow("max-body", "SIZE", "Largest HTTP body.", "16MiB"),
    OptionRow("max-payload", "SIZE", "Largest payload of one task.", "1MiB"),
    OptionRow("min-free-disk", "SIZE", "Below it new work is refused.", "256MiB"),
    OptionRow("snapshot-dir", "DIR",
              "Where snapshots go, each node's into a folder of its name. [default: the data directory]"),
    OptionRow("snapshots-kept", "N",
              "How many snapshots stay; with one more the oldest goes.", str(limits.SNAPSHOTS_KEPT)),
    OptionRow("copy-rate", "SIZE", "Most a second for copies that are being made or catch up; 0: no bound.", "0"),
    OptionRow("metrics-labels", "N",
              "Queues, and types, that have metrics of their own; the rest is other.", str(limits.METRICS_LABELS)),
    OptionRow("open-metrics", "", "Serve /metrics to anybody, also where callers need a token."),
    OptionRow("buffered-sends", "", "Send to TCP connections from the reactor, a turn after what was written."),
    OptionRow("insecure-http", "", "Allow an HTTP address that is not loopback without credentials."),
    OptionRow("insecure-peers", "", "Allow a peer address that is not loopback without credentials."),
    OptionRow("insecure", "", "Both --insecure-http and --insecure-peers."),
    OptionRow("readmit", "", "Set a failed store aside and join as a new node; needs --join."),
)  # fmt: skip
BY_NAME: Mapping[str, OptionRow] = {option.name: option for option in OPTIONS}
