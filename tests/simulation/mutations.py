"""The mutation tables: rules of the cores, and duties of the drivers, switched off in the real code, to see who notices.

``python -m tests.simulation.mutations FAMILY [--only WORD]`` prints, from several first seeds, how many seeds it took to notice
each mutation; ``-`` means that none of them did. What was not noticed is listed at the end. A rule may be there more than once:
(swarm) is a world of random faults, (script) a scenario, (hand) a schedule of ``handmade``.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from tests.simulation.families import FAMILIES


class Mutation(NamedTuple):
    """``rule`` names its source; ``patches``: (owner, attribute, value) each; ``world`` runs one seed."""

    name: str
    rule: str
    patches: tuple[tuple[Any, str, Any], ...]
    world: Callable[[int], None]


def always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


@contextmanager
def switched_off(mutation: Mutation) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, value in mutation.patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def seeds_to_catch(mutation: Mutation, base: int, seeds_max: int) -> int | None:
    """How many seeds it took, counting from 1; None if none of them noticed."""
    with switched_off(mutation):
        for count in range(1, seeds_max + 1):
            try:
                mutation.world(base + count - 1)
            except Exception:  # a broken rule may show as any error
                return count
    return None


def table_of(family: str) -> Any:
    """The module with ``MUTATIONS``, ``RARE``, ``EXPLAINED``, ``BASES`` and ``SEEDS_DEFAULT``."""
    return importlib.import_module(f"tests.simulation.{family}.mutations")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutations", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--seeds", type=int, help="from each base at most")
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--base", type=int, action="append", help="a first seed, instead of the usual ones")
    options = parser.parse_args(arguments)
    table = table_of(options.family)
    bases, seeds = tuple(options.base or table.BASES), options.seeds or table.SEEDS_DEFAULT
    began_s = time.monotonic()
    missed = []
    print(f"{'switched off':<58} {'of':<26} seeds to notice, from {bases}")
    for mutation in table.MUTATIONS:
        if options.only not in mutation.name:
            continue
        counts = [seeds_to_catch(mutation, base, seeds) for base in bases]
        print(f"{mutation.name:<58} {mutation.rule:<26} {' '.join(f'{c or chr(45):>4}' for c in counts)}", flush=True)
        if None in counts:
            missed.append((mutation.name, "never" if not any(counts) else "not from every base"))
    for name, how_often in missed:
        why = table.EXPLAINED.get(name, "rare" if name in table.RARE else "")
        print(f"caught {how_often} within {seeds} seeds: {name}{why and ': '}{why}")
    print(f"{time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
