"""What touches the database: misses and commits on PostgreSQL, a stampede, and the invalidation of a whole table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from zlib import crc32

import redis
from sqlalchemy import Engine
from sqlmodel import Session, select

from benchmarks.measure import Case, Spent, Stopwatch
from benchmarks.model import ROWS, Product, numbers
from benchmarks.stampede import rush
from benchmarks.table import Goal, Line, raced, time_of, times
from benchmarks.world import World, cached, get_each, round_trips
from sqlmodel_cache import SQLModelCache

NAMESPACE = "0123456789a"  # as long as a database's; that of one in memory is new each time
TOKEN, RELEASED = b"F" + b"\0" * 36, b"F" + b"\0" * 12  # as long as a row's fence, and as what is left of it


def rows_in(client: redis.Redis) -> dict[bytes, bytes]:
    """Return the keys and values of cached rows."""
    keys: Any = client.keys("*}:*")
    return {key: value for key, value in zip(keys, client.mget(keys), strict=True) if value}  # type: ignore[arg-type]


def miss(world: World) -> Iterator[Line]:
    """A get of a row that is not cached, of a table that is."""
    engine, client = world.postgresql(), world.client()
    transport, run = cached(client), get_each(engine)
    SQLModelCache.configure(transport)
    run(ROWS)
    rows = rows_in(client)
    assert len(rows) == ROWS
    tables = {key: key[: key.index(b"}") + 1] for key in rows}

    def missing(count: int) -> Spent:
        watch = Stopwatch()
        for began in range(0, count, ROWS):
            client.delete(*rows)
            with watch:
                run(min(ROWS, count - began))
        return watch.spent

    def floor(count: int) -> None:
        for (key, value), number in zip(list(rows.items()) * (count // ROWS + 1), numbers(count), strict=False):
            with Session(engine) as session:
                client.mget(key, tables[key])
                client.mget(key, tables[key])
                session.get(Product, number)
                client.set(key, value, px=3_600_000)

    found = world.race(
        {
            "floor": Case(floor, SQLModelCache.reset),
            "measured": Case(missing, lambda: (SQLModelCache.configure(transport), run(ROWS))),
            "plain": Case(run, SQLModelCache.reset),
        }
    )
    SQLModelCache.reset()
    sent = round_trips(client, lambda: (run(ROWS), client.delete(*rows)), lambda: run(1))
    plain = times("x plain get", found.ratio("measured", "plain"))
    yield raced("miss on PostgreSQL", found, "plain get, 3 bare round trips", None, Goal("round trips", sent, 3), plain)


def commits(world: World) -> Iterator[Line]:
    """Commits of one row, and of many, all of them cached."""
    engine, client = world.postgresql(max(world.effort.commits)), world.client()
    for rows in world.effort.commits:
        yield _commit(world, engine, client, rows)


def _commit(world: World, engine: Engine, client: redis.Redis, rows: int) -> Line:
    idents = list(range(1, rows + 1))
    keys = [f"sqlmodelcache:{{{NAMESPACE}/product:{pk % 16}}}:{pk}" for pk in idents]
    transport = cached(client)

    def warm() -> None:
        with Session(engine) as session:
            SQLModelCache.get_many(session, Product, idents)

    def bare(value: bytes) -> None:
        client.mset(dict.fromkeys(keys, value))

    def changing(begin: Callable[[], object], end: Callable[[], object]) -> Callable[[int], Spent]:
        def run(count: int) -> Spent:
            watch = Stopwatch()
            with Session(engine, expire_on_commit=False) as session:
                products = session.exec(select(Product).where(Product.id <= rows)).all()  # type: ignore[operator]
                session.commit()
                for _ in range(count):
                    warm()
                    for product in products:
                        product.weight += 1
                    with watch:
                        begin()
                        session.commit()
                        end()
            return watch.spent

        return run

    plain = changing(lambda: None, lambda: None)
    found = world.race(
        {
            "floor": Case(changing(partial(bare, TOKEN), partial(bare, RELEASED)), SQLModelCache.reset),
            "measured": Case(plain, lambda: SQLModelCache.configure(transport)),
            "plain": Case(plain, SQLModelCache.reset),
        }
    )
    SQLModelCache.reset()
    ratio = times("x plain commit", found.ratio("measured", "plain"), 1.15 if rows == 1 else None)
    sent = Goal("round trips", _sent_by_commit(engine, client, rows, warm), 2)
    path = f"commit of {rows:,} cached row{'s' if rows > 1 else ''}"
    return raced(path, found, "plain commit, 2 bare round trips", None, sent, ratio)


def _sent_by_commit(engine: Engine, client: redis.Redis, rows: int, warm: Callable[[], None]) -> int:
    with Session(engine, expire_on_commit=False) as session:
        products = session.exec(select(Product).where(Product.id <= rows)).all()  # type: ignore[operator]
        session.commit()

        def change() -> None:
            warm()
            for product in products:
                product.weight += 1

        def prepare() -> None:
            change()
            session.commit()  # the first also opens a connection and sends scripts
            change()

        return round_trips(client, prepare, session.commit)


def stampede(world: World) -> Iterator[Line]:
    """Many threads of many processes want one row that nobody has cached."""
    effort, engine, client = world.effort, world.postgresql(), world.client()
    url = engine.url.render_as_string(hide_password=False)
    found = rush(url, world.redis_url, client, effort.processes, effort.threads, rounds=max(2, effort.rounds))
    selects = [rush.selects for rush in found]
    yield Line(
        f"{effort.processes} processes x {effort.threads} threads, one cold key",
        f"{time_of(statistics.median(rush.seconds for rush in found) * 1e6)}",
        (Goal("SELECTs, the median", statistics.median(selects), 1), Goal("SELECTs, the most", max(selects), 2)),
    )


def invalidation(world: World) -> Iterator[Line]:
    """A whole table is invalidated, of which few or many rows are cached."""
    engine, client = world.sqlite(), world.client()
    few, many = world.client(1), client
    cases = {}
    for name, count, own in (("floor", 10, few), ("measured", world.effort.many, many)):
        cases[name] = _invalidating(engine, own, count)
    found = world.race(cases)
    SQLModelCache.reset()
    limit = 1.1  # "the same time", as far as rounds of the same agree
    floor_is = "the same with 10 cached rows"
    yield raced(f"invalidate a table, {world.effort.many:,} rows cached", found, floor_is, limit, unit="x with 10 rows")


def _invalidating(engine: Engine, client: redis.Redis, count: int) -> Case:
    transport, warm = cached(client), get_each(engine)
    SQLModelCache.configure(transport, namespace=NAMESPACE)
    warm(ROWS)
    tables = multiply(client, count)
    SQLModelCache.reset()

    def run(count: int) -> Spent:
        watch = Stopwatch()
        for _ in range(count):
            client.mset(tables)  # type: ignore[arg-type]
            with watch:
                SQLModelCache.invalidate(Product, bind=engine)
        return watch.spent

    def configure() -> None:
        SQLModelCache.configure(transport, namespace=NAMESPACE)
        client.mset(tables)  # type: ignore[arg-type]
        before = SQLModelCache.stats().hits
        warm(1)
        assert SQLModelCache.stats().hits == before + 1, "the rows are not cached"

    return Case(run, configure)


def multiply(client: redis.Redis, count: int) -> dict[bytes, bytes]:
    """Cache `count` rows, copies of one that is, and return the fences of their table as they are now."""
    found = rows_in(client)
    sample, value = next(iter(found.items()))
    table, _, _ = sample.rpartition(b":")
    name, _, _ = table.rpartition(b":")
    keys: Any = [name + b":%d}" % shard for shard in range(16)]
    fences = dict(zip(keys, client.mget(keys), strict=True))  # type: ignore[arg-type]
    client.delete(*found)
    copies = {}
    for pk in range(1, count + 1):
        shard = keys[crc32(b"%d" % pk) % 16]
        # A value tells its own version, and that of its table.
        copies[shard + b":%d" % pk] = value[:14] + fences[shard][1:13] + value[26:]
        if len(copies) == 10_000 or pk == count:
            client.mset(copies)
            copies.clear()
    return fences
