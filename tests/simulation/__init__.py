"""Seeded worlds in virtual time, where everything that can break breaks, and checkers that look after every event.

``python -m tests.simulation.run`` runs many seeds, ``python -m tests.simulation.mutations FAMILY`` shows that the checkers notice
a rule that is switched off. A seed says everything: the same seed gives the same trace.
"""
