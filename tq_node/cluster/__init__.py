"""PURE. What the metadata log drives: who is a member, who holds which partition, and what the
leader should propose next."""
