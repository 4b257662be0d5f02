"""Kills followers with SIGKILL while others write: `python -m soak.following --changes 1000000 --kills 20`.

Each round plants a value under every row's key in Redis, changes every row by raw SQL, kills the follower at a random
moment meanwhile, starts another, and waits until the database has nothing left to tell. A value that is still there
then was stale, and would have been served: a lost invalidation.
"""

from __future__ import annotations

import argparse
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis
from sqlalchemy import make_url
from sqlmodel import create_engine

from soak.followed import Followed
from sqlmodel_cache import SQLModelCache
from sqlmodel_cache._keys import entry

ROOT = Path(__file__).resolve().parents[1]
TRANSACTION = 200  # rows
PATIENCE = 120.0  # seconds


@dataclass
class Outcome:
    """What a run has found."""

    changes: int = 0
    kills: int = 0
    lost: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"changes by others        {self.changes:,}\nfollowers killed         {self.kills:,}\n"
            f"lost invalidations       {self.lost:,}\nseconds                  {self.seconds:,.0f}"
        )


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when something in another process has happened."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"not within {PATIENCE} s")
        time.sleep(0.01)


class Postgres:
    """Somebody who writes to a PostgreSQL without the library, and sees how far it is followed."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def execute(self, query: str, arguments: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """Return the first row that a statement answers, if it does."""
        cursor = self._connection.execute(query.encode(), arguments or None)
        return cursor.fetchone() if cursor.description else None

    def fill(self, rows: int) -> None:
        """Insert the rows that are followed."""
        self.execute("INSERT INTO soak_followed SELECT n, 0 FROM generate_series(0, %s) AS n", (rows - 1,))

    def trusts(self) -> bool:
        """Return whether a follower has invalidated all that was before it."""
        query = "SELECT obj_description(oid, 'pg_publication') LIKE '%: ready %' FROM pg_publication"
        return self.execute(query) == (True,)

    def caught_up(self) -> Callable[[], bool]:
        """Return the question whether everything up to now has been invalidated and confirmed."""
        row = self.execute("SELECT pg_current_wal_insert_lsn()::text")
        query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots"
        return lambda: self.execute(query, row or ()) == (True,)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Maria:
    """The same of a MariaDB."""

    def __init__(self, url: str) -> None:
        import pymysql

        where = make_url(url).translate_connect_args(username="user")
        self._connection = pymysql.connect(**where, autocommit=True)

    def execute(self, query: str, arguments: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """Return the first row that a statement answers, if it does."""
        with self._connection.cursor() as cursor:
            cursor.execute(query, arguments or None)
            row: tuple[Any, ...] | None = cursor.fetchone() if cursor.description else None
            return row

    def fill(self, rows: int) -> None:
        """Insert the rows that are followed."""
        self.execute("SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO'")
        self.execute(f"INSERT INTO soak_followed SELECT seq, 0 FROM seq_0_to_{rows - 1}")

    def trusts(self) -> bool:
        """Return whether a follower has invalidated all that was before it."""
        return self.execute("SELECT file IS NOT NULL FROM sqlmodel_cache_follow") == (1,)

    def caught_up(self) -> Callable[[], bool]:
        """Return the question whether everything up to now has been invalidated and confirmed."""
        end = self.execute("SHOW MASTER STATUS")
        self.execute("UPDATE soak_followed SET version = version + 1 WHERE id = 0")  # a mark is where a change ends
        return lambda: (self.execute("SELECT file, position FROM sqlmodel_cache_follow") or ()) >= (end or ())[:2]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Run:
    """One run: a database, a Redis, and one follower after the other."""

    def __init__(self, database_url: str, redis_url: str, rows: int, seed: int) -> None:
        self._database_url, self._redis_url = database_url, redis_url
        self._outside = (Postgres if database_url.startswith("postgresql") else Maria)(database_url)
        self._redis = redis.Redis.from_url(redis_url)
        self._random = random.Random(seed)
        engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
        Followed.metadata.create_all(engine)
        SQLModelCache.configure()
        namespace = SQLModelCache.follower(engine).namespaces[0]
        SQLModelCache.reset()
        engine.dispose()
        self._keys = [entry("sqlmodelcache", namespace, "soak_followed", str(pk)).row for pk in range(rows)]
        self._outside.fill(rows)
        subprocess.run([*self._command(), "--setup"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "sqlmodel_cache.cli", "follow", self._database_url, "soak.followed"]
        return [*command, "--transport", self._redis_url]

    def rounds(self, count: int) -> Outcome:
        """Return what was lost in so many rounds, with a kill in each."""
        outcome = Outcome()
        began = time.monotonic()
        follower = subprocess.Popen(self._command(), cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            wait_for(self._outside.trusts)
            for _ in range(count):
                self._plant()
                moments = range(0, len(self._keys), TRANSACTION)
                fatal = self._random.choice(moments)
                for first in moments:
                    self._change(first)
                    if first == fatal:
                        follower.kill()
                        follower.wait()
                        follower = subprocess.Popen(self._command(), cwd=ROOT, stderr=subprocess.DEVNULL)
                wait_for(self._outside.caught_up())
                outcome.lost += self._planted()
                outcome.changes += len(self._keys)
                outcome.kills += 1
        finally:
            follower.kill()
            follower.wait()
        outcome.seconds = time.monotonic() - began
        return outcome

    def _change(self, first: int) -> None:
        query = "UPDATE soak_followed SET version = version + 1 WHERE id >= %s AND id < %s"
        self._outside.execute(query, (first, first + TRANSACTION))

    def _plant(self) -> None:
        for at in range(0, len(self._keys), 10_000):
            with self._redis.pipeline(transaction=False) as pipe:
                for key in self._keys[at : at + 10_000]:
                    pipe.set(key, b"V stale")
                pipe.execute()

    def _planted(self) -> int:
        found = 0
        for at in range(0, len(self._keys), 10_000):
            found += sum((value or b"")[:1] == b"V" for value in self._redis.mget(self._keys[at : at + 10_000]))
        return found

    def close(self) -> None:
        """Close the connections, and leave nothing behind."""
        subprocess.run([*self._command(), "--teardown"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        self._outside.execute("DROP TABLE soak_followed")
        self._outside.close()
        self._redis.close()


def main() -> int:
    """Run, print what was found, and return the exit code: 0 when nothing was lost."""
    parser = argparse.ArgumentParser(prog="soak.following", description="Kill followers while others write.")
    parser.add_argument("--changes", type=int, default=1_000_000, help="rows changed by raw SQL, in all")
    parser.add_argument("--kills", type=int, default=20, help="followers killed with SIGKILL")
    parser.add_argument("--seed", type=int, default=secrets.randbits(16), help="of the moments of the kills")
    parser.add_argument("--database", help="the URL of one that can be followed; by default a PostgreSQL is started")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import servers

    database = None if options.database else servers.PostgresServer("wal_level = logical")
    with servers.redis_url() as redis_url:
        url = options.database if database is None else database.url
        run = Run(url, redis_url, options.changes // options.kills, options.seed)
        outcome = run.rounds(options.kills)
        run.close()
    if database is not None:
        database.stop()
    print(outcome)
    print(f"seed                     {options.seed}")
    return 1 if outcome.lost else 0


if __name__ == "__main__":
    sys.exit(main())
