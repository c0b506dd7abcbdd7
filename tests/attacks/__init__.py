"""Attacks on real nodes: what one client can do to a node, measured by the node's own word and by a probe beside it.

``python -m tests.attacks [NAME…]`` runs them by hand and prints a row for each. An attack is a function marked ``@attack`` in a
module of this package; all modules are looked through.
"""
