"""Dramatiq on Redis, with its results middleware."""

from __future__ import annotations

from bench.peers.base import Drain
from bench.peers.on_redis import COUNT_RESULTS, WORKERS, OnRedis
from bench.peers.redis_server import ABOUT


class DramatiqRedis(OnRedis):
    name = "dramatiq"
    requirements = ("dramatiq[redis] ~= 2.0",)
    distribution = "dramatiq"
    side = "bench.peers.dramatiq_side"
    about = f"{ABOUT}; {WORKERS} processes with 8 threads each, results kept; no batches"
    drains = (Drain("dramatiq", "threads", beside=(False, True)),)
    waiting = "LLEN dramatiq:bench"
    done = COUNT_RESULTS
