"""The one place where a test waits: for what a thread, a process or a server is about to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 90) -> None:
    """Wait for what another thread is about to do; an assertion when it does not."""
    end = time.monotonic() + seconds
    never = threading.Event()
    while not condition():
        assert time.monotonic() < end
        never.wait(0.001)
