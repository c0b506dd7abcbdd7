"""Huey on Redis."""

from __future__ import annotations

from bench.peers.base import Drain
from bench.peers.on_redis import WORKERS, OnRedis
from bench.peers.redis_server import ABOUT


class HueyRedis(OnRedis):
    name = "huey"
    requirements = ("huey ~= 3.5", "redis")
    distribution = "huey"
    side = "bench.peers.huey_side"
    processes = 1
    about = (
        f"RedisHuey, blocking reads; {ABOUT}; {WORKERS} workers, as processes or threads; no batches; a task being run is no "
        "longer in its store"
    )
    drains = (Drain("huey", "process"), Drain("huey", "thread", beside=(True,)))
    waiting = "LLEN huey.redis.bench"
    done = "HLEN huey.results.bench"
