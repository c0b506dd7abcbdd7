"""What a scenario is, and the table of all of them by name. What happens in each: ``kills``, ``links``, ``disks``, ``clocks``,
``operations``, ``overloads``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.chaos.stage import Stage

KINDS = ("noop", "noop", "noop", "work-async", "work-async", "flaky-async", "flaky-async", "work-process")
"""Of the tasks of the load, each as likely."""
RSS_MIB_MAX = 300.0
"""Of any node, at any time. An idle one has some 75."""
DESCRIPTORS_MAX = 300
"""Of any node, at any time, beside the connections of the scenario's own clients."""


def nothing() -> str:
    return ""


@dataclass(frozen=True)
class Scenario:
    """``act`` does the harm and heals it, under load; it returns when healing has begun. What it returns is told with the result.

    ``lacks`` says in words what this system has not and the scenario needs. ``log_allows`` is a pattern of lines that the nodes
    may log as errors here. ``disk_mib``: of each node, 0 for the usual disk.
    """

    name: str
    told: str
    act: Callable[[Stage], str | None]
    nodes: int = 3
    partitions: int = 64
    links: bool = False
    disk_mib: int = 0
    has_faked_clocks: bool = False
    options: tuple[str, ...] = ()
    is_short: bool = False
    lacks: Callable[[], str] = nothing
    log_allows: str = ""
    rss_mib_max: float = RSS_MIB_MAX
    descriptors_max: int = DESCRIPTORS_MAX
    is_big: bool = False
    """So many tasks that they are asked for once only, each of its primary; their copies are compared all the same."""
    load: dict[str, Any] = field(default_factory=dict)
    """Options of ``tests.support.load.Load``; ``clients=0`` where the scenario brings its own."""


SCENARIOS: dict[str, Scenario] = {}
Act = Callable[["Stage"], str | None]


def scenario(name: str, **settings: Any) -> Callable[[Act], Act]:
    """Enter a function into the table; its docstring tells what happens."""

    def enter(act: Act) -> Act:
        assert name not in SCENARIOS, name
        assert act.__doc__, f"{name} must say what happens"
        told = " ".join(act.__doc__.split())
        SCENARIOS[name] = Scenario(name, told, act, **settings)
        return act

    return enter
