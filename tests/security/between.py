"""A transport with somebody in between, who may read and change what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlmodel_cache import MemoryTransport
from sqlmodel_cache._effects import Fill, Hit, Lease, Lookup, Together


class Between:
    """Keeps what is stored, and gives back what `change` makes of it."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = MemoryTransport() if inner is None else inner
        self.blocking = self.inner.blocking
        self.fills: list[Fill] = []
        self.change: Callable[[Any, bytes], bytes] = lambda effect, payload: payload

    def execute(self, effect: Any) -> Any:
        """Return the reply, changed where it carries a payload."""
        return self._seen(effect, self.inner.execute(effect))

    def _seen(self, effect: Any, reply: Any) -> Any:
        if type(effect) is Together:
            return tuple(map(self._seen, effect.effects, reply))
        if type(effect) is Fill:
            self.fills.append(effect)
        if type(effect) is Lookup and reply is not None:
            return self.change(effect, reply)
        if type(effect) is Lease and type(reply) is Hit:
            return Hit(self.change(effect, reply.payload))
        return reply

    def close(self) -> None:
        """Nothing to do."""
