"""What is counted of each get, commit and invalidation: by model, with its reason, each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Store
from models import Badge, Gadget, Hero, Plain, Team, add_hero, get_hero
from sqlalchemy import Engine, event, update
from sqlalchemy.orm import DeclarativeBase, Mapped, defer, mapped_column
from sqlmodel import Field, Session, SQLModel, col, create_engine

from sqlmodel_cache import CacheConfig, MemoryTransport, ModelStats, SQLModelCache, TransportError, _renewal
from sqlmodel_cache._effects import Begin, End, Fill, Keys, Lease, Lookup
from sqlmodel_cache._recovery import FAILURES
from sqlmodel_cache.metrics import BypassReason, RefusedReason

BYPASSES = BypassReason.__args__  # type: ignore[attr-defined]
SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
BOTH = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
MEMORY = pytest.mark.parametrize("store", ["memory"], indirect=True)


class Base(DeclarativeBase):
    """Tables of their own."""


class Being(Base):
    """One table for two classes."""

    __tablename__ = "stats_being"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "being"}  # noqa: RUF012


class Cat(Being):
    """It inherits."""

    __cache_config__ = CacheConfig()
    __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012


class Fresh(SQLModel, table=True):
    """Renewed whenever it is read."""

    __tablename__ = "stats_fresh"
    __cache_config__ = CacheConfig(ttl=60, refresh_ahead=10_000, unique=[("name",)])
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)


class Flaky(MemoryTransport):
    """A server in another process, which fails at some effects."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.fails: tuple[type, ...] = ()

    def execute(self, effect: Any) -> Any:
        """Answer, or fail."""
        if isinstance(effect, self.fails):
            raise TransportError("down")
        return super().execute(effect)


def stats(model: type = Hero) -> ModelStats:
    """Return what has been counted of a model; every count of the process is its models'."""
    found = SQLModelCache.stats()
    for name in ("hits", "misses", "bypasses", "fills", "refused", "uncached", "shared", "fenced", "corrupt"):
        assert getattr(found, name) == sum(getattr(each, name) for each in found.models.values())
    for each in found.models.values():
        assert each.hits == each.hit_seconds.count
        assert each.misses == each.miss_seconds.count == sum(each.miss_reasons.values())
        assert each.misses == each.fills + each.refused + each.uncached + each.fenced + each.shared + each.errors
        assert each.bypasses == sum(each.bypass_reasons.values())
        assert each.refused + each.uncached == sum(each.refused_reasons.values())
    return found.models.get(f"{model.__module__}:{model.__qualname__}", ModelStats())


def reasons(counts: Any) -> dict[str, int]:
    """Return the reasons that have occurred."""
    return {reason: count for reason, count in counts.items() if count}


@BOTH
def test_get_is_counted_once(engine: Engine, cache: Store) -> None:
    """A miss and its fill, then a hit, with the bytes of their payloads; another model's counts are its own."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    get_hero(engine, pk)
    found = stats()
    assert (found.misses, found.fills, found.hits, found.bypasses) == (1, 1, 1, 0)
    assert reasons(found.miss_reasons) == {"absent": 1}
    assert found.bytes_written == found.bytes_read > 0
    assert found.hit_seconds.sum > 0
    assert stats(Team) == ModelStats()


@SQLITE
@MEMORY
def test_what_a_session_holds_is_no_get(engine: Engine, cache: Store) -> None:
    """Nor is a get of a class that is not cached."""
    pk = add_hero(engine)
    with Session(engine) as session:
        held = session.get(Hero, pk)
        assert session.get(Hero, pk) is held
        session.get(Plain, 1)
    assert (stats().misses, stats().hits) == (1, 0)
    assert list(SQLModelCache.stats().models) == ["models:Hero"]


@SQLITE
@MEMORY
def test_counts_outlive_what_is_known_of_classes(engine: Engine, cache: Store) -> None:
    """Another mapping makes the library look at its classes anew; the counts go on."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    cached = SQLModelCache._cache
    assert cached is not None
    cached.entities.changed()
    get_hero(engine, pk)
    assert (stats().misses, stats().hits) == (1, 1)


@contextmanager
def began(engine: Engine, **options: Any) -> Iterator[Session]:
    """A session on a connection with options."""
    with engine.connect().execution_options(**options) as connection, Session(connection) as session:
        yield session


def disabled(session: Session, pk: int) -> None:
    """The call says so."""
    session.get(Hero, pk, execution_options={"cache": False})


def option(session: Session, pk: int) -> None:
    """The call asks for more."""
    session.get(Hero, pk, options=[defer(Hero.age)])  # type: ignore[arg-type]


def key(session: Session, pk: int) -> None:
    """A number of another type."""
    session.get(Hero, float(pk))


def own_writes(session: Session, pk: int) -> None:
    """The row is this transaction's."""
    session.execute(update(Hero).where(col(Hero.id) == pk).values(age=1))
    session.get(Hero, pk)


def isolation(session: Session, pk: int) -> None:
    """It was asked for."""
    with began(session.get_bind(), isolation_level="SERIALIZABLE") as other:  # type: ignore[arg-type]
        other.get(Hero, pk)


def owed(session: Session, pk: int) -> None:
    """The cache has not been told."""
    cache = SQLModelCache._cache
    assert cache is not None
    cache.driver.debts.owed = dict.fromkeys(cache.driver.sync_transport.keys(), (True, 1))  # type: ignore[union-attr]
    cache.driver.debts.any = True
    session.get(Hero, pk)
    cache.driver.debts.owed = {}
    cache.driver.debts.any = False


def session(session: Session, pk: int) -> None:
    """It is merging."""
    session.merge(Hero(id=pk, name="Other"))


def listener(session: Session, pk: int) -> None:
    """Somebody listens."""
    event.listen(session, "do_orm_execute", lambda state: None)
    session.get(Hero, pk)


def database(session: Session, pk: int) -> None:
    """The connection is closed."""
    connection = session.get_bind().connect()  # type: ignore[union-attr]
    connection.close()
    with Session(connection) as other, pytest.raises(Exception, match="closed"):
        other.get(Hero, pk)


def rollout(session: Session, pk: int) -> None:
    """Nothing is read."""
    SQLModelCache.configure(hash_keys="rollout")
    session.get(Hero, pk)


@SQLITE
@MEMORY
@pytest.mark.parametrize(
    "get", [disabled, option, key, own_writes, isolation, owed, session, listener, database, rollout]
)
def test_bypass_has_a_reason(engine: Engine, cache: Store, get: Callable[[Session, int], None]) -> None:
    """Each of the reasons that there are, which is the name of what brings it about."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        get(session, pk)
    assert reasons(stats().bypass_reasons) == {get.__name__: 1}
    assert get.__name__ in BYPASSES


def test_every_bypass_is_tested() -> None:
    """The cases above are all that there are."""
    cases = next(mark for mark in test_bypass_has_a_reason.pytestmark if "get" in mark.args[0])  # type: ignore[attr-defined]
    assert {case.__name__ for case in cases.args[1]} == set(BYPASSES)


@SQLITE
def test_misses_have_reasons(engine: Engine) -> None:
    """What the look-up, the lease and the breaker say; of two the first in the list."""
    transport = Flaky()
    SQLModelCache.configure(transport)
    pk = add_hero(engine)
    get_hero(engine, pk)
    cached = SQLModelCache._cache
    assert cached is not None
    row = next(iter(transport.keys()))

    for payloads in (held.payloads for held in transport._rows.values() if hasattr(held, "payloads")):
        payloads.update(dict.fromkeys(payloads, b"\xff"))
    get_hero(engine, pk)
    assert (stats().corrupt, reasons(stats().miss_reasons)) == (1, {"absent": 1, "corrupt": 1})

    token = b"t" * 16
    transport.execute(Begin(Keys((row,), ()), token, 60_000))
    get_hero(engine, pk)
    assert (stats().fenced, stats().miss_reasons["fenced"]) == (1, 1)
    transport.execute(End(Keys((row,), ()), token, b"e" * 16))

    for kind in (Lookup, Lease, Fill):
        transport.fails = (kind,)
        get_hero(engine, pk)
    assert (stats().errors, stats().miss_reasons["error"]) == (3, 3)
    transport.fails = (Lookup, End)
    for _ in range(FAILURES):
        get_hero(engine, pk)
    assert SQLModelCache.stats().unreachable
    before = stats()
    get_hero(engine, pk)
    assert (stats().miss_reasons["breaker"], stats().errors) == (
        before.miss_reasons["breaker"] + 1,
        before.errors + 1,
    )


@SQLITE
@MEMORY
def test_renewal_is_a_reason(engine: Engine, cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is read before it expires is a miss that found it."""
    monkeypatch.setattr(_renewal, "due", lambda payload, *, beta: True)
    with Session(engine) as session:
        session.add(Fresh(id=1, name="a"))
        session.commit()
    for _ in range(2):
        with Session(engine) as session:
            session.get(Fresh, 1)
    assert reasons(stats(Fresh).miss_reasons) == {"absent": 1, "renewal": 1}


@contextmanager
def writing(engine: Engine, at: type) -> Iterator[None]:
    """Let another transaction change hero 1 before an effect is executed."""
    execute, done = MemoryTransport.execute, []

    def writes(self: MemoryTransport, effect: Any) -> Any:
        if type(effect) is at and not done:
            done.append(effect)
            with Session(engine) as session:
                session.execute(update(Hero).where(col(Hero.id) == 1).values(age=2))
                session.commit()
        return execute(self, effect)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryTransport, "execute", writes)
        yield


def late(engine: Engine, pk: int) -> None:
    """A commit is first."""
    with writing(engine, Fill), Session(engine) as session:
        session.get(Hero, pk)


def snapshot(engine: Engine, pk: int) -> None:
    """A transaction has begun before the lease."""
    with Session(engine) as session:
        session.get(Plain, 1)
        session.get(Hero, pk)


def missing(engine: Engine, pk: int) -> None:
    """There is no such row."""
    with Session(engine) as session:
        session.get(Hero, pk + 1)


def value(engine: Engine, pk: int) -> None:
    """Its name is longer than a payload may be."""
    SQLModelCache.configure(max_payload_bytes=10)
    get_hero(engine, pk)


@SQLITE
@pytest.mark.parametrize("get", [late, snapshot, missing, value])
@pytest.mark.parametrize("many", [False, True])
def test_what_is_not_stored_has_a_reason(
    engine: Engine, get: Callable[[Engine, int], None], many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the reasons, for one row and for many."""
    transport = Flaky()
    SQLModelCache.configure(transport)
    pk = add_hero(engine)
    if many:
        monkeypatch.setattr(
            Session, "get", lambda self, entity, pk: SQLModelCache.get_many(self, entity, [pk])[0], raising=True
        )
        monkeypatch.setattr(Session, "get_one", Session.get)
    get(engine, pk)
    assert reasons(stats().refused_reasons) == {get.__name__: 1}
    assert get.__name__ in RefusedReason.__args__  # type: ignore[attr-defined]


def test_a_row_by_another_name_is_not_stored(tmp_path: Path) -> None:
    """SQLite finds a text that is looked for by a number's name, and a name that differs in case."""
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE badge (code TEXT COLLATE NOCASE PRIMARY KEY, label TEXT)")
        connection.exec_driver_sql("INSERT INTO badge VALUES ('a', 'b')")
    SQLModelCache.configure()
    with Session(engine) as session:
        assert session.get(Badge, "A") is not None
    assert reasons(stats(Badge).refused_reasons) == {"other": 1}
    engine.dispose()


def test_what_a_shared_transaction_wrote_is_not_stored(tmp_path: Path) -> None:
    """Between the look-up and the SELECT, another session on the same connection has written the row."""
    engine = create_engine(f"sqlite:///{tmp_path}/shared.db")
    SQLModel.metadata.create_all(engine)
    transport = Flaky()
    SQLModelCache.configure(transport)
    pk = add_hero(engine)
    with engine.connect() as connection, Session(connection) as reader, Session(connection) as writer:
        execute = transport.execute

        def writes(effect: Any) -> Any:
            if type(effect) is Lease:
                writer.execute(update(Hero).values(age=3))
            return execute(effect)

        transport.execute = writes  # type: ignore[method-assign]
        reader.get(Hero, pk)
    assert reasons(stats().refused_reasons) == {"own_writes": 1}
    engine.dispose()


@SQLITE
@MEMORY
def test_rows_of_one_call_are_counted_each(engine: Engine, cache: Store) -> None:
    """get_many counts its rows, those that its session holds excepted, and get_by one."""
    pks = [add_hero(engine) for _ in range(4)]
    get_hero(engine, pks[0])
    with Session(engine) as session:
        held = session.get(Hero, pks[0])
        assert SQLModelCache.get_many(session, Hero, pks)[0] is held
        SQLModelCache.get_many(session, Hero, [float(pk) + 100 for pk in pks])
    found = stats()
    assert (found.hits, found.misses, found.fills) == (1, 4, 4)  # one miss before the call
    assert reasons(found.bypass_reasons) == {"key": 4}
    with Session(engine) as session:
        SQLModelCache.get_many(session, Hero, pks, execution_options={"cache": False})
    assert reasons(stats().bypass_reasons) == {"key": 4, "disabled": 4}
    with Session(engine) as session:
        assert len(SQLModelCache.get_many(session, Hero, pks)) == 4
    assert stats().hits == 5
    assert stats().bytes_read > stats().bytes_written > 0


@SQLITE
@MEMORY
def test_get_by_is_counted_once(engine: Engine, cache: Store) -> None:
    """Whatever it looks up."""
    with Session(engine) as session:
        session.add(Fresh(id=1, name="a"))
        session.commit()
    for name in ("a", "a", "a", "b", 1.5):
        with Session(engine) as session:
            SQLModelCache.get_by(session, Fresh, name=name)
    found = stats(Fresh)
    assert (found.hits, found.misses, reasons(found.bypass_reasons)) == (1, 3, {"key": 1})
    assert reasons(found.refused_reasons) == {"missing": 1}


@SQLITE
@MEMORY
def test_invalidations_are_their_models(engine: Engine, cache: Store) -> None:
    """By the table that was written: a cascade's child counts its own, a class that inherits its base's."""
    pk = add_hero(engine)
    with Session(engine) as session:
        session.execute(update(Hero).where(col(Hero.id) == pk).values(age=1))
        session.commit()
    assert (stats().invalidated, stats(Team).invalidated, SQLModelCache.stats().invalidated) == (1, 0, 1)
    with Session(engine) as session:
        session.add(Gadget(owner="a:b", number=1))
        session.commit()
        session.execute(update(Gadget).values(label="c"))
        session.commit()
    assert stats(Gadget).invalidated == 1 + 16  # the row whose key was given, and the table
    SQLModelCache.invalidate(Cat, 5, bind=engine)
    assert (stats(Being).invalidated, stats(Cat).invalidated) == (1, 0)
    assert SQLModelCache.stats().invalidated == 19


@SQLITE
@MEMORY
def test_other_schemas_are_the_models(engine: Engine, cache: Store) -> None:
    """A `schema_translate_map` changes names in keys, and not whose rows they are."""
    with engine.begin() as connection:
        connection.exec_driver_sql("ATTACH ':memory:' AS other")
        connection.exec_driver_sql("CREATE TABLE other.hero (id INTEGER PRIMARY KEY, name, age, team_id)")
        translated = connection.execution_options(schema_translate_map={None: "other"})
        translated.execute(update(Hero).where(col(Hero.id) == 1).values(age=1))
    assert stats().invalidated >= 1
    assert SQLModelCache.stats().invalidated == stats().invalidated


@SQLITE
def test_failed_invalidations_are_errors(engine: Engine) -> None:
    """One for each that the cache failed, whatever it is of; it belongs to no model."""
    transport = Flaky()
    SQLModelCache.configure(transport)
    transport.fails = (Begin, End)
    pk = add_hero(engine)
    assert SQLModelCache.stats().errors == 0
    with Session(engine) as session:
        session.get_one(Hero, pk).age = 2
        session.commit()
    assert SQLModelCache.stats().errors == 1
    assert stats().errors == 0
    assert stats().invalidated == 1
