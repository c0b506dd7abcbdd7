"""How a node comes to be in a cluster: its identity, founding a cluster, joining one, invitations
and secrets.

Used once in a start, in this order: ``identity`` reads who the node is from its store, ``found``
makes the first map or ``join`` asks members until the node is registered. ``bootstrap_guard`` keeps
a newborn cluster from serving while an older one may expect this node; ``invitation`` is what a
joiner learns from a member over HTTP.

What always holds: what a node is to be is durable before it registers, and a secret is handed only
to a joiner on the same machine.
"""
