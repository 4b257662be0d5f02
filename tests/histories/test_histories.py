"""Generated histories of three sessions: with the cache, a program sees what it sees without it.

Two oracles. The uncached twin: the same history runs again with the library switched off, and every value and every
error must be the same. It fits sessions in READ COMMITTED, and SQLite's as far as its locks do not part the two. The
database's own answer: each get is compared with a SELECT in the same transaction. It fits sessions that keep a
snapshot, for which a hit, which opens no transaction, rightly moves the beginning of the snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import Store
from histories.generated import SESSIONS, histories
from histories.world import COLUMNS, Actor, Operation, Row, World
from hypothesis import HealthCheck, Phase, given, settings
from sqlalchemy import Connection, Engine, event, text
from sqlmodel import create_engine

from sqlmodel_cache import MemoryTransport, SQLModelCache, _sqlalchemy
from sqlmodel_cache._effects import Begin, End
from sqlmodel_cache._plan import Effect
from sqlmodel_cache._versions import Versions
from sqlmodel_cache._writeset import WriteSet, transaction_of

LONG = os.environ.get("SQLMODEL_CACHE_LONG") == "1"

Check = Callable[[list[Operation]], None]


def search(check: Check, max_examples: int, **options: Any) -> None:
    """Check that many generated histories; raises what `check` raises for the shortest that fails."""
    options.setdefault("derandomize", not LONG)  # the same histories every time; the long profile draws others
    profile = settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
        **options,
    )
    profile(given(histories)(check))()


def never_wait(engine: Engine) -> Engine:
    """Make every connection of an engine fail where it would wait for another's lock."""

    @event.listens_for(engine, "connect")
    def _connected(raw: Any, _: object) -> None:
        cursor = raw.cursor()
        if engine.dialect.name == "postgresql":
            cursor.execute("SET lock_timeout = 1")
            cursor.execute("SET synchronous_commit = off")
        else:
            for setting in ("busy_timeout = 0", "foreign_keys = ON", "synchronous = OFF"):
                cursor.execute(f"PRAGMA {setting}")
        cursor.close()
        raw.commit()

    return engine


def loser(store: Store) -> Callable[[int | None], None]:
    """Return an operation that loses all keys, or one."""

    def lose(which: int | None) -> None:
        if which is None:
            store.clear()
        elif store.client is None:
            keys = sorted([*store.transport._rows, *store.transport._tables])
            if keys:
                store.transport.evict(keys[which % len(keys)])
        else:
            names: Any = sorted(store.client.keys("*"))  # type: ignore[type-var]
            if names:
                store.client.delete(names[which % len(names)])

    return lose


# the uncached twin


def trace(engine: Engine, lose: Callable[[int | None], None], history: list[Operation]) -> list[Any]:
    """Return what every operation of a history shows, and what is there in the end."""
    world = World([engine] * SESSIONS, engine, lose)
    world.reset()
    try:
        shown = [(operation, world.step(operation)) for operation in history]
        found = world.quiesce()
        assert sorted(row for row in found if row is not None) == sorted(rows_of(engine) * 2)
        return [*shown, found]
    finally:
        world.close()


def rows_of(engine: Engine) -> list[Row]:
    """Return what the table holds."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(COLUMNS))]


def comparable(plain: list[Any], cached: list[Any], engine: Engine) -> int:
    """Return up to where the traces must be equal: all of it, but where SQLite was locked by a read that hit.

    A SELECT below a SAVEPOINT holds SQLite's shared lock until the transaction ends, and keeps others from committing.
    """
    for at, (without, with_cache) in enumerate(zip(plain, cached, strict=True)):
        if engine.dialect.name == "sqlite" and without[1] == "OperationalError" and without != with_cache:
            return at
    return len(plain)


def twin_check(engine: Engine, store: Store, hits: list[int]) -> Check:
    """Return a check that a history shows the same with the cache and without it."""
    lose = loser(store)

    def check(history: list[Operation]) -> None:
        SQLModelCache.reset()
        plain = trace(engine, lambda _: None, history)
        store.clear()
        SQLModelCache.configure(store.transport)
        cached = trace(engine, lose, history)
        hits.append(SQLModelCache.stats().hits)
        end = comparable(plain, cached, engine)
        assert cached[:end] == plain[:end]

    return check


@pytest.mark.parametrize(
    ("engine", "store", "examples"),
    [
        ("sqlite", "memory", 250),
        ("postgresql", "memory", 150),
        ("postgresql", "redis", 50),
        ("postgresql+asyncpg", "redis", 30),
        ("sqlite+aiosqlite", "memory", 30),
    ],
    indirect=["engine", "store"],
)
def test_history_shows_what_its_uncached_twin_shows(engine: Engine, store: Store, examples: int) -> None:
    """No program can tell by values, errors or the rows that it leaves behind whether there is a cache."""
    hits: list[int] = []
    search(twin_check(never_wait(engine), store, hits), examples * 40 if LONG else examples)
    assert sum(hits) > 2 * len(hits)


# the database's own answer


class SnapshotWorld(World):
    """Compares each get with what the database says.

    `observer` sees what is committed. An actor of an engine that keeps a snapshot without having been asked for one
    may see either.
    """

    def __init__(self, engines: list[Engine], observer: Engine, lose: Callable[[int | None], None]) -> None:
        super().__init__(engines, observer, lose)
        self._observer = observer

    def get(self, actor: Actor, pk: int) -> Row | None:
        session = actor.session
        if actor.has(pk):
            return super().get(actor, pk)
        got = super().get(actor, pk)
        with self._observer.connect() as connection:
            allowed = [_row(connection, pk)]
        if actor.engine.pool.checkedout():  # type: ignore[attr-defined]  # its transaction has begun in the database
            inside = _row(session.connection(), pk)
            allowed = [inside, *allowed] if actor.engine is self.actors[-1].engine else [inside]
        assert got in allowed
        return got

    def get_in_another_session(self, actor: Actor, pk: int) -> Row | None:
        got = super().get_in_another_session(actor, pk)
        with self._observer.connect() as connection:
            assert got == _row(connection, pk)
        return got


def _row(connection: Connection, pk: int) -> Row | None:
    found = connection.execute(text(f"{COLUMNS} WHERE id = {pk}")).one_or_none()
    return None if found is None else tuple(found)


@contextmanager
def snapshot_engines(url: str) -> Iterator[list[Engine]]:
    """Yield an engine for each session: READ COMMITTED, REPEATABLE READ as asked for, and as it happens to be."""
    level = r"-c default_transaction_isolation=repeatable\ read"
    made = [
        never_wait(create_engine(url, pool_size=2)),
        never_wait(create_engine(url, pool_size=2, isolation_level="REPEATABLE READ")),
        never_wait(create_engine(url, pool_size=2, connect_args={"options": level})),
    ]
    yield made
    for engine in made:
        engine.dispose()


@pytest.fixture
def mere_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take PostgreSQL's default level for a default, as MySQL's is: here somebody asks for it only by an argument."""
    original = _sqlalchemy.isolation_level

    def isolation_level(bind: Engine | Connection, options: Any = None) -> tuple[str, bool]:
        by_argument = bind.get_execution_options().get("isolation_level") or bind.dialect._on_connect_isolation_level
        return original(bind, options)[0], by_argument is not None

    monkeypatch.setattr(_sqlalchemy, "isolation_level", isolation_level)


def snapshot_check(engines: list[Engine], observer: Engine, store: Store, hits: list[int]) -> Check:
    """Return a check that every get of a history returns a row that its transaction may see."""

    def check(history: list[Operation]) -> None:
        store.clear()
        SQLModelCache.configure(store.transport)
        world = SnapshotWorld(engines, observer, loser(store))
        world.reset()
        try:
            for operation in history:
                world.step(operation)
            found = world.quiesce()
            assert sorted(row for row in found if row is not None) == sorted(rows_of(observer) * 2)
        finally:
            hits.append(SQLModelCache.stats().hits)
            world.close()

    return check


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("store", "examples"), [("memory", 150), ("redis", 40)], indirect=["store"])
@pytest.mark.usefixtures("mere_default")
def test_history_with_snapshots_sees_what_its_transactions_may(engine: Engine, store: Store, examples: int) -> None:
    """A session that keeps a snapshot gets what it is owed, and does not leave it in the cache for others."""
    url = engine.url.render_as_string(hide_password=False)
    hits: list[int] = []
    with snapshot_engines(url) as engines:
        search(snapshot_check(engines, never_wait(engine), store, hits), examples * 20 if LONG else examples)
    assert sum(hits) > len(hits)


# without a guard


class NeverInvalidates(MemoryTransport):
    """A cache that hears nothing of commits."""

    def execute(self, effect: Effect[Any]) -> Any:
        return None if isinstance(effect, Begin | End) else super().execute(effect)


class IgnoresTables(MemoryTransport):
    """A cache that does not fence whole tables."""

    def execute(self, effect: Effect[Any]) -> Any:
        if isinstance(effect, Begin | End) and effect.keys.tables:
            return None
        return super().execute(effect)


def forget_at(engine: Engine, name: str) -> None:
    """Let a savepoint's end forget the transaction's write set."""

    @event.listens_for(engine, name)
    def _ended(connection: Connection, *_: object) -> None:
        transaction_of(connection).writes.clear()


def without_guard(guard: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Remove a guard, and return the store to run on."""
    if guard == "own writes":
        monkeypatch.setattr(WriteSet, "covers", lambda *_: False)
    elif guard == "rollback to savepoint":
        forget_at(engine, "rollback_savepoint")
    elif guard == "release of savepoint":
        forget_at(engine, "release_savepoint")
    elif guard == "fences":
        return Store(NeverInvalidates())
    elif guard == "table fences":
        return Store(IgnoresTables())
    return Store(MemoryTransport())


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "guard", ["own writes", "rollback to savepoint", "release of savepoint", "fences", "table fences"]
)
def test_histories_see_a_guard_that_is_missing(engine: Engine, guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a guard of the session, a history is found that shows it."""
    store = without_guard(guard, engine, monkeypatch)
    with pytest.raises(AssertionError):
        search(twin_check(never_wait(engine), store, []), 1000, phases=[Phase.generate], derandomize=True)


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("mere_default")
def test_histories_see_a_snapshot_that_is_stored(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without I7, an old snapshot is stored and found."""
    monkeypatch.setattr(Versions, "since", lambda *_: float("-inf"))
    url = engine.url.render_as_string(hide_password=False)
    with snapshot_engines(url) as engines, pytest.raises(AssertionError):
        check = snapshot_check(engines, never_wait(engine), Store(MemoryTransport()), [])
        search(check, 1000, phases=[Phase.generate], derandomize=True)
