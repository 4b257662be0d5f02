"""Pools of connections to a sentinels' master, which notice that it is another one, sync and async side by side.

redis-py asks the sentinels when it opens a connection. That is too rarely for a cache:

    1 the sentinels promote a replica   2 the old master lives, and stays a master for ten seconds more
    3 W: a new connection, to the new master: begin, COMMIT, end   4 R: a connection of before: the old master, a hit

So these pools ask once a second, with the call that happens to come then: 4 is possible for a second. Where the
sentinels do not answer, that is asked more rarely, since it costs the call up to its time-out.
"""

from __future__ import annotations

import time
from typing import Any

import redis.asyncio.sentinel
import redis.sentinel
from redis.exceptions import RedisError

LOOK = 1.0  # seconds between two questions
LOOK_IN_VAIN = 10.0  # seconds to the next one when no sentinel has answered

_TROUBLE = (RedisError, OSError, TimeoutError)


class MasterPool(redis.sentinel.SentinelConnectionPool):
    """Connections to a sentinels' master. A change closes those that are idle; the others, when they are given back."""

    _next_look = 0.0  # seconds of the monotonic clock; two threads may both find that it is time

    def get_connection(self, *args: Any, **options: Any) -> Any:
        """Return a connection to the master of at most a second ago."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK
            try:
                self.get_master_address()  # type: ignore[no-untyped-call]
            except _TROUBLE:
                self._next_look = time.monotonic() + LOOK_IN_VAIN
        return super().get_connection(*args, **options)


class AsyncMasterPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """Connections to a sentinels' master. A change closes those that are idle, the others when they are next wanted."""

    _next_look = 0.0  # seconds of the monotonic clock

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """Return a connection to the master of at most a second ago."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK
            try:
                await self.get_master_address()  # type: ignore[no-untyped-call]
            except _TROUBLE:
                self._next_look = time.monotonic() + LOOK_IN_VAIN
        connection: Any = await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        if (connection.host, connection.port) != self.master_address:
            try:
                await connection.disconnect()
                await connection.connect()
            except BaseException:
                await self.release(connection)
                raise
        return connection
