"""Celery on Redis, for messages and results."""

from __future__ import annotations

from bench.peers.base import Drain
from bench.peers.on_redis import COUNT_RESULTS, WORKERS, OnRedis
from bench.peers.redis_server import ABOUT


class CeleryRedis(OnRedis):
    name = "celery"
    requirements = ("celery[redis] ~= 5.5",)
    distribution = "celery"
    side = "bench.peers.celery_side"
    processes = 1
    about = f"{ABOUT}; late acknowledgement, prefetch 64; {WORKERS} processes (prefork) or threads; no batches"
    drains = (Drain("celery", "prefork"), Drain("celery", "threads", beside=(True,)))
    waiting = "LLEN bench"
    done = COUNT_RESULTS
