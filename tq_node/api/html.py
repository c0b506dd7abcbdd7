"""HTML pages: one file each, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tq_node.errors import TaskQueueError
from tq_node.facade import NotReadyReason
from tq_node.types import ClusterView

POLICY = b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2329; --soft: #68727c; --line: #dfe3e7; --paper: #fbfbfa; --accent: #0b6e69; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e7ea; --soft: #98a2ac; --line: #30373e; --paper: #15191d; --accent: #5cc4bd; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }}
main {{ max-width: 46rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }}
h1 {{ margin: 0; font-size: 1.5rem; font-weight: 600; }}
h2 {{ margin: 2.5rem 0 .5rem; font-size: 1rem; font-weight: 600; }}
p {{ margin: .35rem 0; }}
.soft {{ color: var(--soft); }}
a {{ color: var(--accent); }}
table {{ width: 100%; border-collapse: collapse; }}
th, td {{ padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; }}
th {{ color: var(--soft); font-weight: 400; }}
code, pre {{ font: .875rem/1.5 ui-monospace, monospace; }}
pre {{ padding: .75rem 1rem; border: 1px solid var(--line); border-radius: .375rem; overflow-x: auto; }}
</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

_CALLS = (
    ("/tasks/stats", "tasks by state"),
    ("/tasks/list?limit=20", "tasks"),
    ("/tasks/dead", "dead letters"),
    ("/cluster", "nodes and leader"),
    ("/cluster/partitions", "partitions"),
    ("/ready", "readiness"),
    ("/metrics", "Prometheus"),
    ("/openapi.json", "description of the API"),
)


def home(node: str, version: str, cluster: ClusterView | None, reasons: Sequence[NotReadyReason]) -> bytes:
    """The page at ``/``: state of the node, nodes of the cluster, links, and how to submit.

    :param cluster: None: the reader has shown no token that lets it see the nodes."""
    state = "ready" if not reasons else "not ready: " + "; ".join(reason.detail for reason in reasons)
    if cluster is None:
        nodes, address = '<p class="soft">Not shown without a token.</p>', "localhost:8080"
    else:
        nodes = _nodes(cluster)
        address = next((one.http for one in cluster.nodes if one.name == node), "localhost:8080")
    base = address if address.startswith("https://") else f"http://{address}"
    calls = "\n".join(
        f'<tr><td><a href="{path}"><code>{path}</code></a></td><td>{text}</td></tr>' for path, text in _CALLS
    )
    body = f"""<h1>{escape(node)}</h1>
<p class="soft">taskqueue {escape(version)}, {escape(state)}</p>
<h2>Cluster</h2>
{nodes}
<h2>Look</h2>
<table>
{calls}</table>
<h2>Submit</h2>
<pre>curl -H 'Content-Type: application/json' \\
  -d '{{"type":"email","payload":"user@example.com"}}' \\
  {escape(base)}/tasks/submit</pre>"""
    return _FRAME.format(title=escape(f"{node}, taskqueue"), body=body).encode("utf-8")


def _nodes(cluster: ClusterView) -> str:
    rows = "\n".join(
        f"<tr><td>{escape(one.name)}{' (leader)' if one.name == cluster.leader else ''}</td>"
        f"<td>{escape(one.status)}</td><td><code>{escape(one.http)}</code></td></tr>"
        for one in cluster.nodes
    )
    return f"""<table><tr><th>node</th><th>status</th><th>address</th></tr>
{rows}</table>"""


def problem(code: str, kinds: Sequence[type[TaskQueueError]]) -> bytes:
    """The page at ``/problems/<code>``: what the code means and what a client may conclude."""
    rows = "\n".join(f"<tr><td>{kind.status}</td><td>{escape(kind.title)}</td></tr>" for kind in dict.fromkeys(kinds))
    if not all(kind.definite for kind in kinds):
        conclusion = "It may have been done. Ask for the task by its id, or send the same again under the same id."
    elif any(kind.retryable for kind in kinds):
        conclusion = "Nothing was done. The same request may succeed later; Retry-After says when to try."
    else:
        conclusion = "Nothing was done, and the same request will not succeed."
    body = f"""<h1><code>{escape(code)}</code></h1>
<p>{conclusion}</p>
<h2>Answers with this code</h2>
<table><tr><th>status</th><th>title</th></tr>
{rows}</table>"""
    return _FRAME.format(title=escape(f"{code}, taskqueue"), body=body).encode("utf-8")
