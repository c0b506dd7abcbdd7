"""Clients of a broker: ``python -m bench.peers.broker_side``, a spec in JSON on stdin, an answer in JSON on stdout."""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

from bench.peers import amqp, nats
from bench.peers.raw import Wrong, produce

_OPENERS: dict[str, Any] = {"amqp": amqp.Channel, "nats": nats.Connection}
_SILENCE_MS = 30_000
_WARM_UP = 5


def main() -> None:
    spec = json.load(sys.stdin)
    try:
        answer = _COMMANDS[spec["command"]](_OPENERS[spec["speaks"]], spec)
    except (Wrong, OSError) as why:
        answer = {"wrong": str(why) or type(why).__name__}
    json.dump(answer, sys.stdout)


def submit(opener: Any, spec: dict[str, Any]) -> dict[str, Any]:
    ports = spec["ports"]
    connections = max(spec["clients"], len(ports))
    speakers = [opener(ports[number % len(ports)]) for number in range(connections)]
    for speaker in speakers:
        speaker.confirm()
    return produce(
        speakers, spec["size"], in_flight=spec["clients"], seconds=spec["seconds"], count=spec.get("count", 0)
    )


def drain(opener: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """A consumer on each node, in one process: each message is run and acknowledged by itself."""
    consumers = {}
    poll = select.poll()
    for port in spec["ports"]:
        consumer = opener(port)
        consumers[consumer.fileno()] = consumer
        poll.register(consumer.fileno(), select.POLLIN)
    done = first = 0
    begun = 0.0
    end = float("inf")
    for consumer in consumers.values():
        consumer.consume(spec["prefetch"])
    while done < spec["count"] and time.monotonic() < end:
        events = poll.poll(_SILENCE_MS)
        if not events:
            raise Wrong(f"no message for {_SILENCE_MS / 1000:g} s, after {done} of {spec['count']}")
        for number, _ in events:
            count, tag = consumers[number].delivered()
            for _ in range(count):
                run()
            if count:
                consumers[number].acknowledge(tag)
            done += count
        if not first and done:
            first, begun = done, time.monotonic()
            end = begun + spec["seconds"]
    # The broker has seen the acknowledgements once it answers what comes after them.
    for consumer in consumers.values():
        consumer.settle()
    return {"done": done, "rate": (done - first) / max(time.monotonic() - begun, 1e-9)}


def run() -> int:
    """The task: nothing."""
    return 1


def pick_up(opener: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Sent to one node, received from another."""
    publisher, consumer = opener(spec["ports"][0]), opener(spec["ports"][-1])
    publisher.confirm()
    consumer.consume(spec["prefetch"])
    taken = []
    for _ in range(spec["count"] + _WARM_UP):
        time.sleep(spec["gap_s"])  # the gap that leaves the broker idle is part of the measurement
        begun = time.monotonic_ns()
        publisher.publish(1)
        count, tag = consumer.delivered()
        while not count:
            count, tag = consumer.delivered()
        taken.append((time.monotonic_ns() - begun) / 1e6)
        consumer.acknowledge(tag)
        confirmed = 0
        while not confirmed:
            confirmed = publisher.confirmed()
    return {"taken_ms": taken[_WARM_UP:]}


_COMMANDS = {"submit": submit, "drain": drain, "pick-up": pick_up}

if __name__ == "__main__":
    main()
