"""A model of the ``Store`` in memory: no thread, no clock, no randomness. Simulations use it in
place of SQLite.
"""
