"""How much a process gives way to others when the machine is busy."""

import contextlib
import os
from pathlib import Path


def give_way(niceness: int = 0) -> None:
    """Add `niceness` (0 to 19) to this process's own, and give its session the same.

    Where Linux weighs sessions first (`man 7 sched`, autogroup), niceness alone counts only within a session, and each
    of our processes leads one.
    """
    level = os.nice(niceness)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(level))
