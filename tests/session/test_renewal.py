"""`CacheConfig(refresh_ahead=...)`: a row that is read all the time never expires, and is never older for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Log
from models import Hero
from sqlalchemy import Engine, event, text, update
from sqlmodel import Field, Session, SQLModel, col

from sqlmodel_cache import CacheConfig, ConfigurationError, MemoryTransport, SQLModelCache, _reading, _renewal

TTL = 600
TWO_ENGINES = pytest.mark.parametrize("engine", ["sqlite", "postgresql+asyncpg"], indirect=True)


class Rate(SQLModel, table=True):
    """A row that is renewed."""

    __cache_config__ = CacheConfig(ttl=TTL, refresh_ahead=1.0, missing_ttl=60, unique=[("code",)])
    id: int = Field(primary_key=True)
    code: str = Field(unique=True)
    value: str


class Clock:
    """The time of the cache and of the stamps, and what readers draw: 0.0 renews nothing before its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        self.draw = 0.0
        monkeypatch.setattr(_renewal.time, "time", lambda: self.now)
        monkeypatch.setattr(_renewal.random, "random", lambda: self.draw)
        monkeypatch.setattr(_renewal, "JITTER", 0.0)
        self.transport = MemoryTransport(clock=lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands, and a cache under it."""
    made = Clock(monkeypatch)
    SQLModelCache.configure(made.transport)
    return made


@pytest.fixture
def rate(engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str | None]:
    """Return what gets row 1, whose load takes a second, in a new session."""
    seconds = iter(range(10**9))
    monkeypatch.setattr(_reading, "perf_counter", lambda: float(next(seconds)))

    def value() -> str | None:
        with Session(engine) as session:
            found = session.get(Rate, 1)
            return None if found is None else found.value

    return value


def insert(engine: Engine) -> None:
    """Insert row 1."""
    with Session(engine) as session:
        session.add(Rate(id=1, code="eur", value="old"))
        session.commit()


def left(clock: Clock) -> float | None:
    """Return the seconds that the one row has left."""
    [key] = clock.transport.keys()
    return clock.transport.ttl(key)


def write_outside(engine: Engine, value: str) -> None:
    """Change the row behind the library's back."""
    raw = engine.raw_connection()
    raw.cursor().execute(f"UPDATE rate SET value = '{value}' WHERE id = 1")
    raw.commit()
    raw.close()


@TWO_ENGINES
def test_hot_row_never_expires(engine: Engine, clock: Clock, rate: Callable[[], str | None], sql: Log) -> None:
    """Read every second for three TTLs, with equal draws: it is renewed before its time, and always a hit."""
    insert(engine)
    rate()
    clock.draw = 0.75
    selects = 0
    sql.take()
    for _ in range(3 * TTL):
        clock.now += 1
        assert clock.transport.keys()
        assert rate() == "old"
        selects += len([each for each in sql.take() if "FROM rate" in each])
    assert selects == 3
    assert SQLModelCache.stats().hits == 3 * TTL - 3


@TWO_ENGINES
def test_renewal_brings_the_ttl_and_the_row_of_now(
    engine: Engine, clock: Clock, rate: Callable[[], str | None], sql: Log
) -> None:
    """The longer the load, the earlier: a second, and a draw of 1 - 1/e, make it one second."""
    insert(engine)
    rate()
    clock.draw = 1 - 1 / 2.718281828459045
    write_outside(engine, "new")
    clock.now += TTL - 1.01
    sql.take()
    assert rate() == "old"
    assert sql.take() == []
    clock.now += 0.02
    assert rate() == "new"
    assert left(clock) == pytest.approx(TTL)
    clock.draw = 0.0
    sql.take()
    assert rate() == "new"
    assert sql.take() == []


@TWO_ENGINES
def test_cold_row_expires(engine: Engine, clock: Clock, rate: Callable[[], str | None]) -> None:
    """Nobody renews what nobody reads."""
    insert(engine)
    rate()
    clock.now += TTL + 0.1
    assert clock.transport.keys() == []
    assert rate() == "old"
    assert left(clock) == pytest.approx(TTL)


@TWO_ENGINES
@pytest.mark.parametrize("step", ["Lease", "Load", "Fill"])
def test_renewal_beside_a_commit_leaves_no_old_row(
    engine: Engine, clock: Clock, rate: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A commit before any step of it: what was read before is not stored over what was written."""
    insert(engine)
    rate()
    clock.now += TTL - 0.5
    clock.draw = 0.99
    fired: list[str] = []
    original, load = MemoryTransport.execute, _reading.Reader._load

    def commit_before(name: str) -> None:
        if name == step and not fired:
            fired.append(name)
            with Session(engine) as writer:
                writer.execute(update(Rate).where(col(Rate.id) == 1).values(value="new"))
                writer.commit()

    def execute(transport: MemoryTransport, effect: Any) -> Any:
        commit_before(type(effect).__name__)
        return original(transport, effect)

    def loads(reader: Any, *arguments: Any) -> Any:
        commit_before("Load")
        return load(reader, *arguments)

    monkeypatch.setattr(MemoryTransport, "execute", execute)
    monkeypatch.setattr(_reading.Reader, "_load", loads)
    SQLModelCache.configure(clock.transport)
    assert rate() in ("old", "new")
    assert fired == [step]
    clock.draw = 0.0
    for _ in range(3):
        assert rate() == "new"


@TWO_ENGINES
def test_row_that_is_gone_is_not_renewed(engine: Engine, clock: Clock, rate: Callable[[], str | None]) -> None:
    """A writer outside has deleted it: its absence takes its place, for its own TTL, and has no stamp."""
    insert(engine)
    rate()
    raw = engine.raw_connection()
    raw.cursor().execute("DELETE FROM rate")
    raw.commit()
    raw.close()
    clock.draw = 0.99
    clock.now += TTL - 0.5
    for _ in range(3):
        assert rate() is None
    assert left(clock) == pytest.approx(60)


@TWO_ENGINES
def test_hit_stands_where_the_database_cannot_be_reached(
    engine: Engine, clock: Clock, rate: Callable[[], str | None], caplog: pytest.LogCaptureFixture
) -> None:
    """A row that is about to expire is a hit all the same, the log says why, and the session goes on."""
    insert(engine)
    rate()
    clock.draw = 0.99
    clock.now += TTL - 0.5

    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError

    event.listen(engine.pool, "checkout", refuse)
    with Session(engine) as session:
        assert session.get_one(Rate, 1).value == "old"
        assert SQLModelCache.stats().hits == 1
        assert caplog.messages == ["a row is not renewed: ConnectionRefusedError"]
        event.remove(engine.pool, "checkout", refuse)
        session.expunge_all()
        assert session.get_one(Rate, 1).value == "old"
    assert SQLModelCache.stats().fills == 2


@TWO_ENGINES
def test_error_of_the_select_that_renews_is_the_callers(
    engine: Engine, clock: Clock, rate: Callable[[], str | None], sql: Log
) -> None:
    """The session's transaction may have failed with it."""
    insert(engine)
    rate()
    clock.draw = 0.99
    clock.now += TTL - 0.5

    @event.listens_for(engine, "before_cursor_execute")
    def _fail(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rate()


@TWO_ENGINES
def test_missing_row_is_hit_as_such(engine: Engine, clock: Clock, rate: Callable[[], str | None], sql: Log) -> None:
    """Also by readers who would renew anything."""
    clock.draw = 0.99
    assert rate() is None
    sql.take()
    assert rate() is None
    assert sql.take() == []


@TWO_ENGINES
def test_other_reads_share_the_rows(engine: Engine, clock: Clock, rate: Callable[[], str | None], sql: Log) -> None:
    """What get_many and get_by store has a stamp that says when it expires; what get has stored they hit."""

    def by_many(session: Session) -> Any:
        return SQLModelCache.get_many(session, Rate, [1])[0]

    def by_key(session: Session) -> Any:
        return SQLModelCache.get_by(session, Rate, code="eur")

    insert(engine)
    for read in (by_many, by_key, lambda session: session.get(Rate, 1)):
        clock.transport.clear()
        for _ in range(2):
            with Session(engine) as session:
                assert read(session).value == "old"
        sql.take()
        assert rate() == "old"
        for other in (by_many, by_key, by_key):
            with Session(engine) as session:
                assert other(session).value == "old"
        clock.now += TTL - 0.001
        assert rate() == "old"
        clock.now += 0.001
        write_outside(engine, "newer")
        assert rate() == "newer"
        write_outside(engine, "old")


@TWO_ENGINES
def test_payloads_with_and_without_a_stamp_never_mix(engine: Engine, clock: Clock, sql: Log) -> None:
    """Two releases, one of which renews: each reads its own payload of a row, and both see every commit."""
    with Session(engine) as session:
        session.add(Hero(id=1, name="old"))
        session.commit()
    kept = Hero.__cache_config__

    def name(config: CacheConfig) -> str:
        Hero.__cache_config__ = config
        SQLModelCache.configure(clock.transport)
        with Session(engine) as session:
            return session.get_one(Hero, 1).name

    releases = (CacheConfig(ttl=TTL), CacheConfig(ttl=TTL, refresh_ahead=1.0))
    try:
        for expected in ("old", "new"):
            for _ in range(2):
                assert [name(config) for config in releases] == [expected] * 2
            sql.take()
            assert [name(config) for config in releases] == [expected] * 2
            assert [each for each in sql.take() if "FROM hero" in each] == []
            with Session(engine) as session:
                session.get_one(Hero, 1).name = "new"
                session.commit()
    finally:
        Hero.__cache_config__ = kept


@TWO_ENGINES
def test_own_write_is_not_renewed(engine: Engine, clock: Clock, rate: Callable[[], str | None]) -> None:
    """Inside its transaction a row is neither hit nor stored, due or not."""
    insert(engine)
    rate()
    clock.draw = 0.99
    clock.now += TTL - 0.5
    with Session(engine) as session:
        session.execute(text("UPDATE rate SET value = 'draft'"))
        assert session.get_one(Rate, 1).value == "draft"
        session.rollback()
    assert rate() == "old"


@pytest.mark.parametrize("beta", [0, -1.0, True, "1", float("inf"), float("nan")], ids=repr)
def test_wrong_eagerness(beta: Any) -> None:
    """It is a number above zero."""
    with pytest.raises(ConfigurationError, match="refresh_ahead"):
        CacheConfig(refresh_ahead=beta)
