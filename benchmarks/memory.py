"""The memory of this process, in bytes."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def cost(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of some work, and the most memory that it held beyond what was held before."""
    before, start = resident(), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - start, "peak_bytes": largest() - before}


def resident() -> int:
    return _status("VmRSS")


def largest() -> int:
    """So far."""
    return _status("VmHWM")


def _status(name: str) -> int:
    # Linux hands getrusage's maximum on to programs that a larger process starts, so that it hides what they take
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
