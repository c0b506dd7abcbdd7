"""PURE. The data plane of one partition: its log, its tasks' lifecycle, what is durable and what is
committed."""
