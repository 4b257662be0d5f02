"""A follower that stops for good when it reaches a point, to be killed there: POINT DATABASE_URL REDIS_URL.

At NOWHERE it goes on following. On SIGUSR1 it prints how many tables it has invalidated as a whole.

It prints "leads" when it has caught up with the past, and the point when it has reached it. Before `slot dropped` and
the points that follow it, somebody else has dropped the slot.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import follow.maria
import follow.tables  # noqa: F401  all that the test has, too: the same tables are followed
import models  # noqa: F401
import redis

from sqlmodel_cache import RedisSyncTransport, SQLModelCache
from sqlmodel_cache.follow import Follower, _follower

NOWHERE = "nowhere"
POINTS = {
    "changes read": (Follower, "_invalidate", "before"),
    "partly invalidated": (Follower, "_deliver", "after"),
    "all invalidated": (None, "confirm", "before"),  # of the source, whichever it is
    "confirmed": (None, "confirm", "after"),
}


def main(point: str, database_url: str, redis_url: str) -> None:
    """Follow until the point is reached."""
    transport = RedisSyncTransport(redis.Redis.from_url(redis_url), timeout=20, commit_timeout=20)
    SQLModelCache.configure(transport)
    follower = SQLModelCache.follower(database_url)
    _follower.MAX_KEYS = 1
    signal.signal(signal.SIGUSR1, lambda *_: print(f"tables {follower.stats.tables}", flush=True))
    _tell_when_it_leads(type(follower.source))
    if point != NOWHERE:
        _stop_at(point, follower)
    follower.run()


def _stop_at(point: str, follower: Follower) -> None:
    chosen, name, when = POINTS[point]
    owner: Any = chosen or type(follower.source)
    original: Callable[..., Any] = getattr(owner, name)

    def reach(self: Any, *arguments: Any) -> Any:
        if when == "after":
            original(self, *arguments)
        if follower.stats.leading and arms(arguments[0]):
            print(point, flush=True)
            while True:
                signal.pause()
        return None if when == "after" else original(self, *arguments)

    def arms(argument: Any) -> bool:
        """Whether this is about a row, and not about what was stale at the beginning."""
        return bool(getattr(argument, "rows", ()) or getattr(argument, "changes", 0))

    setattr(owner, name, reach)


def _tell_when_it_leads(source: Any) -> None:
    watch = source.watch

    def watched(self: Any) -> Any:
        batch = watch(self)
        if batch is None:
            print("leads", flush=True)
        return batch

    source.watch = watched


if __name__ == "__main__":
    main(*sys.argv[1:])
