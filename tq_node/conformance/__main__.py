"""``python -m tq_node.conformance``: the same as ``tq-worker-conformance``."""

from tq_node.conformance.main import command

command()
