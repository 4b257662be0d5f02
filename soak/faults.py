"""Faults from outside: writers and followers that are killed or stopped, a Redis that loses everything or stands still.

One at a time, with a gap that is longer than any commit and than the fence of a killed writer: a cache that loses a
fence while its writer dies is a double fault, which the promise excepts.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import redis
from servers import RedisServer

from soak.followers import Followers
from soak.ledger import Ledger

if TYPE_CHECKING:
    from soak.run import Crew

GAP_SECONDS = 2.2
PAUSE_SECONDS = 1.0
FREEZE_SECONDS = 4.0  # of a follower: another has taken over, or everybody waits


class Faults:
    """Injects a fault whenever it is time for one."""

    def __init__(self, crew: Crew, server: RedisServer, ledger: Ledger, seed: int, followers: Followers | None) -> None:
        self.counts: Counter[str] = Counter()
        self._crew = crew
        self._server = server
        self._ledger = ledger
        self._random = random.Random(seed)
        self._due = time.monotonic() + GAP_SECONDS / 2
        self._all: dict[str, Callable[[], None]] = {
            "writers killed": self._kill,
            "Redis flushed": self._flush,
            "Redis restarted empty": self._restart,
            "Redis paused": self._pause,
        }
        if followers is not None:
            self._all |= {
                "followers killed": lambda: followers.kill(self._random),
                "followers frozen": lambda: followers.freeze(self._random, FREEZE_SECONDS),
                "followers restarted": lambda: followers.restart(self._random),
            }
        self._left: list[str] = []

    @property
    def all_injected(self) -> bool:
        """Whether every fault has been injected at least once."""
        return self.counts.keys() == self._all.keys()

    def inject(self) -> None:
        """Inject the next fault if the last is long enough ago. Each has its turn before one comes again."""
        if time.monotonic() < self._due:
            return
        if not self._left:
            self._left = self._random.sample(sorted(self._all), len(self._all))
        name = self._left.pop()
        self._all[name]()
        self.counts[name] += 1
        self._due = time.monotonic() + GAP_SECONDS

    def _kill(self) -> None:
        self._crew.kill_a_writer(self._random)

    def _flush(self) -> None:
        self._ledger.lost_at.value = time.monotonic()
        with redis.Redis.from_url(self._server.url) as client:
            client.flushall()

    def _restart(self) -> None:
        self._server.stop()
        time.sleep(self._random.uniform(0, 0.3))
        self._ledger.lost_at.value = time.monotonic()
        self._server.start()

    def _pause(self) -> None:
        self._server.process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        self._server.process.send_signal(signal.SIGCONT)
