"""What a node reports of itself: counts for Prometheus, log lines with an event name, delays of the reactor.

``Metrics`` is handed to every room that counts; ``Exposition`` renders it when a scraper asks. ``EventLog``
writes log lines. ``LoopMonitor`` measures the reactor.

- To count takes well below a microsecond, and never fails.
- Labels that callers choose are bounded in number and in length (``LabelTable``).
- Names of metrics and of events are stable.

It imports no other room but the shared values, so that every room may import it.
"""
