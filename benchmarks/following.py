"""How long others' changes stay in the cache: `python -m benchmarks.following --rate 1000 --seconds 20`.

Another process changes one row per transaction, at a steady rate, and notes when each COMMIT has returned. The time
until Redis has acknowledged the row's invalidation is measured for the follower as it is, which reads the streaming
replication protocol, and for one that polls the same slot through SQL functions.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import redis
from sqlmodel import create_engine

from soak.followed import Followed
from sqlmodel_cache import RedisSyncTransport, SQLModelCache
from sqlmodel_cache._effects import End
from sqlmodel_cache.follow import Follower
from sqlmodel_cache.follow._changes import Batch
from sqlmodel_cache.follow._pgoutput import decode
from sqlmodel_cache.follow._stream import Stream

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.01  # of the follower that polls

WRITERS = 4  # connections; a COMMIT that waits for the disk must not hold up the others

WRITER = """
import sys, threading, time, psycopg
url, rate, count, writers = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
committed = [0.0] * count
began = time.monotonic() + 1
def write(lane):
    with psycopg.connect(url, autocommit=True) as connection:
        for pk in range(lane, count, writers):
            time.sleep(max(0.0, began + pk / rate - time.monotonic()))
            connection.execute("UPDATE soak_followed SET version = version + 1 WHERE id = %s", (pk,))
            committed[pk] = time.monotonic()
threads = [threading.Thread(target=write, args=(lane,)) for lane in range(writers)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(max(committed) - began, *committed)
"""


class Timed:
    """A Redis that notes when each key's invalidation was acknowledged."""

    blocking = True

    def __init__(self, client: redis.Redis) -> None:
        self._transport = RedisSyncTransport(client)
        self.acknowledged: dict[str, float] = {}

    def execute(self, effect: Any) -> Any:
        """Return the effect's reply."""
        reply = self._transport.execute(effect)
        if isinstance(effect, End):
            now = time.monotonic()
            for key in effect.keys.rows:
                self.acknowledged.setdefault(key, now)
        return reply

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()


class Polling(Stream):
    """The same source, read through SQL functions."""

    def _start(self) -> bool:
        return True

    def read(self, seconds: float) -> Batch | None:
        """Return what became stale; None if nothing did."""
        assert self._sql is not None
        query = (
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, 1000, 'proto_version', '1', "
            "'publication_names', %s)"
        )
        with self._trouble():
            rows = self._sql.execute(query, (self._name, self._name)).fetchall()
        for (data,) in rows:
            self._changes.add(decode(bytes(data)))
        if self._changes.empty:
            self._wake.wait(POLL_SECONDS)
            return None
        batch = self._changes.take()
        self._await_visible(batch)
        return batch

    def confirm(self, batch: Batch) -> None:
        """Advance the slot."""
        if isinstance(batch.position, int):
            assert self._sql is not None
            query = "SELECT pg_replication_slot_advance(%s, '0/0'::pg_lsn + %s)"
            self._sql.execute(query, (self._name, batch.position))
        else:
            super().confirm(batch)

    def _say(self, *, now: bool = False) -> None:
        """There is nobody to say it to."""


def measure(database_url: str, redis_url: str, way: type[Stream], rate: float, seconds: float) -> list[float]:
    """Return, for each change, the milliseconds from its commit to its invalidation."""
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    timed = Timed(client)
    SQLModelCache.configure(timed)
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    count = int(rate * seconds)
    with psycopg.connect(database_url, autocommit=True) as connection:
        Followed.metadata.drop_all(engine)
        Followed.metadata.create_all(engine)
        connection.execute("INSERT INTO soak_followed SELECT n, 0 FROM generate_series(0, %s) AS n", (count - 1,))
    follower: Follower = SQLModelCache.follower(engine)
    follower.source.__class__ = way
    follower.source.setup()
    thread = threading.Thread(target=follower.run)
    thread.start()
    while not follower.stats.tables:
        time.sleep(0.01)
    command = [sys.executable, "-c", WRITER, database_url, str(rate), str(count), str(WRITERS)]
    took, *committed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if float(took) > 1.05 * seconds:
        print(f"the writers were too slow: {count / float(took):.0f} changes a second")
    until = time.monotonic() + 60
    while follower.stats.transactions < count and time.monotonic() < until:
        time.sleep(0.01)
    follower.stop()
    thread.join()
    follower.source.teardown()
    SQLModelCache.reset()
    engine.dispose()
    client.close()
    by_pk = {int(key.rpartition(":")[2]): at for key, at in timed.acknowledged.items() if "public." not in key}
    return [max(0.0, by_pk[pk] - float(at)) * 1000 for pk, at in enumerate(committed)]


def main() -> None:
    """Measure both ways, and print a line for each."""
    parser = argparse.ArgumentParser(prog="benchmarks.following", description="Commit to invalidated, in ms.")
    parser.add_argument("--rate", type=float, default=1000.0, help="changes per second")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import servers

    server = servers.PostgresServer("wal_level = logical")
    print(f"{'commit to invalidated':<24}{'changes':>10}{'median':>12}{'99 %':>12}{'longest':>12}")
    with servers.redis_url() as redis_url:
        for name, way in (("streaming protocol", Stream), ("SQL functions", Polling)):
            times = measure(server.url, redis_url, way, options.rate, options.seconds)
            rank = statistics.quantiles(times, n=100)
            figures = "".join(f"{value:>9.1f} ms" for value in (rank[49], rank[98], max(times)))
            print(f"{name:<24}{len(times):>10,}{figures}")
    server.stop()


if __name__ == "__main__":
    main()
