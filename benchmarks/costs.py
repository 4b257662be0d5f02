"""What the library must not cost: others' work, what a hit leaves out, bytes in Redis, memory."""

from __future__ import annotations

import gc
import statistics
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import FrameType
from typing import Any

from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.sql.compiler import SQLCompiler
from sqlmodel import Session, select

import sqlmodel_cache
from benchmarks.measure import Case
from benchmarks.model import HAS_NEAR, ROWS, Nearby, Product, Uncached, numbers, payload, values
from benchmarks.table import Goal, Line, raced
from benchmarks.world import PATIENCE, World, cached, get_each
from benchmarks.writes import NAMESPACE, multiply, rows_in
from sqlmodel_cache import MemoryTransport, SQLModelCache
from sqlmodel_cache._effects import Entry, Fill, Granted, Lease

SLOWER = 1.02


def untouched(world: World) -> Iterator[Line]:
    """What the library must not slow down."""
    engine = world.sqlite()
    held = Session(engine)
    world.stack.callback(held.close)
    kept = held.get(Product, 1)
    assert kept is not None

    def selects(count: int) -> None:
        for number in numbers(count):
            with Session(engine) as session:
                session.exec(select(Product).where(Product.id == number)).all()

    def identity_hits(count: int) -> None:
        for _ in range(count):
            held.get(Product, 1)

    for name, run in {
        "get of a model without a CacheConfig": get_each(engine, Uncached),
        "select() of a cached model": selects,
        "get from the identity map": identity_hits,
        "write and commit of uncached rows": _writing(world),
    }.items():
        cases = {"floor": Case(run, SQLModelCache.reset), "measured": Case(run, SQLModelCache.configure)}
        found = world.race(cases, "cpu", finely=True)
        SQLModelCache.reset()
        yield raced(name, found, "without the library", SLOWER, unit="x without the library")


def _writing(world: World) -> Callable[[int], None]:
    """Return a loop of transactions on an engine that never sees a cached table."""
    engine = world.sqlite()

    def run(count: int) -> None:
        for number in numbers(count):
            with Session(engine) as session:
                product = session.get(Uncached, number)
                assert product is not None
                product.price = Decimal(number)
                session.commit()

    return run


def left_out(world: World) -> Iterator[Line]:
    """What a hit must not do, counted over a hundred of them."""
    engine = world.sqlite()
    run = get_each(engine)
    SQLModelCache.configure()
    run(ROWS)
    calls: Counter[str] = Counter()
    kinds = {SQLCompiler.__init__.__code__: "compiled", PlainSession._merge.__code__: "merged"}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in kinds:
            calls[kinds[frame.f_code]] += 1
        elif event == "c_call" and any(name.startswith("pydantic") for name in _modules_of(argument)):
            calls["validated"] += 1

    sys.setprofile(note)
    try:
        run(ROWS)
    finally:
        sys.setprofile(None)
        SQLModelCache.reset()
    units = {"validated": "calls of pydantic", "merged": "merges", "compiled": "statements compiled"}
    yield Line(f"{ROWS} in-process hits", "", tuple(Goal(unit, calls[name], 0) for name, unit in units.items()))


def _modules_of(function: Any) -> tuple[str, str]:
    """Return the modules of a function that is written in another language, and of what it is a method of."""
    return getattr(function, "__module__", None) or "", type(getattr(function, "__self__", None)).__module__


def bytes_in_redis(world: World) -> Iterator[Line]:
    """What a cached row takes there, its key included."""
    engine, client = world.postgresql(), world.client()
    SQLModelCache.configure(cached(client))
    get_each(engine)(ROWS)
    SQLModelCache.reset()
    rows = rows_in(client)
    assert len(rows) == ROWS
    sizes = [len(key) + len(value) for key, value in rows.items()]
    usage: list[Any] = [client.memory_usage(key) for key in rows]
    bare = sum(len(str(value)) for value in values(ROWS).values())
    goals = (
        Goal("bytes, the largest", max(sizes), 150),
        Goal("bytes, the mean", statistics.mean(sizes)),
        Goal("bytes by MEMORY USAGE, the mean", statistics.mean(usage)),
    )
    yield Line("a row in Redis, key included", "", goals, f"{bare} bytes", "the values alone, as text")


def memory(world: World) -> Iterator[Line]:
    """What a cached row takes in the process."""
    kept = world.effort.kept
    yield _stated("a row in a MemoryTransport", kept, lambda: _memory_transport(kept))
    yield from _near_memory(world)


def _stated(path: str, rows: int, make: Callable[[], object]) -> Line:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = make()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    del held
    return Line(path, "", (Goal(f"bytes, the mean of {rows:,}", taken / rows),))


def _memory_transport(rows: int) -> MemoryTransport:
    """Return a transport that holds rows, stored as a miss stores them."""
    transport = MemoryTransport(max_rows=rows)
    for pk in range(rows):
        table = f"sqlmodelcache:{{{NAMESPACE}/product:{pk % 16}}}"
        entry = Entry(f"{table}:{pk}", table)
        lease = transport.execute(Lease(entry, b"fingerpr", pk.to_bytes(16, "big")))
        assert isinstance(lease, Granted)
        assert transport.execute(Fill(entry, lease, b"fingerpr", payload(pk), 300_000))
    return transport


def _near_memory(world: World) -> Iterator[Line]:
    path = "a row in the near cache"
    if not HAS_NEAR:
        yield Line(path, "not there yet")
        return
    rows = world.effort.kept // 10
    engine, client = world.sqlite(), world.client()
    near_cache = sqlmodel_cache.NearCache(max_rows=2 * rows, max_age=10 * PATIENCE)  # type: ignore[attr-defined]
    SQLModelCache.configure(cached(client), near_cache=near_cache)  # type: ignore[call-arg]
    get_each(engine, Nearby)(ROWS)
    multiply(client, rows)

    def read() -> None:
        for pk in range(ROWS + 1, rows + 1):
            with Session(engine) as session:
                session.get(Nearby, pk)

    yield _stated(path, rows - ROWS, read)
    SQLModelCache.reset()
