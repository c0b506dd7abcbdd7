"""Instructions that a submit, a commit, a row and a request take, counted by callgrind: the same figures on a busy machine.

``python -m bench.instructions`` runs each harness of ``harness`` in a process of its own under ``valgrind --tool=callgrind``,
with hashes, environment and addresses fixed, and prints a table.
"""
