"""What ours should reach: shown beside the medians, never enforced. Two cores, an ``fdatasync`` of some 100 to 200 µs."""

from __future__ import annotations

GOALS: dict[int, dict[tuple[str, str], float]] = {
    1: {
        ("submit", "32 in flight"): 6_000.0,
        ("batch", "batches of 1,000"): 50_000.0,
        ("drain", "async handlers"): 15_000.0,
        ("drain", "process handlers"): 4_000.0,
        ("pick-up", "async handler, p50"): 5.0,
        ("pick-up", "process handler, p50"): 10.0,
    },
    3: {
        ("submit", "32 in flight"): 9_000.0,
        ("submit", "128 in flight"): 12_000.0,
        ("submit", "one after the other, p50"): 1.0,
        ("submit", "one after the other, p99"): 3.0,
        ("batch", "batches of 100"): 50_000.0,
        ("batch", "batches of 1,000"): 80_000.0,
        ("drain", "async handlers"): 20_000.0,
        ("drain", "process handlers"): 8_000.0,
        ("pick-up", "async handler, p50"): 1.5,
        ("pick-up", "process handler, p50"): 3.0,
        ("status", "32 in flight"): 10_000.0,
    },
}
"""By the number of nodes, then by part and name of a row."""
COST_OF_A_MILLION = 1.3
"""So many times what it costs at 1,000 stored tasks, at most."""
RSS_MIB_OF_A_MILLION = 400.0
START_S_OF_A_MILLION = 10.0
