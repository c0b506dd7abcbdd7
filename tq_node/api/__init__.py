"""The HTTP API of a node: parse a request, call ``facade.TaskQueue``, render the answer.

``make_site`` builds a Twisted ``Site``; what listens on ports is the composition root's.

- Each group of routes (``tasks``, ``cluster``, ``events``, ``health``, ``workers``) is a class with
  a ``routes`` method. One route table drives routing and the OpenAPI document.
- ``requests`` and ``query`` are the structs that validate input, ``responses`` and ``problems``
  those of answers. Every error is an RFC 9457 problem.
- ``http`` is the server below the routes: connections, limits, and the two ways in.

It never looks at stores, logs or peers: it sees the queue as a Protocol."""

from tq_node.api.assembly import make_site
from tq_node.api.settings import ApiSettings

__all__ = ["ApiSettings", "make_site"]
