"""Watch cached reads and invalidations happen: `make demo`, or `python examples/demo.py`.

Every line is measured: SQL and connections by events of the engine, what the cache did by the difference of
`SQLModelCache.stats()`, the time around the whole step. With REDIS_URL set, the same steps run a second time over
Redis, under a key prefix of their own whose keys are deleted at the end.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import redis
import sqlalchemy
from sqlalchemy import Engine, event, update
from sqlmodel import Field, Session, SQLModel, create_engine, select

import sqlmodel_cache
from sqlmodel_cache import CacheConfig, MemoryTransport, RedisSyncTransport, SQLModelCache, Stats

WIDTHS = (48, 11, 16, 22)


class Hero(SQLModel, table=True):
    """The cached model."""

    __cache_config__ = CacheConfig(ttl=600)

    id: int | None = Field(default=None, primary_key=True)
    name: str


class Watch:
    """Prints what each step did."""

    def __init__(self, engine: Engine) -> None:
        self.statements: list[str] = []
        self.connections = 0
        self.rollbacks = 0
        event.listen(engine, "before_cursor_execute", self._executed)
        event.listen(engine, "commit", self._committed)
        event.listen(engine, "rollback", self._rolled_back)
        event.listen(engine.pool, "checkout", self._checked_out)
        print_row("step", "returned", "database", "cache", "ms")

    def step(self, title: str, action: Callable[[], Any]) -> None:
        """Run one step, and print it with the name that it returned."""
        self.statements.clear()
        self.connections = self.rollbacks = 0
        before = SQLModelCache.stats()
        began = time.perf_counter()
        returned = action()
        milliseconds = (time.perf_counter() - began) * 1000
        after = SQLModelCache.stats()
        names = [field.name for field in fields(Stats) if field.name != "models"]
        counted = {name: getattr(after, name) - getattr(before, name) for name in names}
        print_row(title, returned or "", self._sent(), in_words(counted), f"{milliseconds:.2f}")

    def _sent(self) -> str:
        if self.statements:
            return ", ".join(self.statements)  # and, when a session that only read is closed, a ROLLBACK
        if self.rollbacks:
            return "ROLLBACK"
        return "no SQL" if self.connections else "no connection"

    def _executed(self, conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement.split()[0])

    def _committed(self, conn: Any) -> None:
        self.statements.append("COMMIT")

    def _rolled_back(self, conn: Any) -> None:
        self.rollbacks += 1

    def _checked_out(self, *_: Any) -> None:
        self.connections += 1


def print_row(*cells: str) -> None:
    """Print one line of the table."""
    *padded, last = cells
    line = "".join(f"{cell:<{width}}" for cell, width in zip(padded, WIDTHS, strict=True))
    print(f"  {line}{last:>7}")


def in_words(counted: dict[str, int]) -> str:
    """Return what the counters say of one step."""
    one = {"hits": "hit", "misses": "miss", "fills": "fill", "bypasses": "bypass", "errors": "error"}
    words = [one.get(name, name) for name, count in counted.items() if count and name != "invalidated"]
    keys = counted["invalidated"]
    if keys:
        words.append(f"invalidated {keys} key{'s' if keys > 1 else ''}")
    return ", ".join(words) or "-"


def read(engine: Engine, **options: Any) -> str:
    """Return the hero's name, in a session of its own."""
    with Session(engine) as session:
        return session.get_one(Hero, 1, **options).name


def rename(session: Session, name: str) -> None:
    """Flush an UPDATE; the transaction stays open."""
    session.get_one(Hero, 1).name = name
    session.flush()


def show(engine: Engine) -> None:
    """Run all steps on one engine, with the cache that is configured now."""
    SQLModel.metadata.create_all(engine)
    watch = Watch(engine)

    def insert() -> None:
        with Session(engine) as session:
            session.add(Hero(id=1, name="Rusty"))
            session.commit()

    def rename_all() -> None:
        with Session(engine) as session:
            session.execute(update(Hero).values(name="Everybody"))
            session.commit()

    def select_it() -> str:
        with Session(engine) as session:
            return session.exec(select(Hero)).one().name

    watch.step("insert Rusty, commit", insert)
    watch.step("get, the first", lambda: read(engine))
    watch.step("get, in a new session", lambda: read(engine))
    with Session(engine) as writer:
        watch.step("get and rename in a transaction, no commit yet", lambda: rename(writer, "Rusty-Man"))
        watch.step("get, in another session meanwhile", lambda: read(engine))
        watch.step("commit", writer.commit)
    watch.step("get, in a new session", lambda: read(engine))
    watch.step("get, in a new session", lambda: read(engine))
    with Session(engine) as writer:
        watch.step("get and rename in a transaction", lambda: rename(writer, "Nobody"))
        watch.step("roll back", writer.rollback)
    watch.step("get, in a new session", lambda: read(engine))
    watch.step("update(Hero), all rows, commit", rename_all)
    watch.step("get, in a new session", lambda: read(engine))
    watch.step("get, in a new session", lambda: read(engine))
    watch.step('get, execution_options={"cache": False}', lambda: read(engine, execution_options={"cache": False}))
    watch.step("select(Hero), never cached", select_it)
    compare(engine)


def compare(engine: Engine, rounds: int = 500) -> None:
    """Print the median time of a get from the database and of one from the cache."""

    def median(**options: Any) -> float:
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            read(engine, **options)
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1000

    plain, cached = median(execution_options={"cache": False}), median()
    print(f"\n  Median of {rounds} gets, each in a new session:")
    print(f"    {plain:.3f} ms from SQLite\n    {cached:.3f} ms from the cache")


@contextmanager
def database() -> Iterator[Engine]:
    """Yield an engine on a new SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder) / 'demo.db'}")
        yield engine
        engine.dispose()


def in_process() -> None:
    """Show the cache in this process."""
    print("\nCache: MemoryTransport, in this process\n")
    SQLModelCache.configure(MemoryTransport())
    with database() as engine:
        show(engine)
    SQLModelCache.reset()


def over_redis(url: str) -> None:
    """Show the cache in Redis; leaves no key behind."""
    prefix = f"sqlmodelcache-demo-{os.getpid()}"
    with redis.Redis.from_url(url) as client:
        print(f"\nCache: RedisSyncTransport, Redis {client.info('server')['redis_version']}\n")
        SQLModelCache.configure(RedisSyncTransport(client), key_prefix=prefix)
        try:
            with database() as engine:
                show(engine)
            print("\n  What redis-cli would show of the row (the rest of the keys are the table's shards):")
            for key in client.scan_iter(match=f"{prefix}:*}}:*"):
                print(f"    {key.decode()}  TTL {client.ttl(key)} s, {client.strlen(key)} bytes")
        finally:
            SQLModelCache.reset()
            keys = list(client.scan_iter(match=f"{prefix}:*"))
            if keys:
                client.delete(*keys)


def main() -> None:
    """Run the demo."""
    print(f"sqlmodel-cache {sqlmodel_cache.__version__}, SQLAlchemy {sqlalchemy.__version__}, SQLite in a file")
    in_process()
    print(
        '\n  "no connection": the step took none from the pool. A commit of known rows invalidates those rows; a'
        "\n  bulk update invalidates its table, which is 16 keys however many rows are cached. SQLite runs in this"
        "\n  process; a database behind a network takes longer to ask."
    )
    url = os.environ.get("REDIS_URL")
    if not url:
        print("\nThe same over Redis:  REDIS_URL=redis://localhost:6379 make demo")
        return
    try:
        over_redis(url)
    except (redis.RedisError, ValueError) as error:
        sys.exit(f"\nRedis at REDIS_URL: {error}")


if __name__ == "__main__":
    main()
