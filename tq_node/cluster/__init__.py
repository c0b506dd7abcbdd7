"""PURE. What the metadata of the cluster decides: so far, which partition a task belongs to."""
