"""Running tasks: handlers, the worker processes they run in, and the service that claims, runs and finishes.

Empty on purpose: worker processes import single modules of this package and must not pull in Twisted by it.
"""
