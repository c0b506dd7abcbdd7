"""How a node comes to be in a cluster: its identity, founding one, joining one.

Once in each start ``identity`` reads from the store who the node is, then ``found`` makes the first
map, or ``join`` asks members until the node is registered. ``bootstrap_guard`` keeps a newborn
cluster from serving while an older one may expect this node.

What always holds: a node's membership is durable before it registers, and a secret is handed only
to a joiner on the same machine."""
