"""The node as a service of twistd: the composition root, which nobody imports.

``build`` makes store, member, queue, workers and HTTP site; ``service`` starts and stops them in
order; ``member`` reads the node's identity and wires the control plane to the network. What is
wrong around the node (ports, directory, options) ends the process with one line before anything
runs; what breaks later, with a code of ``process``. ``signals`` bounds how long an end may take,
``systemd`` tells the supervisor how the node is, ``restore`` makes a new cluster's first node out
of an old cluster's snapshots. Nothing here decides what happens to a task."""
