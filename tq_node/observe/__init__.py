"""What a node says of itself: counts for Prometheus, log lines with an event name, reactor delays.

``Metrics`` is handed to each room that counts; ``Exposition`` renders it for scrapers. ``EventLog``
writes log lines. ``LoopMonitor`` measures the reactor.

- To count takes well below a microsecond, and never fails.
- Labels that callers choose are bounded in number and in length (``LabelTable``).
- Names of metrics and of events are stable.

It imports no other room but the shared values, so that every room may import it."""
