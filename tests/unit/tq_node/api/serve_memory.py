"""The API over a ``MemoryQueue`` on a real port, as a process of its own: ``python -m tests.unit.tq_node.api.serve_memory``.

Prints the port. For tests that drive a server from outside, and for measuring the HTTP side alone (``--port 8080 --keep 10000``).
"""

from __future__ import annotations

import argparse
from typing import Any

from tests.support.memory_queue import MemoryQueue
from tests.support.memory_tokens import MemoryTokens
from tq_node.api import ApiSettings, make_site
from tq_node.observe.metrics import Metrics
from tq_node.tokens import Role


def main() -> None:
    from twisted.internet import reactor as untyped

    reactor: Any = untyped
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--keep", type=int, default=100_000)
    options.add_argument("--direct", action="store_true")
    options.add_argument(
        "--with-token", action="store_true", help="print one of an admin behind the port, and ask for it"
    )
    chosen = options.parse_args()
    queue = MemoryQueue(reactor, nodes=("node-1", "node-2", "node-3"), keep=chosen.keep)
    token = MemoryTokens(queue).make(Role.ADMIN) if chosen.with_token else ""
    site = make_site(
        queue,
        ApiSettings(fast_path=chosen.direct),
        Metrics(node="node-1"),
        shutdown=lambda: None,
        reactor=reactor,
    )
    port = reactor.listenTCP(chosen.port, site, interface="127.0.0.1", backlog=511)
    print(port.getHost().port, token, flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
