"""For tests of applications: run a handler as a worker would, without a node.

``run`` calls one handler once, as one attempt, and returns what came of it. ``EagerQueue`` takes
the place of a ``Queue``: what is submitted to it runs at once, in this process, with its retries.
With pytest there is the fixture ``eager_queue``, to which task functions submit."""

from tq_node.testing.attempts import Ran, run
from tq_node.testing.eager import EagerQueue, EagerTask, NoHandler

__all__ = ["EagerQueue", "EagerTask", "NoHandler", "Ran", "run"]
