"""``python -m bench`` measures one node of this checkout, and other task queues beside it: docs/reference/performance.md.

Needs the standard library and an installed taskqueue. All that it makes lies below ``build/bench``; nothing is asserted on time.
"""
