"""Where cached rows live. A transport answers effects; it knows the protocol's states and none of its decisions.

A sync transport has `execute`, an async one has `aexecute`; `MemoryTransport` never waits and has `execute` only, and
serves both kinds of sessions because `blocking` is False.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from .._plan import Effect
from .memory import MemoryTransport
from .redis import RedisAsyncTransport, RedisSyncTransport

__all__ = ["AsyncTransport", "MemoryTransport", "RedisAsyncTransport", "RedisSyncTransport", "SyncTransport"]

R = TypeVar("R")


@runtime_checkable
class SyncTransport(Protocol):
    """Answers effects for `Session`. Raises TransportError and nothing else, within a bounded time."""

    blocking: bool

    def execute(self, effect: Effect[R]) -> R:
        """Return the effect's reply."""
        ...

    def close(self) -> None:
        """Release what the transport itself opened."""
        ...


@runtime_checkable
class AsyncTransport(Protocol):
    """Answers effects for `AsyncSession`. Raises TransportError and nothing else, within a bounded time."""

    async def aexecute(self, effect: Effect[R]) -> R:
        """Return the effect's reply."""
        ...

    async def aclose(self) -> None:
        """Release what the transport itself opened."""
        ...
