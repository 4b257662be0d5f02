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
from typing import TYPE_CHECKING, Any

import redis
from servers import RedisCluster, RedisSentinel, RedisServer
from waiting import until

from soak.followers import Followers
from soak.ledger import Ledger
from sqlmodel_cache.transport._cluster import slot_of

if TYPE_CHECKING:
    from soak.run import Crew

GAP_SECONDS = 2.2
PAUSE_SECONDS = 1.0
FREEZE_SECONDS = 4.0  # of a follower: another has taken over, or everybody waits


class Faults:
    """Injects a fault whenever it is time for one."""

    def __init__(
        self,
        crew: Crew,
        server: RedisServer | RedisCluster | RedisSentinel,
        ledger: Ledger,
        seed: int,
        followers: Followers | None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.moments: list[tuple[str, float, float]] = []  # from when to when, in seconds of CLOCK_MONOTONIC
        self._crew = crew
        self._ledger = ledger
        self._random = random.Random(seed)
        self._due = time.monotonic() + GAP_SECONDS / 2
        self._all: dict[str, Callable[[], None]] = {"writers killed": self._kill, **self._faults_of(server)}
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
        began = time.monotonic()
        self._all[name]()
        self.moments.append((name, began, time.monotonic()))
        self.counts[name] += 1
        self._due = time.monotonic() + GAP_SECONDS

    def _kill(self) -> None:
        self._crew.kill_a_writer(self._random)

    def _faults_of(self, server: Any) -> dict[str, Callable[[], None]]:
        def on(fault: Callable[[Any], None]) -> Callable[[], None]:
            return lambda: fault(server)

        if isinstance(server, RedisCluster):
            return {
                "slots moved": on(self._move_slots),
                "failed over": on(self._fail_over),
                "primaries killed": on(self._kill_primary),
            }
        if isinstance(server, RedisSentinel):
            return {"masters killed": on(self._kill_master)}
        return {
            "Redis flushed": on(self._flush),
            "Redis restarted empty": on(self._restart),
            "Redis paused": on(self._pause),
        }

    def _flush(self, server: RedisServer) -> None:
        self._ledger.lost_at.value = time.monotonic()
        with redis.Redis.from_url(server.url) as client:
            client.flushall()

    def _restart(self, server: RedisServer) -> None:
        server.stop()
        time.sleep(self._random.uniform(0, 0.3))
        self._ledger.lost_at.value = time.monotonic()
        server.start()

    def _pause(self, server: RedisServer) -> None:
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        server.process.send_signal(signal.SIGCONT)

    def _move_slots(self, cluster: RedisCluster) -> None:
        """Move the slots that have keys, some of them slowly, each to another node."""
        for source in cluster.primaries:
            slots = {slot_of((key,)) for key in source.say("KEYS", "*") if "{" in key}
            for slot in self._random.sample(sorted(slots), min(4, len(slots))):
                target = self._random.choice([node for node in cluster.primaries if node is not source])
                cluster.begin_move(slot, target)
                time.sleep(self._random.uniform(0, 0.2))
                cluster.move_keys(slot, target, *source.say("CLUSTER", "GETKEYSINSLOT", slot, 3))
                time.sleep(self._random.uniform(0, 0.2))
                cluster.move_keys(slot, target)
                cluster.end_move(slot, target)

    def _fail_over(self, cluster: RedisCluster) -> None:
        cluster.fail_over(self._random.choice(cluster.primaries))
        cluster.settle()

    def _kill_primary(self, cluster: RedisCluster) -> None:
        primary = self._random.choice(cluster.primaries)
        primary.stop()
        self._ledger.lost_at.value = time.monotonic()
        cluster.settle_after(primary)
        self._ledger.lost_at.value = time.monotonic()

    def _kill_master(self, sentinel: RedisSentinel) -> None:
        master, replica = sentinel.master(), sentinel.replica()
        master.stop()
        self._ledger.lost_at.value = time.monotonic()
        until(lambda: sentinel.has_agreed_on(replica))
        self._ledger.lost_at.value = time.monotonic()
        master.start()
        sentinel.demote()
