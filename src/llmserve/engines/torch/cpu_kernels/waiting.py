"""For how long threads wait for each other within a step, and how they sleep.

Apart from `barrier.py`, which takes numba: a start that finds compiled kernels imports none.
"""

from __future__ import annotations

import platform
import sys

FUTEX = {"x86_64": 202, "aarch64": 98}
"""The number of Linux's call."""
SPIN_S = 50e-6
PATIENCE_S = 60.0
"""How long a thread waits for the others before it gives the step up."""

FUTEX_NUMBER = FUTEX.get(platform.machine()) if sys.platform == "linux" else None
NAP_S = 50e-6 if FUTEX_NUMBER is None else 0.1
"""The longest sleep: without futexes nobody is roused."""
