"""`get_many`: each row as `session.get` would return it, in few round trips."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Log, Store
from models import Badge, Gadget, Hero, Plain, Sample, add_hero
from session.members import Engineer, Folded, Manager, Person, Recording, make_members
from sqlalchemy import Engine, create_engine, delete, event, insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlmodel import Field, Session, SQLModel, select

from sqlmodel_cache import CacheConfig, ConfigurationError, SQLModelCache, _queries

IN_MEMORY = pytest.mark.parametrize("store", ["memory"], indirect=True)
SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
TWO_ENGINES = pytest.mark.parametrize("engine", ["sqlite", "postgresql+asyncpg"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("engine", ["postgresql", "postgresql+asyncpg"], indirect=True)


def heroes(engine: Engine, count: int) -> list[int]:
    """Insert heroes and return their keys."""
    with Session(engine) as session:
        session.add_all(Hero(id=number, name=f"h{number}", age=number) for number in range(1, count + 1))
        session.commit()
    return list(range(1, count + 1))


def many(engine: Engine, idents: Any, model: Any = Hero) -> list[Any]:
    """Return the rows as a new session gets them, as plain values."""
    with Session(engine) as session:
        return [None if row is None else row.model_dump() for row in SQLModelCache.get_many(session, model, idents)]


def names(engine: Engine, idents: Any) -> list[str | None]:
    """Return the names of heroes as a new session gets them."""
    return [None if row is None else row["name"] for row in many(engine, idents)]


def selects(sql: Log) -> int:
    """Return how many SELECTs of tables were sent since the last call."""
    return len([statement for statement in sql.take() if statement.startswith("SELECT") and "FROM" in statement])


def agree(session: Session, model: Any, idents: list[Any]) -> list[Any]:
    """Return the rows of a session, after a check that `get` returns the very same objects."""
    found = SQLModelCache.get_many(session, model, idents)
    for ident, row in zip(idents, found, strict=True):
        assert session.get(model, ident) is row
    return found


# the common case


def test_rows_come_in_the_order_given(engine: Engine, cache: Store, sql: Log) -> None:
    """With None for what does not exist; the second time without SQL or a connection, but for what is missing."""
    heroes(engine, 5)
    sql.take()
    idents = [4, 99, 1, 5]
    expected = ["h4", None, "h1", "h5"]
    assert names(engine, idents) == expected
    assert selects(sql) == 1
    assert names(engine, idents) == expected
    assert selects(sql) == 1
    checkouts = sql.checkouts
    assert names(engine, [5, 4, 1]) == ["h5", "h4", "h1"]
    assert selects(sql) == 0
    assert sql.checkouts == checkouts
    stats = SQLModelCache.stats()
    assert (stats.hits, stats.misses, stats.fills, stats.uncached) == (6, 5, 3, 2)


@SQLITE
def test_round_trips(engine: Engine) -> None:
    """One look-up for all; one lease, one SELECT and one fill for all that are missed."""
    transport = Recording()
    SQLModelCache.configure(transport)
    heroes(engine, 4)
    transport.take()
    names(engine, [1, 2])
    assert transport.take() == ["2 Lookup", "2 Lease", "2 Fill"]
    names(engine, [1, 2])
    assert transport.take() == ["2 Lookup"]
    names(engine, [4, 1, 2, 3])
    assert transport.take() == ["4 Lookup", "2 Lease", "2 Fill"]
    names(engine, [77])
    assert transport.take() == ["1 Lookup", "1 Lease"]
    names(engine, [])
    assert transport.take() == []


@TWO_ENGINES
def test_rows_are_those_of_get(engine: Engine, cache: Store) -> None:
    """What get_many has stored get hits, and the other way round; values and types are equal."""
    heroes(engine, 2)
    SQLModelCache.reset()
    plain = many(engine, [1, 2])
    SQLModelCache.configure(cache.transport)
    with Session(engine) as session:
        session.get(Hero, 1)
    assert many(engine, [1, 2]) == plain
    assert many(engine, [1, 2]) == plain
    with Session(engine) as session:
        assert session.get_one(Hero, 2).model_dump() == plain[1]
    assert SQLModelCache.stats().hits == 4


@IN_MEMORY
def test_hits_are_persistent_and_one_object_each(engine: Engine, cache: Store) -> None:
    """In the identity map, as get finds them afterwards; load events fire once for each, and see the database's row."""
    heroes(engine, 3)
    names(engine, [1, 2])
    loads: list[Any] = []

    def loaded(target: Hero, _: object) -> None:
        loads.append(target.name)
        target.name = "changed by a listener"

    event.listen(Hero, "load", loaded)
    try:
        with Session(engine) as session:
            rows = agree(session, Hero, [3, 1, 2])
            assert not session.dirty
            assert sorted(loads) == ["h1", "h2", "h3"]
            assert all(row in session for row in rows)
    finally:
        event.remove(Hero, "load", loaded)
    assert names(engine, [1, 2, 3]) == ["h1", "h2", "h3"]


@TWO_ENGINES
@IN_MEMORY
def test_any_iterable_of_keys(engine: Engine, cache: Store) -> None:
    """An iterator is read once; ranges, sets of keys and rows of a SELECT are lists of keys, too."""
    heroes(engine, 3)
    for _ in range(2):
        assert names(engine, iter([1, 3])) == ["h1", "h3"]
        assert names(engine, (pk for pk in (3, 1))) == ["h3", "h1"]
        assert names(engine, range(1, 4)) == ["h1", "h2", "h3"]
        assert names(engine, {2: "x"}.keys()) == ["h2"]
        assert names(engine, ((1,), [2], {"id": 3})) == ["h1", "h2", "h3"]
        with Session(engine) as session:
            keys = session.execute(text("SELECT id FROM hero ORDER BY id DESC")).all()
            assert [row and row.name for row in SQLModelCache.get_many(session, Hero, keys)] == ["h3", "h2", "h1"]
    assert names(engine, []) == []


class Day(SQLModel, table=True):
    """A key of three columns."""

    __cache_config__ = CacheConfig()
    place: str = Field(primary_key=True)
    year: int = Field(primary_key=True)
    number: uuid.UUID = Field(primary_key=True)
    note: str = ""


@TWO_ENGINES
def test_other_kinds_of_keys(engine: Engine, cache: Store, sql: Log) -> None:
    """Composite keys as tuple, list and dict; UUID and str keys."""
    numbers = [uuid.UUID(int=number) for number in range(3)]
    with Session(engine) as session:
        session.add_all([Gadget(owner="a", number=1, label="a1"), Gadget(owner="b", number=2, label="b2")])
        session.add_all([Day(place="p:1", year=1, number=number, note=str(number)) for number in numbers])
        session.add_all([Badge(code=code, label=code) for code in ("x", "y z", "é")])
        session.commit()
    questions: list[tuple[Any, list[Any], str, list[str | None]]] = [
        (Gadget, [("b", 2), ["a", 1], {"number": 1, "owner": "b"}], "label", ["b2", "a1", None]),
        (Day, [("p:1", 1, number) for number in numbers], "note", [str(number) for number in numbers]),
        (Badge, ["é", "nobody", "x", "y z"], "label", ["é", None, "x", "y z"]),
        (Sample, list(numbers), "id", [None] * 3),
    ]
    for counts in ([2, 1, 1, 4], [2, 0, 0, 4]):  # a get of each that is missing, and not cached as such, included
        for (model, idents, attribute, expected), count in zip(questions, counts, strict=True):
            sql.take()
            with Session(engine) as session:
                assert [row and getattr(row, attribute) for row in agree(session, model, idents)] == expected
            assert selects(sql) == count


@IN_MEMORY
@SQLITE
def test_more_rows_than_one_select_takes(
    engine: Engine, cache: Store, sql: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several SELECTs, and the same answers."""
    monkeypatch.setattr(_queries, "MAX_ROWS", 10)
    heroes(engine, 25)
    sql.take()
    for count in (3, 0):
        assert names(engine, range(25, 0, -1)) == [f"h{pk}" for pk in range(25, 0, -1)]
        assert selects(sql) == count


@IN_MEMORY
@SQLITE
def test_more_composite_keys_than_an_expression_takes(engine: Engine, cache: Store, sql: Log) -> None:
    """SQLite refuses an expression of a thousand levels, which one OR for each key makes."""
    numbers = range(2 * _queries.MAX_COMPOSITE + 1)
    with engine.begin() as connection:
        connection.execute(insert(Gadget), [{"owner": "o", "number": number, "label": "x"} for number in numbers])
    sql.take()
    for count in (3, 0):
        with Session(engine) as session:
            found = SQLModelCache.get_many(session, Gadget, [("o", number) for number in numbers])
            assert [row and row.number for row in found] == list(numbers)
        assert selects(sql) == count


# what the session holds


@TWO_ENGINES
@IN_MEMORY
def test_identity_map_is_respected(engine: Engine, cache: Store, sql: Log) -> None:
    """Present, expired, deleted and gone, changed and pending instances are found as get finds them."""
    heroes(engine, 7)
    names(engine, range(1, 8))
    with Session(engine) as session:
        present, expired, deleted, gone, dirty = (session.get_one(Hero, pk) for pk in range(1, 6))
        session.expire(expired)
        session.expire(gone)
        session.execute(text("DELETE FROM hero WHERE id = 4"))
        session.delete(deleted)
        dirty.name = "draft"
        pending = Hero(id=50, name="pending")
        session.add(pending)
        found = SQLModelCache.get_many(session, Hero, [50, 5, 1, 2, 3, 4, 6])
        assert found[:4] == [pending, dirty, present, expired]
        assert expired.name == "h2"
        assert dirty.name == "draft"
        assert found[5] is None
        assert found[6] is not None
        assert agree(session, Hero, [50, 5, 1, 2, 3, 4, 6, 7])[4] is None  # flushed meanwhile
        session.rollback()
    assert names(engine, range(1, 8)) == [f"h{pk}" for pk in range(1, 8)]


@TWO_ENGINES
@IN_MEMORY
@pytest.mark.parametrize("autoflush", [True, False])
def test_pending_changes_are_flushed_first(engine: Engine, cache: Store, autoflush: bool) -> None:
    """As a SELECT would: a new row is found by it, and a deleted one is not."""
    heroes(engine, 3)
    names(engine, [1, 2, 3])
    with Session(engine, autoflush=autoflush) as session:
        session.add(Hero(id=9, name="new"))
        deleted = session.get_one(Hero, 1)
        session.delete(deleted)
        found = [None if row is None else row.name for row in SQLModelCache.get_many(session, Hero, [2, 9, 3])]
        assert found == ["h2", "new" if autoflush else None, "h3"]
        [again] = SQLModelCache.get_many(session, Hero, [1])
        assert again is (None if autoflush else deleted)
    assert names(engine, [9, 1]) == [None, "h1"]


@IN_MEMORY
def test_own_writes_are_read_from_the_database(engine: Engine, cache: Store) -> None:
    """Until the transaction ends, also after a savepoint was rolled back; the other rows hit."""
    heroes(engine, 4)
    names(engine, [1, 2, 3, 4])
    values = cache.values()
    with Session(engine) as session:

        def now() -> list[str | None]:
            session.expunge_all()
            return [None if row is None else row.name for row in agree(session, Hero, [1, 2, 3, 4])]

        session.execute(update(Hero).where(Hero.id == 1).values(name="own"))  # type: ignore[arg-type]
        before = SQLModelCache.stats().hits
        assert now() == ["own", "h2", "h3", "h4"]
        assert SQLModelCache.stats().hits > before
        nested = session.begin_nested()
        session.execute(delete(Hero).where(Hero.id == 2))  # type: ignore[arg-type]
        assert now() == ["own", None, "h3", "h4"]
        nested.rollback()
        assert now() == ["own", "h2", "h3", "h4"]
        session.execute(text("UPDATE hero SET name = 'all'"))
        assert now() == ["all"] * 4
        assert cache.values() == values
        session.rollback()
        assert now() == ["h1", "h2", "h3", "h4"]
    assert names(engine, [1, 2, 3, 4]) == ["h1", "h2", "h3", "h4"]


def test_older_instance_is_not_stored(engine: Engine, cache: Store) -> None:
    """A session keeps what it holds; beside it the rows of now are read, stored and hit."""
    heroes(engine, 3)
    with Session(engine, expire_on_commit=False) as old:
        held = old.get_one(Hero, 1)
        assert held.name == "h1"
        old.commit()
        with Session(engine) as writer:
            writer.execute(text("UPDATE hero SET name = 'new'"))
            writer.commit()
        rows = SQLModelCache.get_many(old, Hero, [2, 1, 3])
        assert [row and row.name for row in rows] == ["new", "h1", "new"]
        assert rows[1] is held
        old.commit()
    for _ in range(2):
        assert names(engine, [1, 2, 3]) == ["new"] * 3


# others write

WRITES: dict[str, Callable[[Session], object]] = {
    "flush": lambda session: setattr(session.get_one(Hero, 2), "name", "new"),
    "update": lambda session: session.execute(update(Hero).where(Hero.id == 2).values(name="new")),  # type: ignore[arg-type]
    "core": lambda session: session.connection().execute(text("UPDATE hero SET name = 'new' WHERE age = 2")),
    "delete": lambda session: session.delete(session.get_one(Hero, 2)),
    "all": lambda session: session.execute(delete(Hero)),
    "insert": lambda session: session.add(Hero(id=9, name="late")),
}


@TWO_ENGINES
@pytest.mark.parametrize("way", WRITES)
def test_commit_of_others_is_seen(engine: Engine, cache: Store, way: str) -> None:
    """After it no row is as it was, and each is what get returns; before it, and after a rollback, all are."""
    heroes(engine, 3)
    idents = [3, 9, 2, 1]
    old = names(engine, idents)
    assert old == ["h3", None, "h2", "h1"]
    for ending in ("rollback", "commit"):
        with Session(engine) as session:
            WRITES[way](session)
            session.flush()
            if engine.dialect.name == "postgresql":
                assert names(engine, idents) == old
            getattr(session, ending)()
        with engine.connect() as connection:
            stored: dict[Any, Any] = dict(connection.execute(text("SELECT id, name FROM hero")).all())  # type: ignore[arg-type]
        for _ in range(2):
            assert names(engine, idents) == [stored.get(pk) for pk in idents]
            with Session(engine) as session:
                agree(session, Hero, idents)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("warm", [True, False])
def test_commit_at_every_step(engine: Engine, warm: bool) -> None:
    """A commit before any of the steps costs fills at most: the row of after it is what everybody gets from then on."""
    for step in range(1, 5):
        transport = Recording()
        SQLModelCache.configure(transport)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM hero"))
        heroes(engine, 3)
        if warm:
            names(engine, [1, 3])

        def rename() -> None:
            with engine.begin() as connection:
                connection.execute(text("UPDATE hero SET name = 'new'"))

        transport.take()
        transport.before[step] = rename
        found = names(engine, [1, 2, 3])
        committed = not transport.before
        transport.before.clear()
        assert set(found) <= {"h1", "h2", "h3", "new"}
        if committed and step <= 2:
            assert found[1] == "new"
        for _ in range(2):
            assert names(engine, [1, 2, 3]) == (["new"] * 3 if committed else ["h1", "h2", "h3"])


# keys that are equal only in the database


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
@pytest.mark.parametrize(
    "idents", [["ada"], ["ADA"], ["ada", "ADA"], ["ADA", "x", "Ada", "ada"], ["x", "Ada", "y"]], ids=repr
)
def test_collation_finds_what_get_finds(engine: Engine, cache: Store, idents: list[str]) -> None:
    """Several names of one row each find it, in any company, and none is stored as missing."""
    setup = create_engine(engine.url.set(drivername="sqlite"))
    make_members(setup)
    setup.dispose()
    with Session(engine) as session:
        session.add(Folded(code="ada", email="a"))
        session.commit()
    for _ in range(3):
        with Session(engine) as session:
            found = SQLModelCache.get_many(session, Folded, idents)
            assert [row and row.code for row in found] == [
                "ada" if ident.lower() == "ada" else None for ident in idents
            ]
        with Session(engine) as session:
            agree(session, Folded, idents)
    with Session(engine) as session:
        for ident in ("ada", "ADA", "Ada"):
            assert session.get(Folded, ident) is not None
        assert session.get(Folded, "x") is None


@IN_MEMORY
@SQLITE
def test_key_of_another_type_finds_what_get_finds(engine: Engine, cache: Store) -> None:
    """SQLite takes "1" for 1; both are asked of it, each with what get makes of it."""
    heroes(engine, 2)
    for _ in range(2):
        with Session(engine) as session:
            found = SQLModelCache.get_many(session, Hero, ["1", 1, "2", "x", 1.5])
            assert [row and row.name for row in found] == ["h1", "h1", "h2", None, None]
            agree(session, Hero, ["1", 1, "2", "x", 1.5])


# by rule


@TWO_ENGINES
@IN_MEMORY
def test_inheritance(engine: Engine, cache: Store) -> None:
    """A base finds its subclasses, a subclass only its own rows, from the cache as from the database."""
    blocking = {"postgresql+asyncpg": "postgresql+psycopg"}
    setup = create_engine(engine.url.set(drivername=blocking.get(engine.url.drivername, engine.url.drivername)))
    make_members(setup)
    setup.dispose()
    with Session(engine) as session:
        session.add_all([Person(id=1, email="p"), Engineer(id=2, email="e", badge="b"), Manager(id=3, email="m")])
        session.commit()
    for _ in range(3):
        for model, classes in (
            (Person, [Manager, Engineer, None, Person]),
            (Engineer, [None, Engineer, None, None]),
            (Manager, [Manager, None, None, None]),
        ):
            with Session(engine) as session:
                found: list[Any] = agree(session, model, [3, 2, 9, 1])
                assert [None if row is None else type(row) for row in found] == classes
    assert SQLModelCache.stats().hits >= 10


@TWO_ENGINES
def test_options_of_the_call(engine: Engine, cache: Store, sql: Log) -> None:
    """`cache` and `cache_ttl` as in a get; a wrong one is an error."""
    heroes(engine, 2)
    for _ in range(2):
        sql.take()
        with Session(engine) as session:
            assert None not in SQLModelCache.get_many(session, Hero, [1, 2], execution_options={"cache": False})
        assert selects(sql) == 1
    assert cache.values() == {}
    assert SQLModelCache.stats().bypasses == 4
    with Session(engine) as session:
        SQLModelCache.get_many(session, Hero, [1, 2], execution_options={"cache_ttl": 60})
    assert [0 < cache.ttl(key) <= 60 for key in cache.values()] == [True, True]
    with Session(engine) as session, pytest.raises(ConfigurationError, match="cache_ttl"):
        SQLModelCache.get_many(session, Hero, [1, 2], execution_options={"cache_ttl": 0})


@IN_MEMORY
@POSTGRESQL
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_snapshot_that_was_asked_for_is_kept(engine: Engine, cache: Store, level: str) -> None:
    """All rows are of one snapshot, and none is stored."""
    heroes(engine, 3)
    names(engine, [1, 2])
    with Session(engine.execution_options(isolation_level=level)) as reader:
        reader.execute(text("SELECT 1 FROM hero"))
        with Session(engine) as writer:
            writer.execute(text("UPDATE hero SET name = 'new'"))
            writer.commit()
        names(engine, [1])
        found = SQLModelCache.get_many(reader, Hero, [1, 2, 3])
        assert [row and row.name for row in found] == ["h1", "h2", "h3"]
    assert names(engine, [1, 2, 3]) == ["new"] * 3


@TWO_ENGINES
@IN_MEMORY
@pytest.mark.parametrize("state", ["unconfigured", "disabled", "uncached"])
def test_without_a_cache_it_is_one_select(engine: Engine, store: Store, sql: Log, state: str) -> None:
    """For models that are not cached, and where nothing is configured."""
    if state != "unconfigured":
        SQLModelCache.configure(store.transport, enabled=state != "disabled")
    model: Any = Plain if state == "uncached" else Hero
    with Session(engine) as session:
        session.add_all(model(id=pk, name=f"h{pk}") for pk in (1, 2, 3))
        session.commit()
    for _ in range(2):
        sql.take()
        assert [row and row["name"] for row in many(engine, [3, 9, 1], model)] == ["h3", None, "h1"]
        assert selects(sql) == 1
    assert store.values() == {}


@TWO_ENGINES
@IN_MEMORY
def test_listener_that_changes_statements_sends_them_to_the_database(engine: Engine, cache: Store) -> None:
    """A listener of the session may narrow what a SELECT finds."""
    heroes(engine, 2)
    names(engine, [1, 2])
    with Session(engine) as session:

        @event.listens_for(session, "do_orm_execute")
        def _narrow(state: Any) -> None:
            state.statement = state.statement.where(Hero.id != 1)

        assert [row and row.name for row in SQLModelCache.get_many(session, Hero, [1, 2])] == [None, "h2"]
    assert names(engine, [1, 2]) == ["h1", "h2"]


def test_missing_rows_that_are_cached(engine: Engine, cache: Store, sql: Log) -> None:
    """A model with missing_ttl: absences are stored and hit, and an insert ends them."""
    with Session(engine) as session:
        session.add(Badge(code="b", label="B"))
        session.commit()
    for attempt in range(2):
        sql.take()
        assert [row and row["label"] for row in many(engine, ["a", "b", "c"], Badge)] == [None, "B", None]
        assert selects(sql) == (1 if attempt == 0 else 0)
    with Session(engine) as session:
        session.add(Badge(code="c", label="C"))
        session.commit()
    assert [row and row["label"] for row in many(engine, ["a", "b", "c"], Badge)] == [None, "B", "C"]


# bad input


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@IN_MEMORY
@pytest.mark.parametrize(
    ("model", "idents", "message"),
    [
        (Hero, [1, 2, 1], r"idents\[2\]=1: give each row once; it is idents\[0\], too"),
        (Hero, [1, (1,)], r"idents\[1\]"),
        (Hero, [1, {"id": 1}], r"idents\[1\]"),
        (Hero, [1, True], r"idents\[1\]"),
        (Gadget, [("a", 1), ["a", 1]], r"idents\[1\]"),
        (Hero, [[[1]]], r"idents\[0\]=\[\[1\]\]: a primary key can be hashed"),
        (Hero, [{1}], r"idents\[0\].*hashed"),
        (Gadget, [("a", {})], r"idents\[0\].*hashed"),
        (Hero, [(1, 2)], r"idents\[0\]=\(1, 2\): give primary keys: \(id\)"),
        (Hero, [()], r"idents\[0\]"),
        (Hero, [{"pk": 1}], r"idents\[0\]"),
        (Hero, [{"id": 1, "name": "x"}], r"idents\[0\]"),
        (Gadget, ["a1"], r"idents\[0\]='a1': give primary keys: \(owner, number\)"),
        (Gadget, [("a", 1), ("a",)], r"idents\[1\]"),
        (Gadget, [{"owner": "a"}], r"idents\[0\]"),
        (Badge, "ab", "idents='ab': give a list of primary keys"),
        (Badge, b"ab", "idents=b'ab'"),
        (Hero, 5, "idents=5: give a list of primary keys"),
        (Hero, None, "idents=None"),
        (Hero, {"id": 1}, r"idents=\{'id': 1\}"),
        (str, [1], "entity=<class 'str'>: give a mapped class"),
        ("Hero", [1], "entity='Hero'"),
        (Hero(id=1, name="x"), [1], "entity="),
        (SQLModel, [1], "entity="),
    ],
    ids=str,
)
@pytest.mark.parametrize("configured", [True, False])
def test_wrong_keys_are_errors(
    engine: Engine, store: Store, sql: Log, model: Any, idents: Any, message: str, configured: bool
) -> None:
    """They name the argument, and the one of several; nothing was read, with a cache or without."""
    if configured:
        SQLModelCache.configure(store.transport)
    with Session(engine) as session, pytest.raises(ConfigurationError, match=message):
        SQLModelCache.get_many(session, model, idents)
    assert sql.take() == []


@TWO_ENGINES
@IN_MEMORY
def test_error_of_the_database_is_the_callers(engine: Engine, cache: Store) -> None:
    """What the SELECT raises comes out, and the next call goes on."""
    heroes(engine, 2)
    error = ZeroDivisionError("from the driver")

    def fail(*_: Any) -> None:
        raise error

    event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(ZeroDivisionError) as raised:
        names(engine, [1, 2])
    assert raised.value.__context__ is None
    event.remove(engine, "before_cursor_execute", fail)
    assert names(engine, [1, 2]) == ["h1", "h2"]
    assert len(cache.values()) == 2


@pytest.fixture
def nested(engine: Engine) -> Iterator[list[list[str]]]:
    """What a load listener finds that asks for rows itself."""
    found: list[list[str]] = []

    def loaded(target: Hero, _: object) -> None:
        session = Session.object_session(target)
        if session is not None and target.id == 1:
            rows = SQLModelCache.get_many(session, Hero, [3, 2])  # type: ignore[arg-type]
            found.append([row.name for row in rows if row is not None])

    event.listen(Hero, "load", loaded, restore_load_context=True)
    yield found
    event.remove(Hero, "load", loaded)


@TWO_ENGINES
@IN_MEMORY
def test_load_listener_may_ask_for_the_rows_themselves(engine: Engine, cache: Store, nested: list[list[str]]) -> None:
    """On a hit, in the middle of a call: the rows that both ask for are the same objects."""
    heroes(engine, 3)
    with Session(engine) as session:
        session.exec(select(Hero).where(Hero.id != 1)).all()
        for pk in (2, 3):
            with Session(engine) as other:
                other.get(Hero, pk)
    for _ in range(3):
        with Session(engine) as session:
            agree(session, Hero, [1, 2, 3])
    assert nested
    assert all(each == ["h3", "h2"] for each in nested)


@pytest.mark.parametrize("engine", ["sqlite+aiosqlite", "postgresql+asyncpg"], indirect=True)
async def test_async_twin(engine: Engine, store: Store, sql: Log) -> None:
    """`aget_many` fills and hits in an AsyncSession, with its options and its errors."""
    SQLModelCache.configure(store.transport)
    async_engine = AsyncEngine(engine)
    async with async_engine.connect() as connection:
        await connection.run_sync(lambda _: [add_hero(engine), add_hero(engine, "Second")])
    for attempt in range(2):
        sql.take()
        async with AsyncSession(async_engine) as session:
            rows = await SQLModelCache.aget_many(session, Hero, [2, 1])
            assert [row and row.name for row in rows] == ["Second", "Rusty"]
        assert selects(sql) == (1 if attempt == 0 else 0)
    async with AsyncSession(async_engine) as session:
        assert None not in await SQLModelCache.aget_many(session, Hero, [1, 2], execution_options={"cache": False})
        assert selects(sql) == 1
        with pytest.raises(ConfigurationError, match=r"idents\[1\]"):
            await SQLModelCache.aget_many(session, Hero, [1, 1])
