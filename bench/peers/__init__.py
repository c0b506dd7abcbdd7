"""Other task queues, measured beside ours. Each is one module here and one script that runs in an environment of its own."""

from __future__ import annotations

from bench.peers.base import Peer
from bench.peers.huey_sqlite import HueySqlite
from bench.peers.rq_redis import RqRedis

PEERS: tuple[type[Peer], ...] = (HueySqlite, RqRedis)
