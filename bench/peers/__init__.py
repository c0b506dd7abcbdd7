"""Other task queues, measured beside ours. Each is one module here and one script that runs in an environment of its own."""

from __future__ import annotations

from bench.peers.base import Peer
from bench.peers.celery_redis import CeleryRedis
from bench.peers.dramatiq_redis import DramatiqRedis
from bench.peers.huey_redis import HueyRedis
from bench.peers.nats_jetstream import NatsJetStream
from bench.peers.rabbitmq_quorum import RabbitQuorum
from bench.peers.rq_redis import RqRedis

PEERS: tuple[type[Peer], ...] = (RabbitQuorum, NatsJetStream, RqRedis, CeleryRedis, DramatiqRedis, HueyRedis)
