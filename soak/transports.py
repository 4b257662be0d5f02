"""The transports of the soak: the library's with delays in the worst places, and a naive cache that must be caught."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from soak.clients import client
from sqlmodel_cache import RedisAsyncTransport, RedisSyncTransport, TransportError
from sqlmodel_cache._effects import End, Fill, Granted, Lease, Lookup
from sqlmodel_cache._plan import Effect

NOBODY = Granted(b"\0" * 16, b"\0" * 16)  # the lease of a cache that has none


def delay() -> float:
    """Return how long to wait, in seconds: mostly not at all, sometimes longer than a commit."""
    chance = random.random()
    if chance < 0.75:
        return 0.0
    return random.uniform(0.001, 0.04) if chance < 0.98 else random.uniform(0.04, 0.3)


def is_delayed(effect: Effect[Any]) -> bool:
    """Return whether the effect is the one that a reader or a writer would rather not have late."""
    return isinstance(effect, Fill | End)


def delay_commits(engine: Engine) -> None:
    """Make COMMIT slow, before it is sent and after it has taken effect."""
    dialect: Any = engine.dialect
    original = dialect.do_commit

    def do_commit(connection: Any) -> None:
        _wait(delay())
        original(connection)
        _wait(delay())

    dialect.do_commit = do_commit


def _wait(seconds: float) -> None:
    if seconds and in_greenlet():
        await_only(asyncio.sleep(seconds))
    elif seconds:
        time.sleep(seconds)


class SlowSyncTransport(RedisSyncTransport):
    """The library's own, with delays before fills and releases."""

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the reply, perhaps late."""
        if is_delayed(effect):
            time.sleep(delay())
        return super().execute(effect)


class SlowAsyncTransport(RedisAsyncTransport):
    """The library's own, with delays before fills and releases."""

    async def aexecute(self, effect: Effect[Any]) -> Any:
        """Return the reply, perhaps late."""
        if is_delayed(effect):
            await asyncio.sleep(delay())
        return await super().aexecute(effect)


class NaiveSyncTransport(RedisSyncTransport):
    """Delete after commit, as caches without leases and fences do."""

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the reply, perhaps late."""
        if is_delayed(effect):
            time.sleep(delay())
        try:
            return self._naively(effect)
        except (RedisError, OSError) as error:
            raise TransportError(str(error)) from error

    def _naively(self, effect: Effect[Any]) -> Any:
        match effect:
            case Lookup(entry):
                return self.client.get(entry.row)
            case Lease():
                return NOBODY
            case Fill(entry, _, _, payload, ttl_ms):
                return bool(self.client.set(entry.row, payload, px=ttl_ms))
            case End(keys):
                gone = {*keys.rows, *(key for table in keys.tables for key in self.client.scan_iter(f"{table}:*"))}
                return self.client.delete(*gone) if gone else None
        return None  # before the commit there is nothing to do


class NaiveAsyncTransport(RedisAsyncTransport):
    """Delete after commit, as caches without leases and fences do."""

    async def aexecute(self, effect: Effect[Any]) -> Any:
        """Return the reply, perhaps late."""
        if is_delayed(effect):
            await asyncio.sleep(delay())
        try:
            return await self._naively(effect)
        except (RedisError, OSError) as error:
            raise TransportError(str(error)) from error

    async def _naively(self, effect: Effect[Any]) -> Any:
        match effect:
            case Lookup(entry):
                return await self.client.get(entry.row)
            case Lease():
                return NOBODY
            case Fill(entry, _, _, payload, ttl_ms):
                return bool(await self.client.set(entry.row, payload, px=ttl_ms))
            case End(keys):
                gone = set(keys.rows)
                for table in keys.tables:
                    gone |= {key async for key in self.client.scan_iter(f"{table}:*")}
                return await self.client.delete(*gone) if gone else None
        return None


def transports(mode: str, url: str) -> tuple[RedisSyncTransport, RedisAsyncTransport]:
    """Return both transports of a mode. The async client belongs to the event loop that first uses it."""
    sync, async_ = client(url), client(url, to_async=True)
    if mode == "naive":
        return NaiveSyncTransport(sync), NaiveAsyncTransport(async_)
    return SlowSyncTransport(sync), SlowAsyncTransport(async_)
