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
        ("submit", "32 in flight, CPU"): 150.0,
        ("submit", "128 in flight, CPU"): 95.0,
        ("drain", "async handlers"): 22_000.0,
        ("drain", "process handlers"): 14_000.0,
        ("pick-up", "async handler, p50"): 1.2,
        ("pick-up", "process handler, p50"): 1.2,
        ("status", "32 in flight"): 10_000.0,
    },
}
"""Goals by number of nodes, part and name of a row."""
RATIOS: dict[int, dict[tuple[str, str, str], float]] = {
    1: {},
    3: {
        ("submit", "32 in flight", "rabbitmq"): 1.2,
        ("submit", "32 in flight", "nats"): 1.0,
        ("submit", "128 in flight", "rabbitmq"): 1.4,
        ("submit", "128 in flight", "nats"): 1.0,
        ("submit", "one after the other, p50", "rabbitmq"): 1 / 1.2,
        ("submit", "one after the other, p99", "rabbitmq"): 1 / 1.5,
        ("batch", "batches of 100", "rabbitmq"): 1.5,
        ("batch", "batches of 1,000", "rabbitmq"): 1.5,
        ("drain", "async handlers", "dramatiq"): 5.0,
        ("drain", "process handlers", "dramatiq"): 3.5,
    },
}
"""So many times better than another system, at least; below 1: that many times worse, at most."""
COST_OF_A_MILLION = 1.3
"""Bound of the cost with a million stored tasks, as a multiple of that with 1,000."""
RSS_MIB_OF_A_MILLION = 400.0
START_S_OF_A_MILLION = 10.0
