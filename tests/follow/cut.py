"""A cache that can be cut off, and one whose fills can be held."""

from __future__ import annotations

import threading
from typing import Any

from follow.conftest import PATIENCE

from sqlmodel_cache import MemoryTransport, TransportError
from sqlmodel_cache._effects import End, Fill


class Cut(MemoryTransport):
    """A cache that does not acknowledge invalidations while it is `cut`: it has not heard of them, either."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = False

    def execute(self, effect: Any) -> Any:
        """Return the effect's reply."""
        if self.cut and isinstance(effect, End):
            raise TransportError("cut off")
        return super().execute(effect)


class Held(MemoryTransport):
    """A cache whose first fill waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.let_go = threading.Event(), threading.Event()

    def execute(self, effect: Any) -> Any:
        """Return the effect's reply."""
        if isinstance(effect, Fill) and not self.arrived.is_set():
            self.arrived.set()
            assert self.let_go.wait(PATIENCE)
        return super().execute(effect)
