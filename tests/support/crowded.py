"""How long a call may take of the CPU where other programs share it: the same instructions take more of it there.

Two threads on one core share its caches and units, so CPU time stretches beside load though nothing more is done. The bound of
the product holds as it stands on a machine with a core for each thread that runs.
"""

from __future__ import annotations

import os

STRETCH = 3.0


def stretched(cpu_s: float) -> float:
    """The bound ``cpu_s``, several times as long while more threads run than there are cores."""
    return cpu_s * (STRETCH if os.getloadavg()[0] > (os.cpu_count() or 1) else 1.0)
