"""RQ on Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.peers.base import Drain, Rate
from bench.peers.on_redis import WORKERS, OnRedis
from bench.peers.redis_server import ABOUT, Redis, redis


class RqRedis(OnRedis):
    name = "rq"
    requirements = ("rq ~= 3.0",)
    distribution = "rq"
    side = "bench.peers.rq_side"
    about = (
        f"{ABOUT}; {WORKERS} SimpleWorkers, which run tasks in their own process; "
        '"rq (fork)" are its default workers, which fork for each task'
    )
    drains = (Drain("rq", "simple"), Drain("rq (fork)", "forking", is_slow=True))
    waiting = "LLEN rq:queue:bench"
    done = "ZCARD rq:finished:bench"

    def batches(self, fresh: Callable[[], Path], sizes: Sequence[int], seconds: float) -> list[tuple[int, Rate]]:
        shown = []
        for size in sizes:
            with redis(fresh()) as server:
                shown.append((size, self.produce(server, "batch", size, size=size, seconds=seconds, count=0)))
        return shown

    def fill(self, server: Redis, count: int) -> None:
        self.produce(server, "batch", count, size=count, seconds=0.0, count=1)
