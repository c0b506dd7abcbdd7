"""The three families of worlds, and what they share: how a promise is checked, and how a seed is run again."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

FAMILIES = ("raft", "replication", "cluster")
"""Cores of consensus; cores of replication over a scripted cluster map; whole nodes with drivers, store and network."""


def world_of(family: str) -> Any:
    """The module with ``simulate(seed, trace_lines=)``."""
    return importlib.import_module(f"tests.simulation.{family}.world")


def replay_hint(family: str, seed: int) -> str:
    return f"replay: python -m tests.simulation.run {family} --replay {seed}"


class Violation(AssertionError):
    """A promise was broken; the text names it."""


def need(condition: object, promise: str, *details: object) -> None:
    if not condition:
        raise Violation(" ".join([promise, *map(str, details)]))


@contextmanager
def replayable(family: str, world: Any) -> Iterator[None]:
    """Add to an error how to run the seed again, and as the last note the world's trace."""
    try:
        yield
    except Exception as broken:
        broken.add_note(f"at {world.time.now_us} us; {replay_hint(family, world.seed)}")
        broken.add_note("\n".join(world.trace.lines))
        raise


class CommonFaults(msgspec.Struct, frozen=True):
    """What goes wrong in a run. ``actions`` may repeat a name: it then comes oftener."""

    actions: tuple[str, ...] = ()
    every_us: int = 1_000_000
    """Mean time between two actions."""
    work_every_us: int = 100_000
    """Mean time between two requests of users."""
    restart_us: tuple[int, int] = (10_000, 4_000_000)
    """How long a crashed node stays away, at least and at most."""


def drawn_actions(source: random.Random, names: tuple[str, ...], odds: float) -> tuple[str, ...]:
    """A random subset, each name once to three times (a swarm)."""
    kinds = [name for name in names if source.random() < odds]
    return tuple(name for name in kinds for _ in range(source.randint(1, 3)))
