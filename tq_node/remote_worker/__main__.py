"""``python -m tq_node.remote_worker``: the same as ``tq-worker``."""

from tq_node.remote_worker.main import command

command()
