"""One round of claiming: for whom, and what there is of it so far."""

from __future__ import annotations

import sys
from collections.abc import Collection

import msgspec

from tq_node.facade import Claim
from tq_node.types import TaskRow


class ClaimRound(msgspec.Struct):
    """One round of claiming, for the worker of ``node``. ``types`` None: any; ``bytes_left``: of payloads.

    ``claims``: what is proposed so far; ``places``: by partition, the last of their entries; ``unfit``: what it met that is not
    for that worker.
    """

    node: str
    is_lent: bool = False
    types: Collection[str] | None = None
    bytes_left: int = sys.maxsize
    claims: list[Claim] = []
    places: dict[int, int] = {}
    unfit: list[TaskRow] = []

    def takes(self, pending: TaskRow) -> bool:
        return self.bytes_left > 0 and (self.types is None or pending.spec.type in self.types)
