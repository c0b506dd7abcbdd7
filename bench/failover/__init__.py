"""``python -m bench.failover`` hurts real clusters of three nodes, and measures for how long no submit is acknowledged.

What it prints is ``docs/reference/failover.md``. It uses the clusters of ``tests``; ``tests/cluster/test_failover.py`` uses it.
"""
