"""Makes a node of today one that knows no more feature levels than an earlier release: beside those it writes what they can read.

Named with ``--handlers``, so that a node loads it before it says anything; ``TEST_FEATURE_LEVEL_MAX`` says which level.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tq_node import Context, task

for name in ("tq_node.node.member", "tq_node.cluster.controller"):
    module: Any = sys.modules.get(name)
    if module is not None:  # worker processes have neither
        module.FEATURE_LEVEL_MAX = int(os.environ["TEST_FEATURE_LEVEL_MAX"])


@task("of the older level")
async def nothing(payload: Any, context: Context) -> None:
    """A module of handlers has one."""
