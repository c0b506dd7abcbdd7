"""``tq-worker``: the ``work`` room over the worker API, on any machine.

``remote_queue.RemoteQueue`` takes the place of the facade: what ``work.worker.WorkerService``
claims, notes and finishes goes to a node over HTTP, by the client of ``tq_node.client``. ``main``
puts it together; ``status_page`` answers ``/health`` and ``/metrics``; ``watch`` looks for changed
code."""
