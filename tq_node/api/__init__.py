"""The HTTP side of a node: parse, call ``facade.TaskQueue``, render. Knows nothing of stores, logs or peers."""

from tq_node.api.assembly import make_site
from tq_node.api.settings import ApiSettings

__all__ = ["ApiSettings", "make_site"]
