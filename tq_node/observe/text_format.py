"""Prometheus's text formats, in blocks of a few lines; what precedes a number is made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tq_node.observe.metrics import Histogram

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def labelled(names: Sequence[str], values: Sequence[str]) -> str:
    """The labels of a sample, ``a="1",b="2"``, escaped."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True))


def family(name: str, kind: str, text: str, *, is_openmetrics: bool) -> str:
    """The ``HELP`` and ``TYPE`` lines of a metric; a counter's ``name`` is without ``_total``."""
    if kind == "counter" and not is_openmetrics:
        name += "_total"
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def head(name: str, labels: str = "") -> str:
    """Name and labels of a sample, up to its number."""
    return f"{name}{{{labels}}} " if labels else f"{name} "


def histogram_block(name: str, labels: str, histogram: Histogram) -> str:
    """All samples of a histogram."""
    heads = histogram.heads
    if not heads:
        comma = "," if labels else ""
        bounds = [*map(repr, histogram.bounds), "+Inf"]
        heads = histogram.heads = (
            *(f'{name}_bucket{{{labels}{comma}le="{bound}"}} ' for bound in bounds),
            head(f"{name}_count", labels),
            head(f"{name}_sum", labels),
        )
    below = 0
    lines = []
    for text, count in zip(heads, histogram.counts, strict=False):
        below += count
        lines.append(f"{text}{below}\n")
    lines.append(f"{heads[-2]}{below}\n{heads[-1]}{histogram.total!r}\n")
    return "".join(lines)


def number_block(name: str, label: str, values: Iterable[tuple[str, float]]) -> str:
    """One sample for each value of one label."""
    return "".join(f"{head(name, labelled((label,), (value,)))}{number!r}\n" for value, number in values)
