"""An audit log that writes and reads its files at once, without a thread: what tests look at in virtual time."""

from __future__ import annotations

from pathlib import Path

import msgspec
from twisted.internet.defer import Deferred, succeed

from tq_node.audit import AuditLine, AuditRecord, Page
from tq_node.store.audit_files import AuditFiles

PAGE_BYTES = 100_000


class AuditNow:
    """Real files of one node; ``lines`` are those written so far."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "audit.jsonl"
        self._files = AuditFiles(self.path, "node-1", bytes_max=1_000_000, kept=10)

    def write(self, record: AuditRecord) -> None:
        assert self._files.append([record]) == 1

    def read(self, since: str, place: tuple[int, int] | None, lines_max: int) -> Deferred[Page]:
        return succeed(self._files.page(since, place, lines_max, PAGE_BYTES))

    @property
    def lines(self) -> list[AuditLine]:
        return [msgspec.json.decode(line, type=AuditLine) for line in self.path.read_bytes().splitlines()]

    def close(self) -> None:
        self._files.close()
