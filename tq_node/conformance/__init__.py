"""``tq-worker-conformance``: small cases that any server of the worker API is held against.

``cases`` are functions that talk to the server through a ``probe``: ``claiming``, ``leases``,
``ending``, ``refusals``. Each works on a task type and a queue of its own, so that they run beside
one another, and beside the work of a cluster that is in use. Needs nothing but the standard
library."""
