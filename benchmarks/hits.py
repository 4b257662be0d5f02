"""Hits of a `Session`: in this process, in Redis, many by one call, and by another key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

import sqlmodel_cache
from benchmarks.measure import Case
from benchmarks.model import HAS_NEAR, ROWS, Listed, Nearby, Product, attach, check_floor, numbers, payload
from benchmarks.table import Goal, Line, raced, time_of, times
from benchmarks.world import PATIENCE, World, cached, get_each, hits, only_hits, round_trips
from sqlmodel_cache import MemoryTransport, SQLModelCache

BY_HAND = "look-up in a dict, decode, attach by hand"
MGET_BY_HAND = "one bare MGET of two keys, decode, attach by hand"

PAYLOADS = {f"product:{number}": payload(number) for number in numbers(ROWS)}
FENCE = b"F" + b"\0" * 12  # as long as what the library keeps for a table


def by_hand(engine: Engine, look_up: Callable[[str], Any]) -> Callable[[int], None]:
    """Return the floor's loop: open a session, look a row up, decode and attach it, close."""

    def run(count: int) -> None:
        for number in numbers(count):
            with Session(engine) as session:
                attach(session, number, look_up(f"product:{number}"))

    return run


def in_process(world: World) -> Iterator[Line]:
    """A hit in memory, and what its floor is made of."""
    engine = world.sqlite()
    check_floor(engine)
    look_up = PAYLOADS.__getitem__
    transport = MemoryTransport()

    def begun(count: int) -> None:
        for number in numbers(count):
            with Session(engine) as session:
                session._autobegin_t()
                attach(session, number, look_up(f"product:{number}"))

    def opened(count: int) -> None:
        for _ in range(count):
            with Session(engine):
                pass

    found = world.race(
        {
            "floor": Case(by_hand(engine, look_up), SQLModelCache.reset),
            "measured": hits(engine, lambda: SQLModelCache.configure(transport)),
            "SQLite": Case(get_each(engine), SQLModelCache.reset),
            "begun": Case(begun, SQLModelCache.reset),
            "opened": Case(opened, SQLModelCache.reset),
        },
        "cpu",
    )
    SQLModelCache.reset()
    faster = times("x faster than get from in-memory SQLite", found.ratio("SQLite", "measured"), 8.0, at_least=True)
    yield raced("in-process hit", found, BY_HAND, 2.0, faster)
    yield Line(
        "the same, over a floor that begins",
        time_of(found.us("measured")),
        (times("x that floor", found.ratio("measured", "begun")),),
        time_of(found.us("begun")),
        "the floor, and the session's own begin, which a hit owes its caller",
    )
    yield Line("the session alone, opened and closed", time_of(found.us("opened")))


def redis_sync(world: World) -> Iterator[Line]:
    """A hit in Redis, from a thread."""
    engine, client = world.sqlite(), world.client()
    client.mset({**PAYLOADS, "product": FENCE})  # type: ignore[dict-item]
    transport = cached(client)
    found = world.race(
        {
            "floor": Case(by_hand(engine, lambda key: client.mget(key, "product")[0]), SQLModelCache.reset),  # type: ignore[index]
            "measured": hits(engine, lambda: SQLModelCache.configure(transport)),
        }
    )
    SQLModelCache.reset()
    run = get_each(engine)
    sent = round_trips(client, lambda: run(ROWS), lambda: run(1))
    yield raced("Redis hit", found, MGET_BY_HAND, 1.25, Goal("round trips", sent, 1))


def near(world: World) -> Iterator[Line]:
    """A hit in this process of a row that Redis has for all."""
    path = "near-cache hit"
    if not HAS_NEAR:
        yield Line(path, "not there yet")
        return
    engine, client = world.sqlite(), world.client()
    transport = cached(client)

    def configure() -> None:
        near_cache = sqlmodel_cache.NearCache(max_rows=10_000, max_age=PATIENCE)  # type: ignore[attr-defined]
        SQLModelCache.configure(transport, near_cache=near_cache)  # type: ignore[call-arg]

    found = world.race(
        {
            "floor": Case(by_hand(engine, PAYLOADS.__getitem__), SQLModelCache.reset),
            "measured": hits(engine, configure, Nearby),
        },
        "cpu",
    )
    SQLModelCache.reset()
    yield raced(path, found, BY_HAND, 2.5)


def get_many(world: World) -> Iterator[Line]:
    """A hundred hits in Redis by one call."""
    engine, client = world.sqlite(), world.client()
    client.mset({**PAYLOADS, "product": FENCE})  # type: ignore[dict-item]
    transport = cached(client)
    idents, keys = list(numbers(ROWS)), [*PAYLOADS, "product"]

    def many(count: int) -> None:
        for _ in range(count):
            with Session(engine) as session:
                SQLModelCache.get_many(session, Product, idents)

    def each(count: int) -> None:
        for _ in range(count):
            with Session(engine) as session:
                for ident in idents:
                    session.get(Product, ident)

    def floor(count: int) -> None:
        for _ in range(count):
            with Session(engine) as session:
                for ident, raw in zip(idents, client.mget(keys), strict=False):  # type: ignore[arg-type]
                    attach(session, ident, raw)

    def warm() -> None:
        SQLModelCache.configure(transport)
        many(1)

    found = world.race(
        {
            "floor": Case(floor, SQLModelCache.reset),
            "measured": Case(only_hits(many, ROWS), warm),
            "each": Case(only_hits(each, ROWS), warm),
        }
    )
    SQLModelCache.reset()
    sent = Goal("round trips", round_trips(client, lambda: many(1), lambda: many(1)), 1)
    faster = times("x faster than 100 gets", found.ratio("each", "measured"), at_least=True)
    yield raced("get_many of 100 Redis hits", found, "one bare MGET, decode, attach by hand", None, sent, faster)


def get_by(world: World) -> Iterator[Line]:
    """A hit in Redis by a unique key."""
    engine, client = world.sqlite(), world.client()
    client.mset({**PAYLOADS, "product": FENCE})  # type: ignore[dict-item]
    client.mset({f"HA-{number:06}": f"product:{number}" for number in numbers(ROWS)})
    transport = cached(client)

    def by_key(count: int) -> None:
        for number in numbers(count):
            with Session(engine) as session:
                SQLModelCache.get_by(session, Listed, sku=f"HA-{number:06}")

    def floor(count: int) -> None:
        for number in numbers(count):
            with Session(engine) as session:
                pk = client.mget(f"HA-{number:06}", "product")[0]  # type: ignore[index]
                attach(session, number, client.mget(pk, "product")[0])  # type: ignore[index]

    def warm() -> None:
        SQLModelCache.configure(transport)
        by_key(2 * ROWS)  # the first finds where a row is, the second stores it there

    found = world.race({"floor": Case(floor, SQLModelCache.reset), "measured": Case(only_hits(by_key), warm)})
    SQLModelCache.reset()
    sent = Goal("round trips", round_trips(client, lambda: by_key(2 * ROWS), lambda: by_key(1)), 2)
    yield raced("get_by hit", found, "two bare MGETs, decode, attach by hand", None, sent)
