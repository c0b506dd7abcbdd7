"""What was measured: samples, and their medians and ranges."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "taskqueue"


@dataclass(frozen=True)
class Kind:
    """What is measured: one row of the report for each system."""

    part: str
    what: str
    unit: str
    more_is_better: bool = True


@dataclass
class Row:
    """All samples of one system."""

    kind: Kind
    system: str
    goal: float | None = None
    """Goal of ours, met where the median is at least (``more_is_better``) or at most that."""
    values: list[float] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def meets_goal(self) -> bool | None:
        if self.goal is None:
            return None
        return self.median >= self.goal if self.kind.more_is_better else self.median <= self.goal


class Book:
    """Collects samples, in the order in which their rows first came up."""

    def __init__(
        self,
        goals: Mapping[tuple[str, str], float] | None = None,
        ratios: Mapping[tuple[str, str, str], float] | None = None,
    ) -> None:
        self._goals = dict(goals or {})
        self._ratios = dict(ratios or {})
        self._rows: dict[tuple[Kind, str], Row] = {}
        self.probe_us = 0.0
        """The disk's fdatasync, measured just before what is added next."""
        self.notes: list[str] = []

    def add(self, kind: Kind, system: str, value: float, **details: Any) -> None:
        goal = self._goals.get((kind.part, kind.what)) if system == OURS else None
        row = self._rows.setdefault((kind, system), Row(kind, system, goal))
        row.values.append(value)
        row.details.append({**details, "fdatasync_us": round(self.probe_us)})

    def add_goal(self, kind: Kind, goal: float) -> None:
        """Set a goal of a row whose name is known only when it is measured."""
        self._goals[kind.part, kind.what] = goal

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def kinds(self, part: str) -> list[Kind]:
        return list(dict.fromkeys(kind for kind, _ in self._rows if kind.part == part))

    def rows(self, kind: Kind) -> list[Row]:
        """The rows of a kind, ours first."""
        rows = [row for (of, _), row in self._rows.items() if of == kind]
        return sorted(rows, key=lambda row: row.system != OURS)

    def parts(self) -> list[str]:
        return list(dict.fromkeys(kind.part for kind, _ in self._rows))

    def ratio(self, row: Row) -> float | None:
        """How many times better ours is than this row's system."""
        ours = self._rows.get((row.kind, OURS))
        if ours is None or row.system == OURS or not row.median or not ours.median:
            return None
        return ours.median / row.median if row.kind.more_is_better else row.median / ours.median

    def ratio_goal(self, row: Row) -> float | None:
        """How many times better than this row's system ours should be."""
        return self._ratios.get((row.kind.part, row.kind.what, row.system))

    def meets_goal(self, row: Row) -> bool | None:
        """Whether ours reaches its goal; by another system's row: is as many times better as wanted.

        None where there is no goal.
        """
        ratio, wanted = self.ratio(row), self.ratio_goal(row)
        return row.meets_goal if ratio is None or wanted is None else ratio >= wanted

    def saw_another_disk(self, row: Row) -> bool:
        """Whether the disk was more than twice as fast or slow when this row's system was measured as when ours was."""
        ours = self._rows.get((row.kind, OURS))
        if ours is None:
            return False
        here, there = (statistics.median(one["fdatasync_us"] for one in of.details) for of in (row, ours))
        return bool(max(here, there) > 2 * min(here, there))

    def as_json(self) -> dict[str, Any]:
        rows = []
        for row in self._rows.values():
            entry = {**asdict(row.kind), "system": row.system, "values": row.values, "median": row.median,
                     "low": min(row.values), "high": max(row.values), "details": row.details}  # fmt: skip
            if (ratio := self.ratio(row)) is not None:
                entry["ours_is_better_by"] = ratio
            if (meets := self.meets_goal(row)) is not None:
                entry |= {"goal": self.ratio_goal(row) or row.goal, "meets_goal": meets}
            rows.append(entry)
        return {"rows": rows, "notes": self.notes}
