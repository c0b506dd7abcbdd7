"""Drivers that join the pure cores to clock, store and (later) wire; ``queue`` is the facade's implementation."""
