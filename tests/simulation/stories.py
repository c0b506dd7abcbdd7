"""How many files one must open to follow a story: the code that a whole cluster runs for it, beyond what it runs when idle.

``python -m tests.simulation.stories [--list]`` runs three nodes in virtual time, without faults, and prints for each story the
functions and files of ``tq_node`` that ran for it and not in an idle minute. HTTP, SQL and worker processes are not in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from twisted.internet.defer import Deferred

from tests.simulation.cluster.faults import Faults
from tests.simulation.cluster.node import SimulatedNode, composition
from tests.simulation.cluster.world import ClusterWorld
from tests.support.world import SECOND_US
from tq_node.facade import Submission

PRODUCT = Path(__file__).resolve().parents[2] / "tq_node"
IDLE_US = 60 * SECOND_US
SETTLE_US = 2 * SECOND_US
"""How long a story goes on after its answer: followers apply what was committed."""


@contextmanager
def ran() -> Iterator[set[CodeType]]:
    """The code of the product that is called within."""
    seen: set[CodeType] = set()
    root = str(PRODUCT)

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code not in seen and frame.f_code.co_filename.startswith(root):
            seen.add(frame.f_code)

    sys.setprofile(called)
    try:
        yield seen
    finally:
        sys.setprofile(None)


class Stories:
    """Tells each story to a fresh world, born and idle."""

    def __init__(self, seed: int) -> None:
        self.world = ClusterWorld(seed, faults=Faults(nodes=3))
        self.world.is_healing = True
        self._own = 0

    def _node(self, *, leads: bool) -> SimulatedNode:
        """A node and whether it is the one that leads the Raft group."""
        return next(node for node in self.world.nodes if node.member.plane.core.is_leader is leads)

    def _submitted(self, submission: Submission) -> None:
        clients = self.world.clients
        if submission.id is not None:
            clients._may_exist(submission)
        clients._submit(self._node(leads=True), submission)
        self.world.time.run_until(self.world.time.now_us + SECOND_US)
        assert not clients.open

    def submit(self) -> None:
        """Its id is made by the node; it is not due yet."""
        self._submitted(Submission(type="email", payload=b"1", delay_us=3_600 * SECOND_US))

    def submit_with_id(self) -> None:
        """Ids of callers hash to any partition, also to those of other nodes."""
        for _ in range(6):
            self._own += 1
            self._submitted(Submission(type="email", payload=b"1", id=f"own-{self._own}", delay_us=3_600 * SECOND_US))

    def status(self) -> None:
        for number in range(6):
            done: Deferred[Any] = self._node(leads=True).queue.get(f"own-{number}", local=False)
            self.world.settled(done.addErrback(lambda _: None))

    def run(self) -> None:
        """A task is submitted, claimed, run and ended."""
        self._submitted(Submission(type="email", payload=b"1"))

    def failover(self) -> None:
        """One node is killed; another takes its partitions up."""
        self._node(leads=True).crash(power=False)

    def tell(self, story: Callable[[Stories], None], settle_us: int) -> set[CodeType]:
        """The code that runs for a story and not in an idle minute before it."""
        with composition(self.world, self.world.small):
            self.world.be_born()
            self.world.time.run_until(self.world.time.now_us + IDLE_US)
            with ran() as idle:
                self.world.time.run_until(self.world.time.now_us + IDLE_US)
            if story is not Stories.failover:
                story(self)  # what is made the first time, like the label of a metric, is not the story
                self.world.time.run_until(self.world.time.now_us + SETTLE_US)
            with ran() as told:
                story(self)
                self.world.time.run_until(self.world.time.now_us + settle_us)
        return told - idle


STORIES = (
    ("submit, id made here", Stories.submit, SETTLE_US),
    ("submit, ids of callers", Stories.submit_with_id, SETTLE_US),
    ("status, strong read", Stories.status, SETTLE_US),
    ("submit, claim, run, finish", Stories.run, SETTLE_US),
    ("failover", Stories.failover, 10 * SECOND_US),
)


def files_of(code: set[CodeType]) -> dict[str, list[str]]:
    """Paths below ``tq_node``, each with the functions that ran."""
    found: dict[str, list[str]] = {}
    for one in code:
        found.setdefault(str(Path(one.co_filename).relative_to(PRODUCT)), []).append(one.co_qualname)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.stories", description="Files that a story passes through."
    )
    parser.add_argument("--list", action="store_true", help="and which, with their functions")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for name, story, settle_us in STORIES:
        files = files_of(Stories(asked.seed).tell(story, settle_us))
        rooms: dict[str, int] = {}
        for path in files:
            room = path.partition("/")[0]
            rooms[room] = rooms.get(room, 0) + 1
        by_room = ", ".join(f"{room} {count}" for room, count in sorted(rooms.items(), key=lambda one: -one[1]))
        print(f"{name:28} {sum(map(len, files.values())):4} functions {len(files):3} files: {by_room}")
        if asked.list:
            for path, names in sorted(files.items()):
                print(f"    {path:40} {', '.join(sorted(names))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
